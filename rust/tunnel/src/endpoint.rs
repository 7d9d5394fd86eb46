//! A local socket at the end of a stream, and what it has not taken yet.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::Shutdown;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ech_workers_proxy::Body;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::local::Place;

/// A connected stream socket: a local program's or a target's TCP connection, or one end of a socket pair.
#[derive(Debug)]
pub(crate) enum Socket {
    /// TCP.
    Tcp(TcpStream),
    /// A Unix stream socket, as `socketpair` makes.
    Unix(UnixStream),
}

impl Socket {
    fn raw(&self) -> SockRef<'_> {
        match self {
            Self::Tcp(socket) => SockRef::from(socket),
            Self::Unix(socket) => SockRef::from(socket),
        }
    }

    /// Reads straight into `space`; `Ok(0)` is the end.
    fn poll_read(&mut self, cx: &mut Context<'_>, space: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(space);
        let ready = match self {
            Self::Tcp(socket) => Pin::new(socket).poll_read(cx, &mut buffer),
            Self::Unix(socket) => Pin::new(socket).poll_read(cx, &mut buffer),
        };
        ready.map_ok(|()| buffer.filled().len())
    }

    fn poll_read_vectored(
        &self,
        cx: &mut Context<'_>,
        spaces: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            let outcome = match self {
                Self::Tcp(socket) => {
                    ready!(socket.poll_read_ready(cx))?;
                    socket.try_read_vectored(spaces)
                }
                Self::Unix(socket) => {
                    ready!(socket.poll_read_ready(cx))?;
                    socket.try_read_vectored(spaces)
                }
            };
            match outcome {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => return Poll::Ready(outcome),
            }
        }
    }

    fn poll_write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(socket) => Pin::new(socket).poll_write_vectored(cx, slices),
            Self::Unix(socket) => Pin::new(socket).poll_write_vectored(cx, slices),
        }
    }

    /// Ends the sending direction.
    pub(crate) fn finish(&self) {
        // The other side may be gone already; then there is nothing left to tell it.
        let _ = self.raw().shutdown(Shutdown::Write);
    }

    /// Makes the close that follows a reset, so that a local program does not take it for the end of the data.
    pub(crate) fn abort(self) {
        let _ = self.raw().set_linger(Some(Duration::ZERO));
    }
}

/// The least that a backlog chunk holds, so that many small payloads do not cost an allocation each.
const CHUNK_MIN: usize = 4096;

/// Bytes that a socket has not taken yet, in order. The flow control above bounds it.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    chunks: VecDeque<Vec<u8>>,
    /// Bytes of the first chunk that have been written.
    start: usize,
    len: usize,
}

impl Backlog {
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.len += bytes.len();
        if let Some(last) = self.chunks.back_mut()
            && last.capacity() - last.len() >= bytes.len()
        {
            last.extend_from_slice(bytes);
            return;
        }
        let mut chunk = Vec::with_capacity(bytes.len().max(CHUNK_MIN));
        chunk.extend_from_slice(bytes);
        self.chunks.push_back(chunk);
    }

    fn advance(&mut self, mut n: usize) {
        self.len -= n;
        while let Some(first) = self.chunks.front() {
            let left = first.len() - self.start;
            if n < left {
                self.start += n;
                return;
            }
            n -= left;
            self.start = 0;
            self.chunks.pop_front();
        }
        self.chunks = VecDeque::new();
    }
}

/// The most slices in one vectored write.
const SLICES_MAX: usize = 16;

/// A socket with the bytes that wait for it.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) socket: Socket,
    pub(crate) backlog: Backlog,
    /// Bytes at the front of the backlog that did not come through the tunnel, and earn the peer no window.
    own: usize,
    /// Where a forwarded HTTP request ends: what a program sends behind it is not for this target.
    body: Option<Box<Body>>,
    /// The place among the limited local connections, given up with the endpoint.
    _place: Option<Place>,
}

impl Endpoint {
    pub(crate) fn new(socket: Socket) -> Self {
        Self::with_backlog(socket, Backlog::default())
    }

    pub(crate) const fn with_backlog(socket: Socket, backlog: Backlog) -> Self {
        Self {
            socket,
            backlog,
            own: 0,
            body: None,
            _place: None,
        }
    }

    /// The endpoint of a local program, whose request may say how far it goes.
    pub(crate) fn local(socket: Socket, body: Option<Box<Body>>, place: Option<Place>) -> Self {
        Self {
            body,
            _place: place,
            ..Self::new(socket)
        }
    }

    /// Reads what the socket has for the tunnel straight into `space`; `Ok(0)` is the end.
    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        space: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let n = ready!(self.socket.poll_read(cx, space))?;
            let Some(body) = &mut self.body else {
                return Poll::Ready(Ok(n));
            };
            let of_request = body
                .accept(&space[..n])
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            if n == 0 || of_request > 0 {
                return Poll::Ready(Ok(of_request));
            }
        }
    }

    /// Writes bytes of our own, a reply: to be called before any of the tunnel's are delivered.
    pub(crate) fn tell(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> io::Result<()> {
        self.deliver(cx, &[IoSlice::new(bytes)])?;
        self.own = self.backlog.len();
        Ok(())
    }

    /// Whether its bytes go to the tunnel just as they come, so that many may be read at a time.
    pub(crate) const fn is_transparent(&self) -> bool {
        self.body.is_none()
    }

    /// Reads into several spaces in one system call, from a transparent endpoint; `Ok(0)` is the end.
    pub(crate) fn poll_read_vectored(
        &self,
        cx: &mut Context<'_>,
        spaces: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        self.socket.poll_read_vectored(cx, spaces)
    }

    /// Writes `pieces` in order as far as the socket takes them and keeps the rest. Returns the bytes written now.
    pub(crate) fn deliver(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> io::Result<usize> {
        let mut pieces = pieces;
        while let [first, rest @ ..] = pieces
            && first.is_empty()
        {
            pieces = rest;
        }
        let mut skip = 0;
        let mut written = 0;
        while self.backlog.is_empty() && !pieces.is_empty() {
            let outcome = if skip == 0 {
                self.socket
                    .poll_write_vectored(cx, &pieces[..pieces.len().min(SLICES_MAX)])
            } else {
                self.socket
                    .poll_write_vectored(cx, &[IoSlice::new(&pieces[0][skip..])])
            };
            let mut n = match outcome {
                Poll::Ready(result) => result?,
                Poll::Pending => break,
            };
            written += n;
            while let Some(first) = pieces.first() {
                let left = first.len() - skip;
                if n < left {
                    skip += n;
                    break;
                }
                n -= left;
                skip = 0;
                pieces = &pieces[1..];
            }
        }
        for piece in pieces {
            self.backlog.push(&piece[skip..]);
            skip = 0;
        }
        Ok(written)
    }

    /// Writes what waits. Returns the bytes of the tunnel written now.
    pub(crate) fn flush(&mut self, cx: &mut Context<'_>) -> io::Result<usize> {
        let mut written = 0;
        while !self.backlog.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let mut count = 0;
            for (slot, chunk) in slices.iter_mut().zip(&self.backlog.chunks) {
                *slot = IoSlice::new(if count == 0 {
                    &chunk[self.backlog.start..]
                } else {
                    chunk
                });
                count += 1;
            }
            match self.socket.poll_write_vectored(cx, &slices[..count]) {
                Poll::Ready(n) => {
                    let n = n?;
                    written += n;
                    self.backlog.advance(n);
                }
                Poll::Pending => break,
            }
        }
        let own = self.own.min(written);
        self.own -= own;
        Ok(written - own)
    }
}
