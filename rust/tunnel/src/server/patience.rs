//! A visitor's connection, which ends when an answer on it makes no progress.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ech_workers_tls::TlsStream;
#[cfg(target_os = "linux")]
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// How long an answer may stand still.
const PATIENCE: Duration = Duration::from_secs(30);
/// What the kernel takes of an answer before the client has made room for it, in bytes. Its own measure is megabytes, and it says
/// that there is room again only when a third of them is: a slow reader could not be told from one that has stopped.
const UNSENT_MAX: u32 = 128 << 10;

/// TLS with a limit to waiting in writing. One record at a time is sealed, so that a connection whose client does not read holds
/// no more than that.
pub(crate) struct Patient {
    tls: TlsStream,
    /// Since writing stands still: when that is over.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    pub(crate) fn new(tls: TlsStream) -> Self {
        limit_unsent(&tls, Some(UNSENT_MAX));
        Self { tls, stalled: None }
    }

    /// The connection, without limits.
    pub(crate) fn into_inner(self) -> TlsStream {
        limit_unsent(&self.tls, None);
        self.tls
    }

    /// Passes an outcome on, and ends the waiting when it has lasted too long.
    fn watch<T>(
        &mut self,
        outcome: Poll<io::Result<T>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.stalled = None;
            return outcome;
        }
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(PATIENCE)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!(
                "the client has not read its answer for {} s",
                PATIENCE.as_secs()
            ),
        )))
    }

    fn poll_record(
        &mut self,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.tls.poll_flush(cx))?;
        ready!(self.tls.poll_ready(cx))?;
        let record = self.tls.record();
        let mut used = 0;
        for part in parts {
            let length = part.len().min(record.len() - used);
            record[used..used + length].copy_from_slice(&part[..length]);
            used += length;
        }
        self.tls.seal(used)?;
        Poll::Ready(Ok(used))
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_read(cx, out)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = self.poll_record(cx, parts);
        self.watch(outcome, cx)
    }

    /// A page is written from where all visitors share it, not copied behind its head first.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = self.tls.poll_flush(cx);
        self.watch(outcome, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = self.tls.poll_close(cx);
        self.watch(outcome, cx)
    }
}

/// Limits what the kernel holds unsent of this connection; `None` is the system's own limit again.
fn limit_unsent(tls: &TlsStream, limit: Option<u32>) {
    // Without it nothing breaks: a very slow reader is ended earlier.
    #[cfg(target_os = "linux")]
    let _ = SockRef::from(tls.tcp()).set_tcp_notsent_lowat(limit.unwrap_or(0));
    #[cfg(not(target_os = "linux"))]
    let _ = (tls, limit);
}
