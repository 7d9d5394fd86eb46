//! Records out: sealed one behind the other in one buffer, which goes to the socket in as few system calls as it can.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite as _;
use tokio::net::TcpStream;

use crate::buffer::{self, Buffer, CONTROL_ROOM, WRITE_CAPACITY};
use crate::handshake::discard_received;
use crate::record::{HEADER, OVERHEAD, RECORDS_PER_KEY, SealError, TrafficKey, content_type};

/// Where records with data end at the latest; behind it is the room for a KeyUpdate and an alert.
pub(crate) const DATA_CAPACITY: usize = WRITE_CAPACITY - CONTROL_ROOM;

/// The sending half of a connection.
pub(super) struct RecordWriter {
    pub(super) key: TrafficKey,
    buffer: Option<Buffer>,
    /// Sealed bytes that the socket has not taken yet.
    sealed: Range<usize>,
    /// The longest plaintext that the peer accepts in a record (RFC 8449).
    max_plaintext: usize,
    /// A KeyUpdate is due before the next application data (RFC 8446 section 4.6.3).
    pub(super) key_update: bool,
    /// Plaintexts behind what is sealed that the caller may have written into, with nothing put in their place since.
    lent: usize,
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
            lent: 0,
            closed: false,
        }
    }

    /// Records of this direction that were sealed before.
    pub(super) fn begin_with(&mut self, records: &[u8]) {
        if records.is_empty() {
            return;
        }
        let buffer = self.buffer.get_or_insert_with(buffer::take_write);
        match buffer.get_mut(..records.len()) {
            Some(space) => {
                space.copy_from_slice(records);
                self.sealed = 0..records.len();
            }
            // The peer's count of records would be ahead of ours: nothing could be opened there any more.
            None => self.closed = true,
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
                .and_then(|()| Ok(self.key.update()?))
                .map_err(|error| {
                    self.closed = true;
                    sealing(error)
                })?;
        }
        Ok(self.has_room())
    }

    /// Whether there is room for one more record of the length that the peer accepts.
    fn has_room(&self) -> bool {
        DATA_CAPACITY.saturating_sub(self.sealed.end) >= self.max_plaintext + OVERHEAD
    }

    pub(super) fn plaintext(&mut self) -> &mut [u8] {
        if self.closed || !self.has_room() {
            return &mut [];
        }
        self.lent = self.lent.max(1);
        let start = self.sealed.end + HEADER;
        self.buffer
            .get_or_insert_with(buffer::take_write)
            .get_mut(start..start + self.max_plaintext)
            .unwrap_or_default()
    }

    /// What `plaintext` or `plaintexts` lent, if it is still there.
    pub(super) fn unsealed(&mut self) -> &mut [u8] {
        if self.lent > 0 {
            self.plaintext()
        } else {
            &mut []
        }
    }

    /// The plaintexts of the next records, at most `most` and as many as can be sealed one behind the other.
    pub(super) fn plaintexts(&mut self, most: usize) -> impl Iterator<Item = &mut [u8]> {
        let length = self.max_plaintext;
        let room = DATA_CAPACITY.saturating_sub(self.sealed.end) / (length + OVERHEAD);
        let offered = if self.closed { 0 } else { most.min(room) };
        self.lent = self.lent.max(offered);
        // Not even a buffer is taken for nothing.
        let buffer = (offered > 0).then(|| self.buffer.get_or_insert_with(buffer::take_write));
        buffer
            .and_then(|buffer| buffer.get_mut(self.sealed.end..))
            .unwrap_or_default()
            .chunks_exact_mut(length + OVERHEAD)
            .take(offered)
            .filter_map(move |record| record.get_mut(HEADER..HEADER + length))
    }

    pub(super) fn seal_data(&mut self, length: usize) -> io::Result<()> {
        if length == 0 {
            return Ok(());
        }
        // Otherwise it would be what the buffer has from its last user.
        let lent = std::mem::take(&mut self.lent);
        if lent == 0 || self.closed || length > self.max_plaintext || !self.has_room() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.seal(length, content_type::APPLICATION_DATA)
            .map_err(sealing)?;
        // Behind a shorter record the next plaintext is at another place than it was when it was lent.
        if length == self.max_plaintext {
            self.lent = lent - 1;
        }
        Ok(())
    }

    /// A KeyUpdate or an alert, for which there is always room behind the data.
    pub(super) fn seal_control(&mut self, kind: u8, content: &[u8]) -> Result<(), SealError> {
        self.lent = 0;
        let start = self.sealed.end + HEADER;
        self.buffer
            .get_or_insert_with(buffer::take_write)
            .get_mut(start..start + content.len())
            .ok_or(SealError)?
            .copy_from_slice(content);
        self.seal(content.len(), kind)
    }

    fn seal(&mut self, length: usize, kind: u8) -> Result<(), SealError> {
        let record = self
            .buffer
            .as_mut()
            .and_then(|buffer| buffer.get_mut(self.sealed.end..))
            .ok_or(SealError)?;
        self.sealed.end += self.key.seal(record, length, kind)?;
        Ok(())
    }

    /// The sealed bytes that the socket has not taken yet.
    fn unsent(&self) -> &[u8] {
        self.buffer
            .as_ref()
            .and_then(|buffer| buffer.get(self.sealed.clone()))
            .unwrap_or_default()
    }

    /// A last word before the connection is given up; whether it gets through matters to nobody.
    pub(super) fn alert(&mut self, tcp: &TcpStream, code: u8) {
        if !self.closed && self.seal_control(content_type::ALERT, &[2, code]).is_ok() {
            let _ = tcp.try_write(self.unsent());
            discard_received(tcp);
        }
        self.closed = true;
        self.release();
    }

    pub(super) fn poll_drain(
        &mut self,
        tcp: &mut TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while self.buffer.is_some() {
            let unsent = self.unsent();
            if unsent.is_empty() {
                self.release();
                break;
            }
            let written = ready!(Pin::new(&mut *tcp).poll_write(cx, unsent))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sealed.start += written;
        }
        Poll::Ready(Ok(()))
    }

    /// As if the peer had asked for records of at most this length.
    #[cfg(test)]
    pub(super) fn limit_plaintext(&mut self, length: usize) {
        self.max_plaintext = length;
    }

    /// Whether it holds a buffer.
    #[cfg(test)]
    pub(super) fn holds_buffer(&self) -> bool {
        self.buffer.is_some()
    }

    fn release(&mut self) {
        self.sealed = 0..0;
        self.lent = 0;
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

fn sealing(_: SealError) -> io::Error {
    io::Error::other("a TLS record could not be sealed")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // also in what proptest makes of the tests
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::{MAX_PLAINTEXT, Secret, Suite};

    fn key() -> TrafficKey {
        let secret = Secret::from_hex(&"5c".repeat(32)).unwrap();
        TrafficKey::new(Suite::from_id(0x1301).unwrap(), secret, 0).unwrap()
    }

    /// A writer towards a peer with this record_size_limit (RFC 8449), and with so much in its buffer.
    fn writer(limit: usize, level: usize) -> RecordWriter {
        let mut writer = RecordWriter::new(key(), limit - 1);
        writer.begin_with(&vec![0; level]);
        writer
    }

    /// The plaintexts of what was sealed behind `level`.
    fn opened(writer: &mut RecordWriter, level: usize) -> Vec<Vec<u8>> {
        let mut key = key();
        let mut sealed = &mut writer.buffer.as_mut().unwrap()[level..writer.sealed.end];
        let mut plaintexts = Vec::new();
        while let Some(record) = TrafficKey::first_record(sealed).unwrap() {
            let length = record.len();
            let (record, rest) = sealed.split_at_mut(length);
            sealed = rest;
            let (kind, content) = key.open(record).unwrap();
            if kind == content_type::HANDSHAKE {
                key.update().unwrap();
            } else {
                plaintexts.push(record[HEADER..HEADER + content].to_vec());
            }
        }
        assert!(sealed.is_empty(), "half a record");
        plaintexts
    }

    /// Fill levels: any, and those where the last record just fits or does not.
    fn level(limit: usize) -> impl Strategy<Value = usize> {
        prop_oneof![
            0..=DATA_CAPACITY,
            (0usize..6, 0usize..64).prop_map(move |(records, less)| {
                DATA_CAPACITY.saturating_sub(records * (limit - 1 + OVERHEAD) + less)
            }),
            (0usize..6, 0usize..64).prop_map(move |(records, more)| {
                DATA_CAPACITY
                    .saturating_sub(records * (limit - 1 + OVERHEAD))
                    .saturating_add(more)
                    .min(DATA_CAPACITY)
            }),
        ]
    }

    fn limit_and_level() -> impl Strategy<Value = (usize, usize)> {
        prop_oneof![64..=MAX_PLAINTEXT + 1, Just(64), Just(MAX_PLAINTEXT + 1)]
            .prop_flat_map(|limit| (Just(limit), level(limit)))
    }

    proptest! {
        #[test]
        fn every_record_that_is_offered_can_be_sealed(
            (limit, level) in limit_and_level(),
            most in 1usize..40,
            last in 1usize..=MAX_PLAINTEXT,
            key_update: bool,
        ) {
            let mut writer = writer(limit, level);
            writer.key_update = key_update;
            let ready = writer.ready().unwrap();
            let mut offered = 0u8;
            for plaintext in writer.plaintexts(most) {
                prop_assert_eq!(plaintext.len(), limit - 1);
                plaintext.fill(offered);
                offered += 1;
            }
            prop_assert_eq!(offered > 0, ready);
            prop_assert!(usize::from(offered) <= most);
            for number in 1..=offered {
                prop_assert!(writer.unsealed().iter().all(|byte| *byte == number - 1));
                prop_assert_eq!(writer.unsealed().len(), limit - 1);
                let length = if number < offered { limit - 1 } else { last.min(limit - 1) };
                writer.seal_data(length).unwrap();
            }
            prop_assert!(writer.unsealed().is_empty(), "more than was offered");
            prop_assert!(writer.seal_data(1).is_err(), "more than was offered");
            // The end of the connection always has room.
            writer.close().unwrap();
            prop_assert!(!writer.ready().is_ok_and(|ready| ready));
            let mut plaintexts = opened(&mut writer, level);
            prop_assert_eq!(plaintexts.pop(), Some(vec![1, 0]));
            prop_assert_eq!(plaintexts.len(), usize::from(offered));
            for (number, plaintext) in plaintexts.iter().enumerate() {
                prop_assert!(plaintext.iter().all(|byte| usize::from(*byte) == number));
            }
        }

        #[test]
        fn there_is_room_for_a_batch_exactly_when_there_is_room_for_a_record(
            (limit, level) in limit_and_level(),
        ) {
            let mut writer = writer(limit, level);
            let room = !writer.plaintext().is_empty();
            prop_assert_eq!(writer.ready().unwrap(), room);
            prop_assert_eq!(writer.plaintexts(1).count() == 1, room);
        }
    }

    #[test]
    fn behind_a_short_record_the_rest_of_a_batch_is_not_sealed() {
        let mut writer = writer(1001, 0);
        assert_eq!(writer.plaintexts(3).count(), 3);
        writer.seal_data(1000).unwrap();
        writer.seal_data(999).unwrap();
        assert!(writer.unsealed().is_empty());
        assert!(writer.seal_data(1000).is_err());
    }

    #[test]
    fn more_than_the_buffer_holds_ends_the_direction_instead_of_the_program() {
        let mut writer = RecordWriter::new(key(), MAX_PLAINTEXT);
        writer.begin_with(&vec![0; WRITE_CAPACITY + 1]);
        assert!(writer.ready().is_err());
        assert!(writer.plaintext().is_empty());
    }
}
