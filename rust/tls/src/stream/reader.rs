//! Records in: from the socket into one buffer, opened there, lent out of it.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

use ech_workers_boringssl::ssl::SslStream;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

use crate::buffer::{self, Buffer};
use crate::error::Alert;
use crate::handshake::Wire;
use crate::record::{HEADER, MAX_CIPHERTEXT, RecordError, TrafficKey, content_type};

/// Records in a row that carry no data: tickets and key updates come singly, more is a nuisance.
const MAX_IDLE_RECORDS: u32 = 64;

/// The receiving half of a connection.
pub(super) struct RecordReader {
    pub(super) key: TrafficKey,
    buffer: Option<Buffer>,
    /// Bytes from the socket that are not opened yet.
    unopened: Range<usize>,
    /// Opened data that nobody has taken yet; it lies before `unopened`.
    opened: Range<usize>,
    /// Takes session tickets out of the first records.
    tickets: Option<Box<Tickets>>,
    /// The rest of a handshake message that began in an earlier record.
    handshake_rest: usize,
    idle_records: u32,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// close_notify came.
    Ended,
    /// An error was reported; it is final.
    Failed,
}

/// What came of opening the next record.
pub(super) enum Opened {
    Data,
    Nothing,
    /// The peer wants our next key to be a new one.
    KeyUpdateRequest,
    /// The peer has announced its end.
    End,
    /// No whole record is there: the socket is to be read.
    Starved,
}

/// Why reading ends.
pub(super) enum Fault {
    Record(RecordError),
    Alert(Alert),
    /// It has ended before.
    Failed,
}

impl From<RecordError> for Fault {
    fn from(error: RecordError) -> Self {
        Self::Record(error)
    }
}

impl RecordReader {
    /// `unread` is what came with the end of the handshake, at most a buffer's capacity.
    pub(super) fn new(key: TrafficKey, unread: &[u8], tickets: Option<SslStream<Wire>>) -> Self {
        let buffer = (!unread.is_empty()).then(|| {
            let mut buffer = buffer::take_read();
            buffer[..unread.len()].copy_from_slice(unread);
            buffer
        });
        Self {
            key,
            buffer,
            unopened: 0..unread.len(),
            opened: 0..0,
            tickets: tickets.map(|tls| {
                Box::new(Tickets {
                    tls,
                    record: Vec::new(),
                })
            }),
            handshake_rest: 0,
            idle_records: 0,
            state: State::Open,
        }
    }

    /// How much opened data nobody has taken yet.
    pub(super) fn opened(&self) -> usize {
        self.opened.len()
    }

    /// The opened data, which is taken with this.
    pub(super) fn lend(&mut self) -> &mut [u8] {
        let range = std::mem::take(&mut self.opened);
        self.buffer
            .as_mut()
            .map_or(&mut [], |buffer| &mut buffer[range])
    }

    /// Where the opened data lies in [`buffer`](Self::buffer); it is taken with this.
    pub(super) fn take_opened(&mut self) -> Range<usize> {
        std::mem::take(&mut self.opened)
    }

    /// The whole buffer, opened data and all.
    pub(super) fn buffer(&mut self) -> &mut [u8] {
        self.buffer.as_deref_mut().unwrap_or_default()
    }

    /// Copies of the opened data what `out` has room for.
    pub(super) fn copy_out(&mut self, out: &mut ReadBuf<'_>) {
        if let Some(buffer) = &self.buffer {
            let length = self.opened.len().min(out.remaining());
            out.put_slice(&buffer[self.opened.start..self.opened.start + length]);
            self.opened.start += length;
            if self.opened.is_empty() && self.unopened.is_empty() {
                self.release();
            }
        }
    }

    /// Opens the record at the front, if all of it is there.
    pub(super) fn open_next(&mut self) -> Result<Opened, Fault> {
        match self.state {
            State::Open => {}
            State::Ended => {
                self.release();
                return Ok(Opened::End);
            }
            State::Failed => {
                self.release();
                return Err(Fault::Failed);
            }
        }
        let opened = self.open_record();
        match opened {
            Ok(Opened::End) => self.end(State::Ended),
            Err(_) => self.end(State::Failed),
            Ok(_) => {}
        }
        opened
    }

    fn open_record(&mut self) -> Result<Opened, Fault> {
        let Some(buffer) = &mut self.buffer else {
            return Ok(Opened::Starved);
        };
        let start = self.unopened.start;
        let unopened = &mut buffer[self.unopened.clone()];
        let Some(length) = TrafficKey::whole_record(unopened)? else {
            return Ok(Opened::Starved);
        };
        let record = &mut unopened[..length];
        if let Some(tickets) = &mut self.tickets {
            tickets.record.clear();
            tickets.record.extend_from_slice(record);
        }
        let (kind, content) = self.key.open(record)?;
        self.unopened.start += length;
        let content = start + HEADER..start + HEADER + content;
        if self.handshake_rest > 0 && kind != content_type::HANDSHAKE {
            // Handshake messages may not be interleaved with others (RFC 8446 section 5.1).
            return Err(RecordError::UnexpectedMessage.into());
        }
        if kind == content_type::APPLICATION_DATA && !content.is_empty() {
            self.idle_records = 0;
            self.tickets = None;
            self.opened = content;
            return Ok(Opened::Data);
        }
        self.idle_records += 1;
        if self.idle_records > MAX_IDLE_RECORDS {
            return Err(RecordError::UnexpectedMessage.into());
        }
        match (kind, &buffer[content.clone()]) {
            (content_type::APPLICATION_DATA, _) => Ok(Opened::Nothing),
            (content_type::ALERT, [_, 0]) => Ok(Opened::End),
            // user_canceled is followed by a close_notify (RFC 8446 section 6.1).
            (content_type::ALERT, [_, 90]) => Ok(Opened::Nothing),
            (content_type::ALERT, [_, code]) => Err(Fault::Alert(Alert(*code))),
            (content_type::HANDSHAKE, _) => self.open_handshake(content),
            _ => Err(RecordError::UnexpectedMessage.into()),
        }
    }

    /// Handshake messages after the handshake: tickets, which BoringSSL takes, and key updates.
    fn open_handshake(&mut self, content: Range<usize>) -> Result<Opened, Fault> {
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
        let Some(requested) = update else {
            if let Some(tickets) = &mut self.tickets {
                tickets.take();
            }
            return Ok(Opened::Nothing);
        };
        // BoringSSL is not told of the new key; tickets after it are passed over.
        self.tickets = None;
        self.key.update().map_err(|_| RecordError::BadRecordMac)?;
        Ok(if requested {
            Opened::KeyUpdateRequest
        } else {
            Opened::Nothing
        })
    }

    /// Reads what the socket has, after what is there.
    pub(super) fn poll_fill(
        &mut self,
        tcp: &mut TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
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
            Poll::Pending => {
                if self.unopened.is_empty() {
                    self.release();
                }
                Poll::Pending
            }
            Poll::Ready(Ok(())) if length > 0 => Poll::Ready(Ok(())),
            Poll::Ready(result) => {
                self.end(State::Failed);
                Poll::Ready(result.and(Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the connection was cut without a close_notify",
                ))))
            }
        }
    }

    /// Whether it holds a buffer.
    #[cfg(test)]
    pub(super) fn holds_buffer(&self) -> bool {
        self.buffer.is_some()
    }

    /// The buffer stays until the next call: what was opened before may be lent out of it yet.
    fn end(&mut self, state: State) {
        self.state = state;
        self.tickets = None;
    }

    fn release(&mut self) {
        self.unopened = 0..0;
        self.opened = 0..0;
        if let Some(buffer) = self.buffer.take() {
            buffer::give_read(buffer);
        }
    }
}

impl Drop for RecordReader {
    fn drop(&mut self) {
        self.release();
    }
}

/// BoringSSL's connection, kept until the first application data: session tickets come before that, and only BoringSSL
/// can make sessions of them. It is given the records as they came, so its own count stays in step.
struct Tickets {
    tls: SslStream<Wire>,
    record: Vec<u8>,
}

impl Tickets {
    /// Lets BoringSSL read the record; its callback keeps the sessions.
    fn take(&mut self) {
        self.tls.get_mut().feed(&self.record);
        // There is no application data in it: BoringSSL asks for more, or finds fault, which is no harm to the stream.
        let _ = self.tls.ssl_read(&mut [0; 1]);
    }
}
