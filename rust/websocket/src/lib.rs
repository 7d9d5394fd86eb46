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
//! Extensions (RFC 6455 section 9) are never offered and never accepted. Text is handed on as bytes: whether it is
//! UTF-8 (section 8.1) is for the caller to find out, who alone has the whole message.

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
