//! Records out: sealed one behind the other in one buffer, which goes to the socket in as few system calls as it can.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ech_workers_boringssl::error::ErrorStack;
use tokio::io::AsyncWrite as _;
use tokio::net::TcpStream;

use crate::buffer::{self, Buffer, CONTROL_ROOM, WRITE_CAPACITY};
use crate::record::{HEADER, MAX_PLAINTEXT, OVERHEAD, RECORDS_PER_KEY, TrafficKey, content_type};

/// The sending half of a connection.
pub(super) struct RecordWriter {
    pub(super) key: TrafficKey,
    buffer: Option<Buffer>,
    /// Sealed bytes that the socket has not taken yet.
    sealed: Range<usize>,
    pub(super) max_plaintext: usize,
    /// A KeyUpdate is due before the next application data (RFC 8446 section 4.6.3).
    pub(super) key_update: bool,
    /// The caller may have written into the plaintext behind what is sealed, and nothing has come in its place since.
    lent: bool,
    /// Nothing more may be sealed: the end was announced, or the key failed.
    closed: bool,
}

impl RecordWriter {
    pub(super) fn new(key: TrafficKey, max_plaintext: usize) -> Self {
        Self {
            key,
            buffer: None,
            sealed: 0..0,
            max_plaintext,
            key_update: false,
            lent: false,
            closed: false,
        }
    }

    /// Records of this direction that were sealed before.
    pub(super) fn begin_with(&mut self, records: &[u8]) {
        if !records.is_empty() {
            let buffer = self.buffer.get_or_insert_with(buffer::take_write);
            buffer[..records.len()].copy_from_slice(records);
            self.sealed = 0..records.len();
        }
    }

    pub(super) fn request_key_update(&mut self) {
        self.key_update = true;
    }

    /// Seals close_notify, once.
    pub(super) fn close(&mut self) -> io::Result<()> {
        if !self.closed {
            self.closed = true;
            self.seal_control(content_type::ALERT, &[1, 0])
                .map_err(sealing)?;
        }
        Ok(())
    }

    /// Whether another record can be written. A KeyUpdate that is due is sealed first: never between the caller's look at
    /// the plaintext and its sealing.
    pub(super) fn ready(&mut self) -> io::Result<bool> {
        if self.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if self.has_room() && (self.key_update || self.key.sequence() >= RECORDS_PER_KEY) {
            self.key_update = false;
            // The peer's own update is not asked for: its key wears by its own records.
            self.seal_control(content_type::HANDSHAKE, &[24, 0, 0, 1, 0])
                .and_then(|()| self.key.update())
                .map_err(|error| {
                    self.closed = true;
                    sealing(error)
                })?;
        }
        Ok(self.has_room())
    }

    fn has_room(&self) -> bool {
        let capacity = WRITE_CAPACITY - CONTROL_ROOM;
        capacity - self.sealed.end.min(capacity) >= MAX_PLAINTEXT + OVERHEAD
    }

    pub(super) fn plaintext(&mut self) -> &mut [u8] {
        if self.closed || !self.has_room() {
            return &mut [];
        }
        let start = self.sealed.end + HEADER;
        let end = start + self.max_plaintext;
        let buffer = self.buffer.get_or_insert_with(buffer::take_write);
        self.lent = true;
        &mut buffer[start..end]
    }

    /// What `plaintext` lent, if it is still there.
    pub(super) fn unsealed(&mut self) -> &mut [u8] {
        if self.lent { self.plaintext() } else { &mut [] }
    }

    /// The plaintexts of the next records, at most `most` and as many as there is room for.
    pub(super) fn plaintexts(&mut self, most: usize) -> impl Iterator<Item = &mut [u8]> {
        let most = if self.closed { 0 } else { most };
        let (start, length) = (self.sealed.end, self.max_plaintext);
        let buffer = self.buffer.get_or_insert_with(buffer::take_write);
        buffer[start..WRITE_CAPACITY - CONTROL_ROOM]
            .chunks_exact_mut(length + OVERHEAD)
            .take(most)
            .map(move |record| &mut record[HEADER..HEADER + length])
    }

    pub(super) fn seal_data(&mut self, length: usize) -> io::Result<()> {
        if length == 0 {
            return Ok(());
        }
        // Otherwise it would be what the buffer has from its last user.
        let lent = std::mem::take(&mut self.lent);
        if !lent || self.closed || length > self.max_plaintext || !self.has_room() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.seal(length, content_type::APPLICATION_DATA)
            .map_err(sealing)
    }

    /// A KeyUpdate or an alert, for which there is always room behind the data.
    pub(super) fn seal_control(&mut self, kind: u8, content: &[u8]) -> Result<(), ErrorStack> {
        self.lent = false;
        let start = self.sealed.end + HEADER;
        let buffer = self.buffer.get_or_insert_with(buffer::take_write);
        let Some(space) = buffer.get_mut(start..start + content.len()) else {
            return Ok(());
        };
        space.copy_from_slice(content);
        self.seal(content.len(), kind)
    }

    fn seal(&mut self, length: usize, kind: u8) -> Result<(), ErrorStack> {
        let buffer = self.buffer.get_or_insert_with(buffer::take_write);
        let record = &mut buffer[self.sealed.end..];
        if record.len() < length + OVERHEAD {
            return Ok(());
        }
        self.sealed.end += self.key.seal(record, length, kind)?;
        Ok(())
    }

    /// A last word before the connection is given up; whether it gets through matters to nobody.
    pub(super) fn alert(&mut self, tcp: &TcpStream, code: u8) {
        if !self.closed
            && self.seal_control(content_type::ALERT, &[2, code]).is_ok()
            && let Some(buffer) = &self.buffer
        {
            let _ = tcp.try_write(&buffer[self.sealed.clone()]);
        }
        self.closed = true;
        self.release();
    }

    pub(super) fn poll_drain(
        &mut self,
        tcp: &mut TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
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

    /// Whether it holds a buffer.
    #[cfg(test)]
    pub(super) fn holds_buffer(&self) -> bool {
        self.buffer.is_some()
    }

    fn release(&mut self) {
        self.sealed = 0..0;
        self.lent = false;
        if let Some(buffer) = self.buffer.take() {
            buffer::give_write(buffer);
        }
    }
}

impl Drop for RecordWriter {
    fn drop(&mut self) {
        self.release();
    }
}

fn sealing(_: ErrorStack) -> io::Error {
    io::Error::other("a TLS record could not be sealed")
}
