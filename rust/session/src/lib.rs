//! One session of the tunnel: streams over a carrier, with a local end for each, without sockets and without a runtime.
//!
//! A [`Session`] is one side, client or server. It relays between a [`Carrier`], a connection that transports messages in
//! records, and [`LocalEnd`]s, the connections of local programs or targets. It speaks yamux, with many streams, or simple
//! mode, with one. Readiness comes in by wakers and time by a clock that the caller passes, so two sessions can be run
//! against one another on a simulated link.
//!
//! - `Ingress` takes what arrived to the streams, `Egress` decides what is sent next.
//! - `Streams` holds the streams, and does to them what the peer's events and the ends' readiness ask for.
//! - `Liveness` keeps a quiet connection alive and finds dead ones.
//! - [`Ledger`] bounds the memory that is held for peers.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

mod backlog;
mod budget;
mod bulk;
mod carrier;
mod config;
mod distance;
mod egress;
mod end;
mod event;
mod ingress;
mod ledger;
mod liveness;
mod open;
pub mod preamble;
mod random;
mod readiness;
mod session;
mod simple;
mod stream;
mod streams;
mod window;
mod wire;
mod wire_event;

pub use bulk::BulkLoad;
pub use carrier::{Carrier, CloseCode, Closed, Incoming};
pub use config::{Config, Limits, Mode};
pub use end::{Abort, Connector, LocalEnd, Overflow, Refusal, Status};
pub use event::{Ended, Event, Fault, Lost};
pub use ledger::{Allowance, Ledger};
pub use open::{Open, Returned};
pub use session::Session;
pub use streams::Traffic;
