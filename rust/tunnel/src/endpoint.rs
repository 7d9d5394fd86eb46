//! A local socket at the end of a stream, and what it has not taken yet.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::Shutdown;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use ech_workers_proxy::Exchange;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::local::Place;
use crate::stream::{LocalStream, StreamEnded};

/// A stream socket: a local program's or a target's TCP connection, or the end of a stream of the API.
#[derive(Debug)]
pub(crate) enum Socket {
    /// TCP.
    Tcp(TcpStream),
    /// The API's.
    Stream(LocalStream),
}

impl Socket {
    /// Reads straight into `space`; `Ok(0)` is the end.
    fn poll_read(&mut self, cx: &mut Context<'_>, space: &mut [u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(socket) => {
                let mut buffer = ReadBuf::new(space);
                let ready = Pin::new(socket).poll_read(cx, &mut buffer);
                ready.map_ok(|()| buffer.filled().len())
            }
            Self::Stream(stream) => stream.poll_read(cx, space),
        }
    }

    fn poll_read_vectored(
        &self,
        cx: &mut Context<'_>,
        spaces: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let socket = match self {
            Self::Tcp(socket) => socket,
            Self::Stream(stream) => return stream.poll_read_vectored(cx, spaces),
        };
        loop {
            ready!(socket.poll_read_ready(cx))?;
            match socket.try_read_vectored(spaces) {
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
            Self::Stream(stream) => stream.poll_write_vectored(cx, slices),
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

    /// Waits for bytes and leaves them where they are. Only the socket of a local program's own connection can do this.
    fn poll_peek(&self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut byte = [0];
        match self {
            Self::Tcp(socket) => socket.poll_peek(cx, &mut ReadBuf::new(&mut byte)),
            Self::Stream(_) => Poll::Pending,
        }
    }

    /// Ends the sending direction.
    pub(crate) fn finish(&self) {
        match self {
            // The other side may be gone already; then there is nothing left to tell it.
            Self::Tcp(socket) => {
                let _ = SockRef::from(socket).shutdown(Shutdown::Write);
            }
            Self::Stream(stream) => stream.finish(),
        }
    }

    /// Closes it with both directions at their end.
    pub(crate) fn close(self) {
        if let Self::Stream(stream) = &self {
            stream.finish();
        }
    }

    /// Makes the close that follows a reset, so that a local program does not take it for the end of the data.
    pub(crate) fn abort(self, ended: StreamEnded) {
        match self {
            Self::Tcp(socket) => {
                let _ = SockRef::from(&socket).set_linger(Some(Duration::ZERO));
            }
            Self::Stream(stream) => stream.abort(ended),
        }
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
    /// A forwarded HTTP request, which decides what passes.
    exchange: Option<Forwarded>,
    /// The place among the limited local connections, given up with the endpoint.
    _place: Option<Place>,
}

/// A forwarded HTTP request on its way.
#[derive(Debug)]
struct Forwarded {
    exchange: Box<Exchange>,
    /// Whom to wake when the answer has said whether what was held back may go to the target.
    holding: Option<Waker>,
    /// What was held back and has not gone yet.
    held: Vec<u8>,
    /// The program has been told that the answer is complete.
    end_told: bool,
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
            exchange: None,
            _place: None,
        }
    }

    /// The endpoint of a local program.
    pub(crate) fn local(
        socket: Socket,
        exchange: Option<Box<Exchange>>,
        place: Option<Place>,
    ) -> Self {
        Self {
            exchange: exchange.map(|exchange| Forwarded {
                exchange,
                holding: None,
                held: Vec::new(),
                end_told: false,
            }),
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
            let Some(forwarded) = &mut self.exchange else {
                return self.socket.poll_read(cx, space);
            };
            if !forwarded.held.is_empty() {
                let n = forwarded.held.len().min(space.len());
                space[..n].copy_from_slice(&forwarded.held[..n]);
                forwarded.held.drain(..n);
                return Poll::Ready(Ok(n));
            }
            if forwarded.exchange.is_pipe() {
                self.exchange = None;
                continue;
            }
            if forwarded.exchange.is_holding() {
                forwarded.holding = Some(cx.waker().clone());
                // The end of the program is no byte to hold back.
                return match ready!(self.socket.poll_peek(cx)) {
                    Ok(0) => Poll::Ready(Ok(0)),
                    Ok(_) => Poll::Pending,
                    Err(error) => Poll::Ready(Err(error)),
                };
            }
            let n = ready!(self.socket.poll_read(cx, space))?;
            let of_request = forwarded
                .exchange
                .accept_request(&space[..n])
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            if n == 0 || of_request > 0 {
                return Poll::Ready(Ok(of_request));
            }
        }
    }

    /// Writes bytes of our own, a reply: to be called before any of the tunnel's are delivered.
    pub(crate) fn tell(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> io::Result<()> {
        self.write(cx, &[IoSlice::new(bytes)])?;
        self.own = self.backlog.len();
        Ok(())
    }

    /// The tunnel brings no more: a program that waits for an answer is told that there will be none.
    pub(crate) fn end_of_tunnel(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let Some(forwarded) = &mut self.exchange else {
            return Ok(());
        };
        let reply = forwarded.exchange.end_of_answer();
        if reply.is_empty() {
            return Ok(());
        }
        self.tell(cx, &reply)
    }

    /// The answer to a forwarded request is complete: nothing is left to wait for at the other end.
    pub(crate) fn is_over(&self) -> bool {
        self.exchange
            .as_ref()
            .is_some_and(|forwarded| forwarded.exchange.is_over())
    }

    /// Whether its bytes go to the tunnel just as they come, so that many may be read at a time.
    pub(crate) const fn is_transparent(&self) -> bool {
        self.exchange.is_none()
    }

    /// Reads into several spaces in one system call, from a transparent endpoint; `Ok(0)` is the end.
    pub(crate) fn poll_read_vectored(
        &self,
        cx: &mut Context<'_>,
        spaces: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        self.socket.poll_read_vectored(cx, spaces)
    }

    /// Writes what the tunnel brought, `pieces` in order, as far as the socket takes it, and keeps the rest. Returns how many
    /// of the bytes need no room any more.
    pub(crate) fn deliver(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> io::Result<usize> {
        if self.exchange.is_none() {
            return self.write(cx, pieces);
        }
        let mut content = Vec::with_capacity(pieces.len());
        let mut done = 0;
        for piece in pieces {
            let Some(forwarded) = &mut self.exchange else {
                break;
            };
            let passage = forwarded.exchange.accept_answer(piece);
            forwarded.held.append(&mut forwarded.exchange.take_held());
            if !forwarded.exchange.is_holding()
                && let Some(reader) = forwarded.holding.take()
            {
                reader.wake();
            }
            // Every head comes before all content, so that what is our own stays in front.
            if !passage.head.is_empty() {
                self.tell(cx, &passage.head)?;
            }
            done += piece.len() - passage.body.len();
            content.push(IoSlice::new(&piece[passage.body]));
        }
        done += self.write(cx, &content)?;
        self.settle();
        Ok(done)
    }

    /// Tells the program of a complete answer's end, once it has all of it.
    fn settle(&mut self) {
        if let Some(forwarded) = &mut self.exchange
            && forwarded.exchange.is_over()
            && !forwarded.end_told
            && self.backlog.is_empty()
        {
            forwarded.end_told = true;
            self.socket.finish();
        }
    }

    /// Writes `pieces` in order as far as the socket takes them and keeps the rest. Returns the bytes written now.
    fn write(&mut self, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
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
        self.settle();
        let own = self.own.min(written);
        self.own -= own;
        Ok(written - own)
    }
}
