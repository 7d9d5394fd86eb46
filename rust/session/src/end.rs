//! What is at the end of a stream on this side: a local program's or a target's connection.

use std::io::{self, IoSlice, IoSliceMut};
use std::task::{Context, Poll};

/// What became of a request, in the reply codes of RFC 1928 section 6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// The target is connected.
    Succeeded,
    /// It failed, for a reason that no other code names.
    General,
    /// The server's rules forbid the target.
    NotAllowed,
    /// There is no route to its network.
    NetworkUnreachable,
    /// There is no route to it.
    HostUnreachable,
    /// It refused the connection.
    Refused,
    /// It did not answer in time.
    TimedOut,
    /// The name does not exist. RFC 1928 has no code for it; 0xF0 is used between our own ends only.
    NameNotFound,
    /// The target is on an address of the Worker's own platform, which the platform does not connect to. 0xF1.
    PlatformAddress,
    /// The Worker may open no more sockets for this connection. 0xF2.
    SocketLimit,
    /// The session ended before the answer came. Never on the wire.
    SessionLost,
    /// The server ended the stream without an answer, or with one that cannot be read: what became of the request is not known.
    /// Never on the wire.
    NoAnswer,
}

impl Status {
    /// What a server may answer.
    pub const ON_THE_WIRE: [Self; 10] = [
        Self::Succeeded,
        Self::General,
        Self::NotAllowed,
        Self::NetworkUnreachable,
        Self::HostUnreachable,
        Self::Refused,
        Self::TimedOut,
        Self::NameNotFound,
        Self::PlatformAddress,
        Self::SocketLimit,
    ];

    /// The server did not connect the target for a reason that is its own (its place, its rules, what it has left), or that it
    /// does not tell: another server may connect it.
    pub const fn may_differ_elsewhere(self) -> bool {
        match self {
            Self::General
            | Self::NotAllowed
            | Self::NetworkUnreachable
            | Self::HostUnreachable
            | Self::TimedOut
            | Self::PlatformAddress
            | Self::SocketLimit => true,
            Self::Succeeded
            | Self::Refused
            | Self::NameNotFound
            | Self::SessionLost
            | Self::NoAnswer => false,
        }
    }
}

/// The longest reason of an answer, in bytes: its length has one byte in yamux mode.
const REASON_MAX: usize = 255;

/// Why a stream was not connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The kind of failure.
    pub status: Status,
    /// One line for people. May be empty.
    pub reason: String,
}

impl Refusal {
    /// A refusal of one kind, with its reason.
    pub fn new(status: Status, reason: impl Into<String>) -> Self {
        Self {
            status,
            reason: reason.into(),
        }
    }

    /// The beginning of the reason, as far as an answer has room for it in either mode.
    pub(crate) fn brief_reason(&self) -> &str {
        let mut end = self.reason.len().min(REASON_MAX);
        while !self.reason.is_char_boundary(end) {
            end -= 1;
        }
        self.reason.get(..end).unwrap_or_default()
    }
}

/// Why a stream is cut off before its data had ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Abort {
    /// The other end of the stream reset it.
    Reset,
    /// The local connection broke.
    Local,
    /// The session is lost, or this side ends it.
    SessionLost,
    /// No byte went either way for too long, or the answer took too long.
    Idle,
    /// It held memory that others needed, and did not move.
    Memory,
}

/// What happens to data that an end has no room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overflow {
    /// It waits: a stream of bytes.
    Wait,
    /// It is dropped: datagrams.
    Drop,
}

/// The local end of one stream.
///
/// Whoever polls it passes a context whose waker must be called when the poll may succeed.
pub trait LocalEnd {
    /// Ready when nobody waits any more for the stream to be opened. Asked until then only.
    fn poll_abandoned(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let _ = cx;
        Poll::Pending
    }

    /// Whether somebody has ended it from outside. Its waker is called when that changes.
    fn is_cut(&self) -> bool {
        false
    }

    /// Whether what it moves may make its stream a bulk transfer. False for one that is no program's.
    fn may_be_bulk(&self) -> bool {
        true
    }

    /// The request goes to the server now.
    fn begun(&mut self) {}

    /// Ready when the end is connected. A local program's is from the start; a server's end owns the attempt to reach its
    /// target, and dropping the end ends the attempt.
    ///
    /// # Errors
    /// The target cannot be reached.
    fn poll_connect(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        let _ = cx;
        Poll::Ready(Ok(()))
    }

    /// The stream is open: tells the one who asked for it, once. Bytes returned go to the end before any others.
    fn opened(&mut self) -> Vec<u8> {
        Vec::new()
    }

    /// What happens to data that it has no room for.
    fn overflow(&self) -> Overflow {
        Overflow::Wait
    }

    /// Whether more than one space may be given to [`poll_read`](Self::poll_read).
    fn reads_many(&self) -> bool {
        false
    }

    /// Reads what goes into the tunnel straight into `spaces`, one after the other. 0 is the end of the data.
    ///
    /// # Errors
    /// The local connection broke.
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        spaces: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>>;

    /// Delivers what came out of the tunnel, in order. Returns how many bytes were taken.
    ///
    /// # Errors
    /// The local connection broke.
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>>;

    /// Moves on what the end itself keeps of bytes it has taken. Ready when it keeps nothing.
    ///
    /// # Errors
    /// The local connection broke.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let _ = cx;
        Poll::Ready(Ok(()))
    }

    /// The end has all that it needs from the peer: when it gives no more, the stream may end in both directions.
    fn is_complete(&self) -> bool {
        false
    }

    /// No more bytes come out of the tunnel. Reading goes on.
    fn finish(&mut self);

    /// Both directions have ended: closes it.
    fn close(self);

    /// Cuts the end off so that nobody takes it for the end of the data.
    fn abort(self, why: Abort);

    /// Tells the one who asked why there is no stream, if it was not told anything yet; otherwise cuts the end off.
    fn refuse(self, refusal: &Refusal);
}

/// How a server reaches targets.
pub trait Connector {
    /// The ends that it makes.
    type End: LocalEnd;

    /// Begins to connect to `authority`, `host:port` as the client wrote it.
    ///
    /// # Errors
    /// The target is not one, or no attempt may be made now.
    fn connect(&mut self, authority: &[u8]) -> Result<Self::End, Refusal>;
}
