//! RFC 6455 framing and opening handshake, without I/O.
//!
//! The crate is written for a relay whose bytes are never assembled into messages: the caller owns the buffers, the
//! crate only says what lies where in them.
//!
//! * Receiving: [`Decoder::decode`] takes bytes as they were decrypted, unmasks payload in place and answers with
//!   the *range* of the input that is payload. A frame or message may be split anywhere; nothing is buffered but a
//!   split frame header and a control frame's payload (at most 125 bytes), so a peer decides nothing about memory.
//! * Sending: the caller puts a payload behind [`header_len`] bytes of room, then [`encode_header`] fills that room and
//!   [`mask()`] masks the payload where it lies. [`encode_frame`], [`encode_control`] and [`encode_close`] make whole small frames.
//! * [`handshake`]: the upgrade request in a given order of header fields, the check of its answer, and the server's
//!   side of the same.
//!
//! ```
//! use ech_workers_websocket::{Decoder, Event, OpCode, Role, encode_header, header_len, mask};
//!
//! # fn main() -> Result<(), ech_workers_websocket::ProtocolError> {
//! // A client sends what it read behind the room for a header ...
//! let (payload, key) = (b"hello", [0x37, 0xfa, 0x21, 0x3d]);
//! let room = header_len(Role::Client, payload.len());
//! let mut wire = vec![0; room + payload.len()];
//! wire[room..].copy_from_slice(payload);
//! encode_header(&mut wire, OpCode::Binary, true, payload.len(), Some(key));
//! mask(&mut wire[room..], key, 0);
//!
//! // ... and the server finds it there, though it came in two parts.
//! let (first, second) = wire.split_at_mut(room + 2);
//! let mut decoder = Decoder::new(Role::Server);
//! let mut received = Vec::new();
//! for mut input in [first, second] {
//!     while !input.is_empty() {
//!         let (taken, event) = decoder.decode(input)?;
//!         if let Some(Event::Data { range, .. }) = event {
//!             received.extend_from_slice(&input[range]);
//!         }
//!         input = &mut input[taken..];
//!     }
//! }
//! assert_eq!(received, payload);
//! # Ok(())
//! # }
//! ```
//!
//! Extensions (RFC 6455 section 9) are never offered and never accepted. Text is handed on as bytes: whether it is
//! UTF-8 (section 8.1) is for the caller to find out, who alone has the whole message.

// What a peer sends decides nothing about where we look: an index that is out of bounds would be a panic.
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

mod close;
mod decoder;
mod error;
mod frame;
pub mod handshake;
mod mask;

pub use close::{CloseReason, encode_close};
pub use decoder::{ControlPayload, Decoder, Event, MessageKind};
pub use error::ProtocolError;
pub use frame::{
    MAX_CONTROL_PAYLOAD, MAX_HEADER, OpCode, Role, encode_control, encode_frame, encode_header,
    header_len,
};
pub use mask::mask;
