//! What the fuzz target of the record reader needs: a reader without a socket, and a peer's key to seal with.

#![allow(missing_docs, clippy::unwrap_used)] // for fuzz/ alone

use std::task::{Context, Poll, Waker};

use super::reader::{Fault, Opened, RecordReader};
use crate::record::{HEADER, OVERHEAD, Secret, Suite, TrafficKey};

/// Both ends begin with the key of this secret.
fn key() -> TrafficKey {
    let secret = Secret::from_hex(&"5c".repeat(32)).unwrap();
    TrafficKey::new(Suite::from_id(0x1301).unwrap(), secret, 0).unwrap()
}

/// The peer: seals whatever it is given.
pub struct Sealer(TrafficKey);

impl Sealer {
    pub fn new() -> Self {
        Self(key())
    }

    /// A record of this inner plaintext, content type and padding included.
    pub fn seal(&mut self, inner: &[u8]) -> Vec<u8> {
        let (last, content) = inner.split_last().unwrap_or((&0, &[]));
        let mut record = vec![0; content.len() + OVERHEAD];
        record
            .get_mut(HEADER..HEADER + content.len())
            .unwrap()
            .copy_from_slice(content);
        self.0.seal(&mut record, content.len(), *last).unwrap();
        record
    }

    pub fn update(&mut self) {
        self.0.update().unwrap();
    }
}

/// What the reader made of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    Data(Vec<u8>),
    Nothing,
    KeyUpdateRequest,
    End,
    /// It broke the protocol; the alert that is due.
    Broken(u8),
    /// An alert came.
    Alert(u8),
    /// It had failed before.
    Failed,
}

/// The reader under test.
pub struct Opener(RecordReader);

impl Opener {
    /// `unread`: what came with the end of the handshake.
    pub fn new(client: bool, unread: &[u8]) -> Self {
        Self(RecordReader::new(key(), unread, client, None))
    }

    /// What the next record came to; `None` when more bytes are needed.
    pub fn open(&mut self) -> Option<Heard> {
        Some(match self.0.open_next() {
            Ok(Opened::Data) => Heard::Data(self.0.lend().to_vec()),
            Ok(Opened::Nothing) => Heard::Nothing,
            Ok(Opened::KeyUpdateRequest) => Heard::KeyUpdateRequest,
            Ok(Opened::End) => Heard::End,
            Ok(Opened::Starved) => return None,
            Err(Fault::Record(error)) => Heard::Broken(error.alert()),
            Err(Fault::Alert(alert)) => Heard::Alert(alert.0),
            Err(Fault::Failed) => Heard::Failed,
        })
    }

    /// Takes as many of `bytes` as it has room for.
    pub fn fill(&mut self, bytes: &mut &[u8]) {
        let polled = self
            .0
            .poll_fill(bytes, &mut Context::from_waker(Waker::noop()));
        assert!(matches!(polled, Poll::Ready(Ok(()))));
    }
}
