//! What ends a session, and what keeps a stream from being opened.

use thiserror::Error;

use crate::frame::{Malformed, StreamId};

/// The session cannot go on. The state machine then has a last go-away to send where the peer is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Error {
    /// The first byte of a header was not 0.
    #[error("the peer sent a frame of yamux version {0}, only 0 is known")]
    Version(u8),
    /// A frame type that the specification does not have.
    #[error("the peer sent a frame of the unknown type {0}")]
    FrameType(u8),
    /// Data or a window update for stream 0, which is the session itself.
    #[error("the peer sent a stream frame for stream 0")]
    SessionStream,
    /// The peer opened a stream with an id of our parity.
    #[error("the peer opened stream {0}, an id that is not its own to choose")]
    StreamParity(StreamId),
    /// The peer opened a stream with an id that it has used already.
    #[error("the peer opened stream {0} a second time")]
    StreamReused(StreamId),
    /// More data than the receive window allowed.
    #[error("the peer sent {length} bytes on stream {stream}, whose window had {window} left")]
    WindowExceeded {
        /// The stream.
        stream: StreamId,
        /// What was left of the window, in bytes.
        window: u32,
        /// Length of the frame, in bytes.
        length: u32,
    },
    /// The peer opens streams beyond the limit and does not read the refusals.
    #[error("the peer keeps opening streams beyond the limit without reading the refusals")]
    RefusedFlood,
    /// A ping was not answered in time.
    #[error("the peer did not answer a ping in time")]
    PingTimeout,
}

impl From<Malformed> for Error {
    fn from(malformed: Malformed) -> Self {
        match malformed {
            Malformed::Version(version) => Self::Version(version),
            Malformed::Kind(kind) => Self::FrameType(kind),
        }
    }
}

/// Why no stream can be opened on this session, at least not now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum OpenError {
    /// The session ended with an error.
    #[error("the session has failed: {0}")]
    Failed(Error),
    /// A go-away was sent or received: for good.
    #[error("the session is going away")]
    GoingAway,
    /// `max_streams` are open: passes when one ends.
    #[error("the session has its maximum of {0} streams")]
    TooManyStreams(usize),
    /// `accept_backlog` streams wait for the peer's acknowledgement: passes when one comes.
    #[error("{0} streams wait for the peer to accept them")]
    Backlog(usize),
    /// All ids have been used: for good.
    #[error("the session has used up its stream ids")]
    IdsExhausted,
}
