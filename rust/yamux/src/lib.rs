//! The yamux multiplexer as a state machine, without I/O.
//!
//! One [`Connection`] is one side, client or server, of a session as the hashicorp specification describes it: 12-byte
//! frame headers, a window for each stream, half-close, reset, pings, go-away. It holds no payload and makes no frame
//! buffers: received payload is reported as ranges of the caller's own input, and for sending it hands out 12-byte
//! headers that the caller places in front of its payload.
//!
//! - Bytes that came in go to [`Connection::receive`] until it returns no event.
//! - Payload that the application took is reported with [`Connection::consumed`], which is what opens the window again.
//! - To send, ask [`Connection::poll_room`], then put [`Connection::data_header`] in front of the bytes.
//! - Whenever there is room to write, [`Connection::poll_control`] is asked until it has nothing more.
//! - [`Connection::next_timeout`] and [`Connection::handle_timeout`] keep the session alive, or find that it is dead;
//!   [`Connection::poll_rested`] names streams that may be sent on again.
//!
//! Receive windows start at the 256 KiB of the specification and grow with the measured bandwidth and round trip, within
//! what the stream, the session and a budget of the whole process allow.

// What a peer sends decides nothing about where we look: an index that is out of bounds would be a panic.
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

mod config;
mod connection;
mod error;
mod frame;
mod identifiers;
mod keepalive;
mod stream;
mod window;

pub use config::{Config, Side};
pub use connection::{Connection, Event, Stats};
pub use error::{Error, OpenError};
pub use frame::{GoAwayCode, HEADER_LEN, INITIAL_WINDOW, StreamId};
pub use identifiers::IdHash;
pub use window::WindowBudget;
