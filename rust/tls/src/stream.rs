//! The stream: records opened and sealed where they lie, several in a system call.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ech_workers_boringssl::ssl::SslStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::buffer::{self, Buffer, CONTROL_ROOM, READ_CAPACITY};
use crate::handshake::{Keys, Wire};
use crate::info::HandshakeInfo;
use crate::record::{
    HEADER, MAX_CIPHERTEXT, MAX_PLAINTEXT, OVERHEAD, RECORDS_PER_KEY, RecordError, TrafficKey,
    content_type,
};

/// Largest plaintext of a record, and so the longest slice that [`TlsStream::record`] gives.
pub const RECORD_MAX: usize = MAX_PLAINTEXT;

/// Records in a row that carry no data: tickets and key updates come singly, more is a nuisance.
const MAX_IDLE_RECORDS: u32 = 64;

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
}

struct RecordReader {
    key: TrafficKey,
    buffer: Option<Buffer>,
    /// Bytes from the socket that are not opened yet.
    unopened: Range<usize>,
    /// What is left of an opened record that a byte-wise reader took a part of.
    opened: Range<usize>,
    /// Takes session tickets out of the first records.
    tickets: Option<Box<Tickets>>,
    /// The rest of a handshake message that began in an earlier record.
    handshake_rest: usize,
    idle_records: u32,
    state: ReadState,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ReadState {
    Open,
    /// close_notify came.
    Closed,
    /// An error was reported; it is final.
    Failed,
}

struct RecordWriter {
    key: TrafficKey,
    buffer: Option<Buffer>,
    /// Sealed bytes that the socket has not taken yet.
    sealed: Range<usize>,
    max_plaintext: usize,
    /// A KeyUpdate is due before the next application data (RFC 8446 section 4.6.3).
    key_update: bool,
    closed: bool,
}

/// BoringSSL's connection, kept until the first application data: session tickets come before that, and only BoringSSL
/// can make sessions of them. It is given the records as they came, so its own count stays in step.
struct Tickets {
    tls: SslStream<Wire>,
    record: Vec<u8>,
}

/// What an opened record was.
enum Opened {
    Data(Range<usize>),
    Nothing,
    Closed,
}

impl TlsStream {
    pub(crate) fn new(
        tcp: TcpStream,
        info: HandshakeInfo,
        keys: Keys,
        unread: &[u8],
        tickets: Option<SslStream<Wire>>,
    ) -> Self {
        let mut reader = RecordReader {
            key: keys.read,
            buffer: None,
            unopened: 0..0,
            opened: 0..0,
            tickets: tickets.map(|tls| {
                Box::new(Tickets {
                    tls,
                    record: Vec::new(),
                })
            }),
            handshake_rest: 0,
            idle_records: 0,
            state: ReadState::Open,
        };
        if !unread.is_empty() {
            // Never longer: the handshake reads less at a time.
            let length = unread.len().min(READ_CAPACITY);
            let mut buffer = buffer::take_read();
            buffer[..length].copy_from_slice(&unread[..length]);
            reader.unopened = 0..length;
            reader.buffer = Some(buffer);
        }
        Self {
            tcp,
            info: Box::new(info),
            reader,
            writer: RecordWriter {
                key: keys.write,
                buffer: None,
                sealed: 0..0,
                max_plaintext: keys.max_plaintext,
                key_update: false,
                closed: false,
            },
        }
    }

    /// Sends records that were sealed already; what the socket does not take goes before the first write.
    pub(crate) fn begin_with(&mut self, records: &[u8]) {
        let written = self.tcp.try_write(records).unwrap_or(0);
        let rest = &records[written..];
        if !rest.is_empty() {
            let buffer = self.writer.buffer.get_or_insert_with(buffer::take_write);
            buffer[..rest.len()].copy_from_slice(rest);
            self.writer.sealed = 0..rest.len();
        }
    }

    /// What the handshake came to.
    pub fn info(&self) -> &HandshakeInfo {
        &self.info
    }

    /// The socket.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Opens the next application data. What is lent may be changed at will; it is gone at the next call.
    ///
    /// `None` is the end that the peer announced (close_notify). An end without that is
    /// [`UnexpectedEof`](io::ErrorKind::UnexpectedEof): someone may have cut something off.
    pub fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<&mut [u8]>>> {
        let range = ready!(self.poll_opened(cx))?;
        self.reader.opened = 0..0;
        Poll::Ready(Ok(match (range, &mut self.reader.buffer) {
            (Some(range), Some(buffer)) => Some(&mut buffer[range]),
            _ => None,
        }))
    }

    /// Where opened data lies in the reader's buffer; it is still there at the next call unless the caller takes it.
    fn poll_opened(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Range<usize>>>> {
        if !self.reader.opened.is_empty() {
            return Poll::Ready(Ok(Some(self.reader.opened.clone())));
        }
        loop {
            match self.reader.state {
                ReadState::Open => {}
                ReadState::Closed => return Poll::Ready(Ok(None)),
                ReadState::Failed => {
                    return Poll::Ready(Err(io::Error::other("the TLS connection has failed")));
                }
            }
            match self.reader.open_next(&mut self.writer) {
                Ok(Some(Opened::Data(range))) => {
                    self.reader.opened = range.clone();
                    return Poll::Ready(Ok(Some(range)));
                }
                Ok(Some(Opened::Nothing)) => {}
                Ok(Some(Opened::Closed)) => {
                    self.reader.state = ReadState::Closed;
                    self.reader.release();
                }
                Ok(None) => match self.reader.poll_fill(&mut self.tcp, cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(self.fail(error))),
                },
                Err(Fault::Record(error)) => {
                    self.writer.alert(&self.tcp, error.alert());
                    let error = io::Error::new(io::ErrorKind::InvalidData, error.reason());
                    return Poll::Ready(Err(self.fail(error)));
                }
                Err(Fault::Alert(code)) => {
                    let error = io::Error::new(
                        io::ErrorKind::ConnectionAborted,
                        format!("the peer ended the connection: {}", crate::Alert(code)),
                    );
                    return Poll::Ready(Err(self.fail(error)));
                }
            }
        }
    }

    fn fail(&mut self, error: io::Error) -> io::Error {
        self.reader.state = ReadState::Failed;
        self.reader.release();
        error
    }

    /// Ready when another record can be written; otherwise what is gathered goes to the socket first.
    ///
    /// # Errors
    /// The socket's, or [`BrokenPipe`](io::ErrorKind::BrokenPipe) after a close.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.writer.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if self.writer.has_room() {
            return Poll::Ready(Ok(()));
        }
        self.writer.poll_drain(&mut self.tcp, cx)
    }

    /// The plaintext of the next record, to be written from its beginning: usually [`RECORD_MAX`] bytes, less if the peer
    /// asked for shorter records (RFC 8449). Empty unless [`poll_ready`](Self::poll_ready) was ready.
    pub fn record(&mut self) -> &mut [u8] {
        self.writer.plaintext()
    }

    /// Seals the first `length` bytes of [`record`](Self::record) as a record of their own. They go out with the next
    /// [`poll_flush`](Self::poll_flush), or when enough are gathered.
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if `length` is more than the slice had.
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

    /// Whether there is something gathered that a [`poll_flush`](Self::poll_flush) would write.
    pub fn needs_flush(&self) -> bool {
        !self.writer.sealed.is_empty()
    }

    /// Ends the outgoing direction: close_notify after all that is gathered, then the socket's. Reading goes on.
    ///
    /// # Errors
    /// The socket's.
    pub fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.writer.closed {
            self.writer.closed = true;
            self.writer
                .seal_control(content_type::ALERT, &[1, 0])
                .map_err(sealing)?;
        }
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

impl Drop for TlsStream {
    fn drop(&mut self) {
        self.reader.release();
        self.writer.release();
    }
}

/// Why reading ends.
enum Fault {
    Record(RecordError),
    Alert(u8),
}

impl From<RecordError> for Fault {
    fn from(error: RecordError) -> Self {
        Self::Record(error)
    }
}

impl RecordReader {
    /// Opens the record at the front, if all of it is there.
    fn open_next(&mut self, writer: &mut RecordWriter) -> Result<Option<Opened>, Fault> {
        let Some(buffer) = &mut self.buffer else {
            return Ok(None);
        };
        let start = self.unopened.start;
        let unopened = &mut buffer[self.unopened.clone()];
        let Some(length) = TrafficKey::whole_record(unopened)? else {
            return Ok(None);
        };
        let record = &mut unopened[..length];
        if let Some(tickets) = &mut self.tickets {
            tickets.record.clear();
            tickets.record.extend_from_slice(record);
        }
        let (kind, content) = self.key.open(record)?;
        self.unopened.start += length;
        let content = start + HEADER..start + HEADER + content;
        if kind == content_type::APPLICATION_DATA && !content.is_empty() {
            self.idle_records = 0;
            self.tickets = None;
            return if self.handshake_rest == 0 {
                Ok(Some(Opened::Data(content)))
            } else {
                Err(RecordError::UnexpectedMessage.into())
            };
        }
        self.idle_records += 1;
        if self.idle_records > MAX_IDLE_RECORDS {
            return Err(RecordError::UnexpectedMessage.into());
        }
        match (kind, &buffer[content.clone()]) {
            (content_type::APPLICATION_DATA, _) => Ok(Some(Opened::Nothing)),
            (content_type::ALERT, [_, 0]) => Ok(Some(Opened::Closed)),
            // user_canceled is followed by a close_notify (RFC 8446 section 6.1).
            (content_type::ALERT, [_, 90]) => Ok(Some(Opened::Nothing)),
            (content_type::ALERT, [_, code]) => Err(Fault::Alert(*code)),
            (content_type::HANDSHAKE, _) => {
                self.handshake(content, writer)?;
                Ok(Some(Opened::Nothing))
            }
            _ => Err(RecordError::UnexpectedMessage.into()),
        }
    }

    /// Handshake messages after the handshake: tickets, which BoringSSL takes, and key updates.
    fn handshake(&mut self, content: Range<usize>, writer: &mut RecordWriter) -> Result<(), Fault> {
        const NEW_SESSION_TICKET: u8 = 4;
        const KEY_UPDATE: u8 = 24;
        let unexpected = Err(RecordError::UnexpectedMessage.into());
        let Some(buffer) = &self.buffer else {
            return unexpected;
        };
        let mut messages = &buffer[content];
        if messages.is_empty() {
            return unexpected;
        }
        let mut update = None;
        while !messages.is_empty() {
            if self.handshake_rest > 0 {
                let length = self.handshake_rest.min(messages.len());
                self.handshake_rest -= length;
                messages = &messages[length..];
                continue;
            }
            // A message's header is never split: the messages that may come here are short or begin a record.
            let [kind, high, middle, low, body @ ..] = messages else {
                return unexpected;
            };
            let length = usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low);
            match (*kind, body) {
                (NEW_SESSION_TICKET, _) if length <= 1 << 17 => {
                    self.handshake_rest = length;
                    messages = body;
                }
                // It must end its record (RFC 8446 section 5.1): what follows has another key.
                (KEY_UPDATE, [requested @ 0..=1]) if length == 1 => {
                    update = Some(*requested == 1);
                    messages = &[];
                }
                _ => return unexpected,
            }
        }
        match update {
            Some(requested) => {
                self.tickets = None;
                self.key.update().map_err(|_| RecordError::BadRecordMac)?;
                writer.key_update |= requested;
            }
            None => {
                if let Some(tickets) = &mut self.tickets {
                    tickets.take();
                }
            }
        }
        Ok(())
    }

    /// Reads what the socket has, after what is there.
    fn poll_fill(&mut self, tcp: &mut TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut buffer = self.buffer.take().unwrap_or_else(buffer::take_read);
        if self.unopened.is_empty() {
            self.unopened = 0..0;
        } else if buffer.len() - self.unopened.end < HEADER + MAX_CIPHERTEXT {
            // Less than a record is left, and the rest of it may not fit behind.
            buffer.copy_within(self.unopened.clone(), 0);
            self.unopened = 0..self.unopened.len();
        }
        let mut space = ReadBuf::new(&mut buffer[self.unopened.end..]);
        // tokio's own read, which spares the next call's EAGAIN after a short one.
        let polled = Pin::new(tcp).poll_read(cx, &mut space);
        let length = space.filled().len();
        self.unopened.end += length;
        self.buffer = Some(buffer);
        match polled {
            Poll::Ready(Ok(())) if length == 0 => Poll::Ready(Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the connection was cut without a close_notify",
            ))),
            Poll::Pending => {
                if self.unopened.is_empty() {
                    self.release();
                }
                Poll::Pending
            }
            ready => ready,
        }
    }

    fn release(&mut self) {
        self.unopened = 0..0;
        self.opened = 0..0;
        if let Some(buffer) = self.buffer.take() {
            buffer::give_read(buffer);
        }
        if self.state != ReadState::Open {
            self.tickets = None;
        }
    }
}

impl Tickets {
    /// Lets BoringSSL read the record; its callback keeps the sessions.
    fn take(&mut self) {
        self.tls.get_mut().feed(&self.record);
        // There is no application data in it: BoringSSL asks for more, or finds fault, which is no harm to the stream.
        let _ = self.tls.ssl_read(&mut [0; 1]);
    }
}

impl RecordWriter {
    fn has_room(&self) -> bool {
        let capacity = buffer::WRITE_CAPACITY - CONTROL_ROOM;
        capacity - self.sealed.end.min(capacity) >= MAX_PLAINTEXT + OVERHEAD
    }

    fn plaintext(&mut self) -> &mut [u8] {
        if self.closed || !self.has_room() {
            return &mut [];
        }
        if self.key.sequence() >= RECORDS_PER_KEY {
            self.key_update = true;
        }
        if self.key_update {
            self.key_update = false;
            // The peer's side of it is not asked for: its key wears by its own records. A failure shows in `seal`.
            if self
                .seal_control(content_type::HANDSHAKE, &[24, 0, 0, 1, 0])
                .and_then(|()| self.key.update())
                .is_err()
            {
                self.closed = true;
                return &mut [];
            }
        }
        let start = self.sealed.end + HEADER;
        let end = start + self.max_plaintext;
        let buffer = self.buffer.get_or_insert_with(buffer::take_write);
        &mut buffer[start..end]
    }

    fn seal_data(&mut self, length: usize) -> io::Result<()> {
        if length == 0 {
            return Ok(());
        }
        if self.closed || length > self.max_plaintext || !self.has_room() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.seal(length, content_type::APPLICATION_DATA)
            .map_err(sealing)
    }

    /// A KeyUpdate or an alert, for which there is always room behind the data.
    fn seal_control(
        &mut self,
        kind: u8,
        content: &[u8],
    ) -> Result<(), ech_workers_boringssl::error::ErrorStack> {
        let start = self.sealed.end + HEADER;
        let buffer = self.buffer.get_or_insert_with(buffer::take_write);
        let Some(space) = buffer.get_mut(start..start + content.len()) else {
            return Ok(());
        };
        space.copy_from_slice(content);
        self.seal(content.len(), kind)
    }

    fn seal(
        &mut self,
        length: usize,
        kind: u8,
    ) -> Result<(), ech_workers_boringssl::error::ErrorStack> {
        let buffer = self.buffer.get_or_insert_with(buffer::take_write);
        let record = &mut buffer[self.sealed.end..];
        if record.len() < length + OVERHEAD {
            return Ok(());
        }
        self.sealed.end += self.key.seal(record, length, kind)?;
        Ok(())
    }

    /// A last word before the connection is given up; whether it gets through matters to nobody.
    fn alert(&mut self, tcp: &TcpStream, code: u8) {
        if !self.closed && self.seal_control(content_type::ALERT, &[2, code]).is_ok() {
            if let Some(buffer) = &self.buffer {
                let _ = tcp.try_write(&buffer[self.sealed.clone()]);
            }
        }
        self.closed = true;
        self.release();
    }

    fn poll_drain(&mut self, tcp: &mut TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(buffer) = &self.buffer {
            if self.sealed.is_empty() {
                self.release();
                break;
            }
            let written = ready!(Pin::new(&mut *tcp).poll_write(cx, &buffer[self.sealed.clone()]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sealed.start += written;
        }
        Poll::Ready(Ok(()))
    }

    fn release(&mut self) {
        self.sealed = 0..0;
        if let Some(buffer) = self.buffer.take() {
            buffer::give_write(buffer);
        }
    }
}

fn sealing(_: ech_workers_boringssl::error::ErrorStack) -> io::Error {
    io::Error::other("a TLS record could not be sealed")
}

impl AsyncRead for TlsStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Some(range) = ready!(this.poll_opened(cx))? else {
            return Poll::Ready(Ok(()));
        };
        if let Some(buffer) = &this.reader.buffer {
            let length = range.len().min(out.remaining());
            out.put_slice(&buffer[range.start..range.start + length]);
            this.reader.opened.start += length;
            if this.reader.opened.is_empty() && this.reader.unopened.is_empty() {
                this.reader.release();
            }
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
        let mut written = 0;
        while written < bytes.len() && this.writer.has_room() {
            let record = this.record();
            let length = record.len().min(bytes.len() - written);
            if length == 0 {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            record[..length].copy_from_slice(&bytes[written..written + length]);
            this.seal(length)?;
            written += length;
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Self::poll_flush(self.get_mut(), cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_close(cx)
    }
}
