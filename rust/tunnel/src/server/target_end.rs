//! The server's end of a stream: the attempt to reach the target, and then its connection.

use std::io::{self, IoSlice, IoSliceMut};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use crate::echo::Answering;
use crate::server::permits::Permit;
use crate::server::target::Reached;
use crate::socket::Socket;
use ech_workers_session::{Abort, LocalEnd, Refusal};

/// An attempt to reach a target. Dropping it ends it.
pub(crate) type Attempt = Pin<Box<dyn Future<Output = Result<Reached, Refusal>> + Send>>;

/// A target.
pub(crate) enum TargetEnd {
    Connecting(Attempt),
    /// The socket is one of those that the process may have until the end is dropped.
    Connected(Socket, Permit),
    /// The reserved target, which is nothing but this.
    Echo(Answering),
}

impl TargetEnd {
    fn socket(&mut self) -> io::Result<&mut Socket> {
        match self {
            Self::Connected(socket, _) => Ok(socket),
            Self::Connecting(_) | Self::Echo(_) => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl LocalEnd for TargetEnd {
    fn poll_connect(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        if let Self::Connecting(attempt) = self {
            let (tcp, permit) = ready!(attempt.as_mut().poll(cx))?;
            *self = Self::Connected(Socket::connected(tcp), permit);
        }
        Poll::Ready(Ok(()))
    }

    fn reads_many(&self) -> bool {
        !matches!(self, Self::Echo(_))
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        spaces: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Echo(answering) => answering.poll_read(cx, spaces),
            _ => self.socket()?.poll_read(cx, spaces),
        }
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Echo(answering) => answering.poll_write(cx, pieces),
            _ => self.socket()?.poll_write(cx, pieces),
        }
    }

    fn finish(&mut self) {
        match self {
            Self::Connected(socket, _permit) => socket.finish(),
            Self::Echo(answering) => answering.finish(),
            Self::Connecting(_) => {}
        }
    }

    fn close(self) {
        if let Self::Connected(socket, _permit) = self {
            socket.close();
        }
    }

    fn abort(self, _why: Abort) {
        // Dropping the socket resets it, and dropping the attempt ends that.
    }

    fn refuse(self, _refusal: &Refusal) {
        // A target is told nothing.
    }
}
