//! Records in: from the socket into one buffer, opened there, lent out of it.

mod messages;

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use ech_workers_boringssl::ssl::SslStream;
use tokio::io::{AsyncRead, ReadBuf};

use crate::buffer::{self, Buffer};
use crate::error::Alert;
use crate::handshake::Wire;
use crate::record::{HEADER, MAX_CIPHERTEXT, RecordError, TrafficKey, content_type};

use messages::Messages;

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
    messages: Messages,
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
    /// A record without data: cover traffic, a ticket, a key update.
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
    /// `unread` is what came with the end of the handshake, at most a buffer's capacity. `client`: whether this is the
    /// client's end, to which alone tickets may be sent.
    pub(super) fn new(
        key: TrafficKey,
        unread: &[u8],
        client: bool,
        tickets: Option<SslStream<Wire>>,
    ) -> Self {
        let mut reader = Self {
            key,
            buffer: None,
            unopened: 0..0,
            opened: 0..0,
            tickets: tickets.map(|tls| {
                Box::new(Tickets {
                    tls,
                    record: Vec::new(),
                })
            }),
            messages: Messages::new(client),
            state: State::Open,
        };
        if !unread.is_empty() {
            let mut buffer = buffer::take_read();
            match buffer.get_mut(..unread.len()) {
                Some(space) => {
                    space.copy_from_slice(unread);
                    reader.unopened = 0..unread.len();
                }
                // Without it no record could be told from the next.
                None => reader.state = State::Failed,
            }
            reader.buffer = Some(buffer);
        }
        reader
    }

    /// How much opened data nobody has taken yet.
    pub(super) fn opened(&self) -> usize {
        self.opened.len()
    }

    /// The opened data, which is taken with this.
    pub(super) fn lend(&mut self) -> &mut [u8] {
        let range = std::mem::take(&mut self.opened);
        self.buffer().get_mut(range).unwrap_or_default()
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
        let Some(opened) = self
            .buffer
            .as_ref()
            .and_then(|buffer| buffer.get(self.opened.clone()))
        else {
            return;
        };
        let length = opened.len().min(out.remaining());
        out.put_slice(opened.get(..length).unwrap_or_default());
        self.opened.start += length;
        if self.opened.is_empty() && self.unopened.is_empty() {
            self.release();
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
        let Some(unopened) = buffer.get_mut(self.unopened.clone()) else {
            return Ok(Opened::Starved);
        };
        let Some(record) = TrafficKey::first_record(unopened)? else {
            return Ok(Opened::Starved);
        };
        if let Some(tickets) = &mut self.tickets {
            tickets.record.clear();
            tickets.record.extend_from_slice(record);
        }
        let (kind, length) = self.key.open(record)?;
        let content = record.get(HEADER..HEADER + length).unwrap_or_default();
        let start = self.unopened.start + HEADER;
        self.unopened.start += record.len();
        if kind == content_type::APPLICATION_DATA && !content.is_empty() {
            if self.messages.is_split() {
                return Err(RecordError::UnexpectedMessage.into());
            }
            self.messages.patience.renew();
            self.tickets = None;
            self.opened = start..start + length;
            return Ok(Opened::Data);
        }
        let opened = match (kind, content) {
            // Padding alone is cover traffic (RFC 8446 section 5.4).
            (content_type::APPLICATION_DATA, _) => Opened::Nothing,
            (content_type::ALERT, [_, 0]) => Opened::End,
            // user_canceled is followed by a close_notify (RFC 8446 section 6.1).
            (content_type::ALERT, [_, 90]) => Opened::Nothing,
            (content_type::ALERT, [_, code]) => return Err(Fault::Alert(Alert(*code))),
            (content_type::ALERT, [_, ..]) => return Err(RecordError::DecodeError.into()),
            (content_type::HANDSHAKE, [_, ..]) => {
                return self.open_handshake(start..start + length);
            }
            _ => return Err(RecordError::UnexpectedMessage.into()),
        };
        // Nothing may come between the parts of a handshake message (RFC 8446 section 5.1).
        if self.messages.is_split() {
            return Err(RecordError::UnexpectedMessage.into());
        }
        if kind == content_type::ALERT {
            self.messages.patience.spend(Instant::now())?;
        }
        self.pass_to_tickets();
        Ok(opened)
    }

    /// Handshake messages after the handshake: tickets, which BoringSSL takes, and key updates.
    fn open_handshake(&mut self, content: Range<usize>) -> Result<Opened, Fault> {
        let content = self
            .buffer
            .as_ref()
            .and_then(|buffer| buffer.get(content))
            .unwrap_or_default();
        let Some(requested) = self.messages.read(content)? else {
            self.pass_to_tickets();
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

    /// Lets BoringSSL see the record that was opened last, whatever is in it: it counts them.
    fn pass_to_tickets(&mut self) {
        if let Some(tickets) = &mut self.tickets {
            tickets.take();
        }
    }

    /// Reads what the socket has, after what is there.
    pub(super) fn poll_fill(
        &mut self,
        tcp: &mut (impl AsyncRead + Unpin),
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
        let mut space = ReadBuf::new(buffer.get_mut(self.unopened.end..).unwrap_or_default());
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
