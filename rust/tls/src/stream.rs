//! The stream: records opened and sealed where they lie, several in a system call.

#[cfg(fuzzing)]
pub mod fuzzing;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

use std::io::{self, Read as _};
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ech_workers_boringssl::ssl::SslStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::handshake::{Keys, Wire};
use crate::info::HandshakeInfo;
use crate::record::MAX_PLAINTEXT;

/// Records without data that one call opens. An empty record costs no more to open than one with a byte of data, so there
/// may be any number of them, as cover traffic needs it; but the thread is for others too: after these the task waits for
/// its next turn.
const IDLE_RECORDS: usize = 64;

use reader::{Fault, Opened, RecordReader};
use writer::RecordWriter;

/// Largest plaintext of a record, and so the longest slice that [`TlsStream::record`] gives.
pub const RECORD_MAX: usize = MAX_PLAINTEXT;

/// The most records that [`TlsStream::poll_open_batch`] opens at a time.
pub const BATCH_MAX: usize = 32;

/// A TLS 1.3 connection over TCP.
///
/// Two ways lead in and out. Record by record, without a copy: [`poll_open`](Self::poll_open) lends what came, and
/// [`record`](Self::record) with [`seal`](Self::seal) takes plaintext where it is encrypted. Or as a byte stream:
/// `AsyncRead` and `AsyncWrite`, where written bytes are gathered until a flush.
///
/// A stream with nothing in it holds no buffer.
pub struct TlsStream {
    tcp: TcpStream,
    info: Box<HandshakeInfo>,
    reader: RecordReader,
    writer: RecordWriter,
    /// An error behind data that has been handed out.
    deferred: Option<io::Error>,
}

impl TlsStream {
    pub(crate) fn new(
        tcp: TcpStream,
        info: HandshakeInfo,
        keys: Keys,
        unread: &[u8],
        tickets: Option<SslStream<Wire>>,
    ) -> Self {
        Self {
            tcp,
            info: Box::new(info),
            reader: RecordReader::new(keys.read, unread, keys.client, tickets),
            writer: RecordWriter::new(keys.write, keys.max_plaintext),
            deferred: None,
        }
    }

    /// Sends records that were sealed already; what the socket does not take goes before the first write.
    pub(crate) fn begin_with(&mut self, records: &[u8]) {
        let written = self.tcp.try_write(records).unwrap_or(0);
        self.writer
            .begin_with(records.get(written..).unwrap_or_default());
    }

    /// What the handshake came to.
    pub fn info(&self) -> &HandshakeInfo {
        &self.info
    }

    /// The socket.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// The same connection, with its socket in the hands of the tokio runtime that this is called in: a handshake made on one
    /// runtime can so be carried on by the thread of another. What was read or gathered goes along.
    ///
    /// # Errors
    /// The system's, if the socket cannot be registered; the connection is closed then.
    ///
    /// # Panics
    /// Outside of a tokio runtime with its I/O enabled.
    pub fn into_current_runtime(self) -> io::Result<Self> {
        let tcp = TcpStream::from_std(self.tcp.into_std()?)?;
        Ok(Self { tcp, ..self })
    }

    /// Opens the next application data. What is lent may be changed at will; it is gone at the next call.
    ///
    /// `None` is the end that the peer announced (close_notify). An end without that is
    /// [`UnexpectedEof`](io::ErrorKind::UnexpectedEof): someone may have cut something off.
    pub fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<&mut [u8]>>> {
        Poll::Ready(Ok(ready!(self.poll_opened(cx))?.map(|_| self.reader.lend())))
    }

    /// Opens all application data that is there, at most [`BATCH_MAX`] records, and returns the buffer with it: `records`
    /// gets the places of the records' contents, in order. Otherwise as [`poll_open`](Self::poll_open).
    ///
    /// Whoever hands the contents on can do so in one system call for all of them.
    pub fn poll_open_batch(
        &mut self,
        cx: &mut Context<'_>,
        records: &mut Vec<Range<usize>>,
    ) -> Poll<io::Result<Option<&mut [u8]>>> {
        records.clear();
        if ready!(self.poll_opened(cx))?.is_none() {
            return Poll::Ready(Ok(None));
        }
        records.push(self.reader.take_opened());
        let mut idle = 0;
        while records.len() < BATCH_MAX && idle < IDLE_RECORDS {
            match self.open_next() {
                Ok(Opened::Data) => records.push(self.reader.take_opened()),
                Ok(Opened::Nothing | Opened::KeyUpdateRequest) => idle += 1,
                Ok(Opened::Starved | Opened::End) => break,
                Err(error) => {
                    // What was opened before is whole; the error is for the next call.
                    self.deferred = Some(error);
                    break;
                }
            }
        }
        Poll::Ready(Ok(Some(self.reader.buffer())))
    }

    /// Until there is opened data in the reader; how much.
    fn poll_opened(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<usize>>> {
        if let Some(error) = self.deferred.take() {
            return Poll::Ready(Err(error));
        }
        let mut idle = 0;
        while idle < IDLE_RECORDS {
            if let length @ 1.. = self.reader.opened() {
                return Poll::Ready(Ok(Some(length)));
            }
            match self.open_next()? {
                Opened::Data => {}
                Opened::Nothing | Opened::KeyUpdateRequest => idle += 1,
                Opened::End => return Poll::Ready(Ok(None)),
                Opened::Starved => ready!(self.reader.poll_fill(&mut self.tcp, cx))?,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Opens the next record, and does what it or its failure asks of the other direction.
    fn open_next(&mut self) -> io::Result<Opened> {
        match self.reader.open_next() {
            Ok(Opened::KeyUpdateRequest) => {
                self.writer.request_key_update();
                Ok(Opened::KeyUpdateRequest)
            }
            Ok(opened) => Ok(opened),
            Err(Fault::Record(error)) => {
                self.writer.alert(&self.tcp, error.alert());
                Err(io::Error::new(io::ErrorKind::InvalidData, error.reason()))
            }
            Err(Fault::Alert(alert)) => Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                format!("the peer ended the connection: {alert}"),
            )),
            Err(Fault::Failed) => Err(io::Error::other("the TLS connection has failed")),
        }
    }

    /// Ready when another record can be written; otherwise what is gathered goes to the socket first.
    ///
    /// # Errors
    /// The socket's, or [`BrokenPipe`](io::ErrorKind::BrokenPipe) after a close.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.writer.ready()? {
            ready!(self.writer.poll_drain(&mut self.tcp, cx))?;
        }
        Poll::Ready(Ok(()))
    }

    /// The plaintext of the next record, to be written from its beginning: usually [`RECORD_MAX`] bytes, less if the peer
    /// asked for shorter records (RFC 8449). Empty unless [`poll_ready`](Self::poll_ready) was ready.
    ///
    /// What is written into it stays for [`seal`](Self::seal), unless another call that sends comes between: it may be
    /// lost then, and `seal` fails.
    pub fn record(&mut self) -> &mut [u8] {
        self.writer.plaintext()
    }

    /// What [`record`](Self::record) lent last, with what was written into it since. Empty if it is sealed or lost.
    pub fn unsealed(&mut self) -> &mut [u8] {
        self.writer.unsealed()
    }

    /// The plaintexts of the next records, at most `most` and as many as can be sealed one after the other: the first is
    /// that of [`record`](Self::record). Each must be sealed in full for the next one to be where it is; the last one need
    /// not be. Behind a shorter record, [`seal`](Self::seal) refuses the rest.
    pub fn records(&mut self, most: usize) -> impl Iterator<Item = &mut [u8]> {
        self.writer.plaintexts(most)
    }

    /// Seals the first `length` bytes of [`record`](Self::record) as a record of their own. They go out with the next
    /// [`poll_flush`](Self::poll_flush), or when enough are gathered.
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if `length` is more than the slice had, or if what was written into
    /// it is not there any more.
    pub fn seal(&mut self, length: usize) -> io::Result<()> {
        self.writer.seal_data(length)
    }

    /// Writes all that is gathered to the socket.
    ///
    /// # Errors
    /// The socket's.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writer.poll_drain(&mut self.tcp, cx)
    }

    /// Ends the outgoing direction: close_notify after all that is gathered, then the socket's. Reading goes on.
    ///
    /// # Errors
    /// The socket's.
    pub fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writer.close()?;
        ready!(self.writer.poll_drain(&mut self.tcp, cx))?;
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

impl std::fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsStream")
            .field("tcp", &self.tcp)
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if ready!(this.poll_opened(cx))?.is_some() {
            this.reader.copy_out(out);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_ready(cx))?;
        let mut rest = bytes;
        while !rest.is_empty() && this.writer.ready()? {
            // As much of it as a record holds.
            let length = rest.read(this.record())?;
            if length == 0 {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            this.seal(length)?;
        }
        Poll::Ready(Ok(bytes.len() - rest.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Self::poll_flush(self.get_mut(), cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_close(cx)
    }
}
