//! A connected stream socket at the end of a stream.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::Shutdown;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::failure::Failure;
use crate::stream::{LocalStream, StreamEnded};

/// A socket that is reset when it is dropped, unless [`close`](Self::close) was called: whatever ends it early, nobody takes
/// that for the end of the data.
#[derive(Debug)]
pub(crate) enum Socket {
    /// A local program's or a target's connection.
    Tcp(Tcp),
    /// The end of a stream of the API.
    Stream(LocalStream),
}

/// A TCP connection that is reset when it is dropped before both directions have ended.
#[derive(Debug)]
pub(crate) struct Tcp {
    stream: TcpStream,
    is_over: bool,
}

impl Drop for Tcp {
    fn drop(&mut self) {
        if !self.is_over {
            let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        }
    }
}

impl From<TcpStream> for Socket {
    fn from(stream: TcpStream) -> Self {
        Self::Tcp(Tcp {
            stream,
            is_over: false,
        })
    }
}

impl From<LocalStream> for Socket {
    fn from(stream: LocalStream) -> Self {
        Self::Stream(stream)
    }
}

impl Socket {
    /// Reads straight into `spaces`; `Ok(0)` is the end.
    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        spaces: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(tcp) => tcp.poll_read(cx, spaces),
            Self::Stream(stream) => match spaces {
                [space] => stream.poll_read(cx, space),
                _ => stream.poll_read_vectored(cx, spaces),
            },
        }
    }

    /// Writes `pieces` as far as the socket takes them.
    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(tcp) => Pin::new(&mut tcp.stream).poll_write_vectored(cx, pieces),
            Self::Stream(stream) => stream.poll_write_vectored(cx, pieces),
        }
    }

    /// Waits for bytes and leaves them where they are. Only the socket of a local program's own connection can do this.
    pub(crate) fn poll_peek(&self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut byte = [0];
        match self {
            Self::Tcp(tcp) => tcp.stream.poll_peek(cx, &mut ReadBuf::new(&mut byte)),
            Self::Stream(_) => Poll::Pending,
        }
    }

    /// The stream goes to the server now.
    pub(crate) fn begin(&self) {
        if let Self::Stream(stream) = self {
            stream.begin();
        }
    }

    /// The stream is open, which a stream of the API is told by its socket.
    pub(crate) fn opened(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(_) => Ok(()),
            Self::Stream(stream) => stream.opened(),
        }
    }

    /// Ready when nobody waits for it any more: never for a local program, whose socket shows it at the first read.
    pub(crate) fn poll_abandoned(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Tcp(_) => Poll::Pending,
            Self::Stream(stream) => stream.poll_abandoned(cx),
        }
    }

    /// Ends the sending direction.
    pub(crate) fn finish(&self) {
        match self {
            // The other side may be gone already; then there is nothing left to tell it.
            Self::Tcp(tcp) => {
                let _ = SockRef::from(&tcp.stream).shutdown(Shutdown::Write);
            }
            Self::Stream(stream) => stream.finish(),
        }
    }

    /// Closes the socket after both directions have ended, or after a last word.
    pub(crate) fn close(self) {
        match self {
            Self::Tcp(mut tcp) => tcp.is_over = true,
            Self::Stream(stream) => stream.finish(),
        }
    }

    /// Makes the close a reset.
    pub(crate) fn abort(self, ended: StreamEnded) {
        if let Self::Stream(stream) = self {
            stream.abort(ended);
        }
    }

    /// Tells the API why there is no stream.
    pub(crate) fn refuse(self, failure: Failure) {
        if let Self::Stream(stream) = self {
            stream.refuse(failure);
        }
    }
}

impl Tcp {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        spaces: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [space] = spaces {
            // tokio's own read, which spares the next call's EAGAIN after a short one.
            let mut buffer = ReadBuf::new(space);
            let ready = Pin::new(&mut self.stream).poll_read(cx, &mut buffer);
            return ready.map_ok(|()| buffer.filled().len());
        }
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            match self.stream.try_read_vectored(spaces) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => return Poll::Ready(outcome),
            }
        }
    }
}
