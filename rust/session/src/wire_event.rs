//! What arrived, in the terms of streams, whichever protocol is spoken.

use ech_workers_yamux::{GoAwayCode, StreamId};

use crate::end::Refusal;

/// What the peer's bytes mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WireEvent {
    /// Server: a stream was opened; its preamble follows as data.
    Opened(StreamId),
    /// Server: a stream was opened, and this is its target. These bytes are already for it.
    Requested(StreamId, Vec<u8>, Vec<u8>),
    /// Client: what became of the request.
    Answered(StreamId, Refusal),
    /// The peer sends nothing more on the stream.
    Finished(StreamId),
    /// The peer cut the stream off.
    Reset(StreamId),
    /// Client: the peer refused the stream before it showed that it knows it. Nothing of it was used.
    Refused(StreamId),
    /// The stream may be sent on again.
    Writable(StreamId),
    /// The peer takes no new streams.
    GoAway(GoAwayCode),
}
