//! A connected stream socket at the end of a stream.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::Shutdown;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::thread::ThreadId;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::echo::Asking;
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
    /// No socket: what is sent to be sent back is made here.
    Echo(Asking),
}

/// The most that is written first to a connection that has Nagle's algorithm on: it fits one segment, which leaves at once on a
/// connection with nothing on its way (RFC 1122 section 4.2.3.4; the smallest segment size is that of RFC 9293 section 3.7.1).
const FIRST_SEGMENT: usize = 536;

/// A TCP connection that is reset when it is dropped before both directions have ended.
#[derive(Debug)]
pub(crate) struct Tcp {
    /// `None`: it could not be taken to another thread.
    stream: Option<TcpStream>,
    /// The thread whose runtime it is registered with.
    home: ThreadId,
    nagle: Nagle,
    is_over: bool,
}

/// Whether Nagle's algorithm is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nagle {
    Off,
    /// Nothing was written yet.
    OnUnused,
    On,
}

impl Drop for Tcp {
    fn drop(&mut self) {
        if let Some(stream) = &self.stream
            && !self.is_over
        {
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }
}

/// A connection with Nagle's algorithm off, registered with the runtime of this thread.
impl From<TcpStream> for Socket {
    fn from(stream: TcpStream) -> Self {
        Self::Tcp(Tcp::new(stream, Nagle::Off))
    }
}

impl From<LocalStream> for Socket {
    fn from(stream: LocalStream) -> Self {
        Self::Stream(stream)
    }
}

impl Socket {
    /// A connection that was made with the system's settings. Nagle's algorithm is turned off when there is something for it to
    /// hold back: a system call that a connection with one short request need not pay for.
    pub(crate) fn connected(stream: TcpStream) -> Self {
        Self::Tcp(Tcp::new(stream, Nagle::OnUnused))
    }

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
            Self::Echo(asking) => asking.poll_read(cx, spaces),
        }
    }

    /// Writes `pieces` as far as the socket takes them.
    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(tcp) => tcp.poll_write(cx, pieces),
            Self::Stream(stream) => stream.poll_write_vectored(cx, pieces),
            Self::Echo(asking) => asking.poll_write(pieces),
        }
    }

    /// Waits for bytes and leaves them where they are. Only the socket of a local program's own connection can do this.
    pub(crate) fn poll_peek(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut byte = [0];
        match self {
            Self::Tcp(tcp) => tcp.stream()?.poll_peek(cx, &mut ReadBuf::new(&mut byte)),
            Self::Stream(_) | Self::Echo(_) => Poll::Pending,
        }
    }

    /// The stream goes to the server now, by a session of this thread.
    pub(crate) fn begin(&mut self) {
        match self {
            Self::Tcp(tcp) => tcp.come_here(),
            Self::Stream(stream) => stream.begin(),
            Self::Echo(_) => {}
        }
    }

    /// The stream is open, which a stream of the API is told by its socket.
    pub(crate) fn opened(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(_) => Ok(()),
            Self::Stream(stream) => stream.opened(),
            Self::Echo(asking) => {
                asking.opened();
                Ok(())
            }
        }
    }

    /// Ready when nobody waits for it any more: never for a local program, whose socket shows it at the first read.
    pub(crate) fn poll_abandoned(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Tcp(_) => Poll::Pending,
            Self::Stream(stream) => stream.poll_abandoned(cx),
            Self::Echo(asking) => asking.poll_abandoned(cx),
        }
    }

    /// Ends the sending direction.
    pub(crate) fn finish(&self) {
        match self {
            // The other side may be gone already; then there is nothing left to tell it.
            Self::Tcp(tcp) => {
                if let Some(stream) = &tcp.stream {
                    let _ = SockRef::from(stream).shutdown(Shutdown::Write);
                }
            }
            Self::Stream(stream) => stream.finish(),
            Self::Echo(_) => {}
        }
    }

    /// Closes the socket after both directions have ended, or after a last word.
    pub(crate) fn close(self) {
        match self {
            Self::Tcp(mut tcp) => tcp.is_over = true,
            Self::Stream(stream) => stream.finish(),
            Self::Echo(_) => {}
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
    fn new(stream: TcpStream, nagle: Nagle) -> Self {
        Self {
            stream: Some(stream),
            home: std::thread::current().id(),
            nagle,
            is_over: false,
        }
    }

    fn stream(&mut self) -> io::Result<&mut TcpStream> {
        self.stream
            .as_mut()
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Registers it with the runtime of this thread, where it is read and written from now on.
    fn come_here(&mut self) {
        let here = std::thread::current().id();
        if std::mem::replace(&mut self.home, here) == here {
            return;
        }
        if let Some(stream) = self.stream.take() {
            // If the system does not register it, it is reset like every other that ends early; the session sees it at the
            // first read.
            let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            self.stream = stream.into_std().and_then(TcpStream::from_std).ok();
            if let Some(stream) = &self.stream {
                let _ = SockRef::from(stream).set_linger(None);
            }
        }
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let nagle = self.nagle;
        let stream = self.stream()?;
        if nagle != Nagle::Off {
            let length: usize = pieces.iter().map(|piece| piece.len()).sum();
            self.nagle = if nagle == Nagle::OnUnused && length <= FIRST_SEGMENT {
                Nagle::On
            } else {
                // Only latency depends on it.
                let _ = stream.set_nodelay(true);
                Nagle::Off
            };
        }
        Pin::new(self.stream()?).poll_write_vectored(cx, pieces)
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        spaces: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [space] = spaces {
            // tokio's own read, which spares the next call's EAGAIN after a short one.
            let mut buffer = ReadBuf::new(space);
            let ready = Pin::new(self.stream()?).poll_read(cx, &mut buffer);
            return ready.map_ok(|()| buffer.filled().len());
        }
        loop {
            let stream = self.stream()?;
            ready!(stream.poll_read_ready(cx))?;
            match stream.try_read_vectored(spaces) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => return Poll::Ready(outcome),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::thread;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::runtime::{Builder, Runtime};

    use super::*;

    fn runtime() -> Runtime {
        Builder::new_current_thread().enable_all().build().unwrap()
    }

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let theirs = TcpStream::connect(listener.local_addr().unwrap());
        let (ours, theirs) = tokio::join!(listener.accept(), theirs);
        (ours.unwrap().0, theirs.unwrap())
    }

    async fn write(socket: &mut Socket, bytes: &[u8]) {
        let written = poll_fn(|cx| socket.poll_write(cx, &[IoSlice::new(bytes)])).await;
        assert_eq!(written.unwrap(), bytes.len());
    }

    fn has_nagle(socket: &Socket) -> bool {
        match socket {
            Socket::Tcp(tcp) => !tcp.stream.as_ref().unwrap().nodelay().unwrap(),
            Socket::Stream(_) | Socket::Echo(_) => false,
        }
    }

    #[tokio::test]
    async fn nagles_algorithm_is_off_when_it_could_hold_something_back() {
        let (ours, _theirs) = pair().await;
        let mut socket = Socket::connected(ours);
        write(&mut socket, b"one segment").await;
        assert!(has_nagle(&socket));
        write(&mut socket, b"and another").await;
        assert!(!has_nagle(&socket));
        let (ours, _theirs) = pair().await;
        let mut socket = Socket::connected(ours);
        write(&mut socket, &[0; FIRST_SEGMENT + 1]).await;
        assert!(!has_nagle(&socket));
    }

    #[test]
    fn a_socket_is_used_on_the_thread_of_the_session_that_it_goes_to() {
        let first = runtime();
        let (ours, mut theirs) = first.block_on(pair());
        let mut socket = Socket::from(ours);
        let carried = thread::spawn(move || {
            let second = runtime();
            second.block_on(async {
                socket.begin();
                let mut space = [0; 4];
                let read = poll_fn(|cx| socket.poll_read(cx, &mut [IoSliceMut::new(&mut space)]));
                assert_eq!(read.await.unwrap(), 4);
                write(&mut socket, &space).await;
                socket.close();
            });
        });
        first.block_on(async {
            theirs.write_all(b"ping").await.unwrap();
            let mut answer = Vec::new();
            // An end, not a reset: nothing of the move is left.
            theirs.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer, b"ping");
        });
        carried.join().unwrap();
    }
}
