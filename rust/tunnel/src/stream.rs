//! The local end of a stream that a program opened through the API: one end of a socket pair, whose other end the program
//! has. The pair is made when the stream is open, so that one that is not yet costs no descriptor.
//!
//! A socket pair has no reset of its own, and whatever reads it without [`Ending`] (the `ssl` module, for example) would
//! take a lost session for the end of the data. But a Unix socket that is closed while there is something in it that was
//! not read gives its peer ECONNRESET, once the peer has read all that was sent to it. [`Peer::break_off`] brings that
//! about.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

use crate::descriptors;
use crate::failure::{Code, Failure, Layer};
use crate::os::{self, OwnedLocal, Peer};

/// What each end of a socket pair may hold for the other, bytes; the system has a limit of its own below it.
const SEND_BUFFER: usize = 512 << 10;

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum StreamEnded {
    /// All data was delivered.
    Data = 1,
    /// The other end reset it: the target broke off, or the server did.
    Reset = 2,
    /// The session was lost, or this side ended it.
    SessionLost = 3,
    /// No byte went either way for too long.
    Idle = 4,
}

/// How a stream ended, kept where both of its owners see it. A socket pair can only be closed, which looks like the end of
/// the data; so whoever reads an end there asks here what kind of end it was.
#[derive(Debug, Default)]
pub struct Ending {
    ended: AtomicU8,
    abandoned: AtomicBool,
}

impl Ending {
    /// `None`: it has not ended.
    pub fn get(&self) -> Option<StreamEnded> {
        match self.ended.load(Ordering::Acquire) {
            1 => Some(StreamEnded::Data),
            2 => Some(StreamEnded::Reset),
            3 => Some(StreamEnded::SessionLost),
            4 => Some(StreamEnded::Idle),
            _ => None,
        }
    }

    /// The first end counts. To be called before the socket shows it.
    fn set(&self, ended: StreamEnded) {
        let _ = self
            .ended
            .compare_exchange(0, ended as u8, Ordering::AcqRel, Ordering::Acquire);
    }
}

/// An open stream, as the program gets it. Dropped before it is taken, the stream is reset.
#[derive(Debug)]
pub struct Stream(Option<(OwnedLocal, Arc<Ending>)>);

impl Stream {
    /// The program's socket, and how the stream will have ended when that socket shows an end.
    pub fn into_parts(mut self) -> Option<(OwnedLocal, Arc<Ending>)> {
        self.0.take()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some((_, ending)) = &self.0 {
            ending.abandoned.store(true, Ordering::Release);
        }
    }
}

/// The driver's share of an open stream, beside its socket.
#[derive(Debug)]
pub(crate) struct Kept {
    ending: Arc<Ending>,
    peer: Peer,
}

impl Drop for Kept {
    fn drop(&mut self) {
        // Whatever lets go of an open stream without a word takes the rest of its data with it.
        self.ending.set(StreamEnded::SessionLost);
        if self.ending.get() != Some(StreamEnded::Data) {
            self.peer.break_off();
        }
    }
}

pub(crate) type Answer = Result<Stream, Failure>;

/// The driver's end.
#[derive(Debug)]
pub(crate) enum LocalStream {
    /// Somebody waits for the stream to be open. Nobody any more, when the other half of the channel is gone.
    Pending {
        answer: oneshot::Sender<Answer>,
        /// The stream has gone to the server, so that a deadline that passes is the target's.
        begun: Arc<AtomicBool>,
    },
    /// What kind of end it was is known before the socket shows it: dropped in this order.
    Open(Kept, os::Ours),
    /// There is nothing at the end any more.
    Over,
}

impl LocalStream {
    /// Ready when nobody waits for the stream any more.
    pub(crate) fn poll_abandoned(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Pending { answer, .. } => answer.poll_closed(cx),
            Self::Open(..) => Poll::Pending,
            Self::Over => Poll::Ready(()),
        }
    }

    /// The stream goes to the server now.
    pub(crate) fn begin(&self) {
        if let Self::Pending { begun, .. } = self {
            begun.store(true, Ordering::Relaxed);
        }
    }

    /// The stream is open: hands the program its socket.
    pub(crate) fn opened(&mut self) -> io::Result<()> {
        let Self::Pending { answer, .. } = std::mem::replace(self, Self::Over) else {
            return Ok(());
        };
        match os::socket_pair(SEND_BUFFER) {
            Ok((ours, theirs)) => {
                let ending = Arc::<Ending>::default();
                let kept = Kept {
                    ending: Arc::clone(&ending),
                    peer: Peer::of(&theirs),
                };
                *self = Self::Open(kept, ours);
                // Nobody waits any more: the stream is dropped, and reset.
                let _ = answer.send(Ok(Stream(Some((theirs, ending)))));
                Ok(())
            }
            Err(error) => {
                descriptors::note("a stream's socket", &error);
                let message = format!("the stream's socket: {error}");
                let _ = answer.send(Err(Failure::new(Layer::Local, Code::Local, message)));
                Err(error)
            }
        }
    }

    /// There will be no stream.
    pub(crate) fn refuse(self, failure: Failure) {
        if let Self::Pending { answer, .. } = self {
            let _ = answer.send(Err(failure));
        }
    }

    /// Reads what the program sent; `Ok(0)` is the end of it.
    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        space: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let (socket, kept) = match self {
            Self::Pending { answer, .. } => {
                ready!(answer.poll_closed(cx));
                return Poll::Ready(Err(abandoned()));
            }
            Self::Over => return Poll::Ready(Err(abandoned())),
            Self::Open(kept, socket) => (socket, kept),
        };
        let mut buffer = ReadBuf::new(space);
        ready!(Pin::new(socket).poll_read(cx, &mut buffer))?;
        Poll::Ready(checked(kept, buffer.filled().len()))
    }

    pub(crate) fn poll_read_vectored(
        &self,
        cx: &mut Context<'_>,
        spaces: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self::Open(kept, socket) = self else {
            return Poll::Pending;
        };
        loop {
            ready!(socket.poll_read_ready(cx))?;
            match socket.try_read_vectored(spaces) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(n) => return Poll::Ready(checked(kept, n)),
                outcome => return Poll::Ready(outcome),
            }
        }
    }

    pub(crate) fn poll_write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Open(_, socket) => Pin::new(socket).poll_write_vectored(cx, slices),
            Self::Pending { .. } => Poll::Pending,
            Self::Over => Poll::Ready(Err(abandoned())),
        }
    }

    /// The data has ended, and all of it was delivered.
    pub(crate) fn finish(&self) {
        if let Self::Open(kept, socket) = self {
            kept.ending.set(StreamEnded::Data);
            // The program may be gone already; then there is nothing left to tell it.
            let _ = SockRef::from(socket).shutdown(Shutdown::Write);
        }
    }

    /// The stream ended before its data had.
    pub(crate) fn abort(self, ended: StreamEnded) {
        if let Self::Open(kept, _) = &self {
            kept.ending.set(ended);
        }
    }
}

/// A stream that was dropped before anybody took it must not look like a program that has sent everything.
fn checked(kept: &Kept, n: usize) -> io::Result<usize> {
    if n == 0 && kept.ending.abandoned.load(Ordering::Acquire) {
        return Err(abandoned());
    }
    Ok(n)
}

fn abandoned() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionAborted,
        "nobody waits for the stream",
    )
}
