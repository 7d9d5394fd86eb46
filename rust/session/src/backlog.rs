//! Bytes that an end has not taken yet.

use std::collections::VecDeque;
use std::io::IoSlice;

/// The least that a chunk holds, so that many small payloads do not cost an allocation each.
const CHUNK_MIN: usize = 4096;

/// Bytes that wait for an end, in order.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    chunks: VecDeque<Vec<u8>>,
    /// Bytes of the first chunk that were taken.
    start: usize,
    len: usize,
    /// What the chunks occupy.
    allocated: usize,
}

impl Backlog {
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Memory that it occupies, in bytes.
    pub(crate) const fn allocated(&self) -> usize {
        self.allocated
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.len += bytes.len();
        if let Some(last) = self.chunks.back_mut()
            && last.capacity() - last.len() >= bytes.len()
        {
            last.extend_from_slice(bytes);
            return;
        }
        let mut chunk = Vec::with_capacity(bytes.len().max(CHUNK_MIN));
        chunk.extend_from_slice(bytes);
        self.allocated += chunk.capacity();
        self.chunks.push_back(chunk);
    }

    /// The first bytes, in as many pieces as there are slots. Returns how many slots were filled.
    pub(crate) fn pieces<'a>(&'a self, slots: &mut [IoSlice<'a>]) -> usize {
        let mut count = 0;
        let mut start = self.start;
        for (slot, chunk) in slots.iter_mut().zip(&self.chunks) {
            *slot = IoSlice::new(chunk.get(start..).unwrap_or_default());
            start = 0;
            count += 1;
        }
        count
    }

    /// Drops the first `n` bytes, which were taken.
    pub(crate) fn advance(&mut self, mut n: usize) {
        n = n.min(self.len);
        self.len -= n;
        while let Some(first) = self.chunks.front() {
            let left = first.len() - self.start;
            if n < left {
                self.start += n;
                return;
            }
            n -= left;
            self.start = 0;
            self.allocated -= first.capacity();
            self.chunks.pop_front();
        }
        // An end that keeps up holds no memory.
        self.chunks = VecDeque::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(backlog: &Backlog) -> Vec<u8> {
        let mut slots = [IoSlice::new(&[]); 16];
        let count = backlog.pieces(&mut slots);
        slots[..count]
            .iter()
            .flat_map(|piece| piece.to_vec())
            .collect()
    }

    #[test]
    fn bytes_come_out_in_order_and_memory_is_given_back() {
        let mut backlog = Backlog::default();
        backlog.push(b"one");
        backlog.push(&[7; 5000]);
        backlog.push(b"two");
        assert_eq!(backlog.len(), 5006);
        assert!(backlog.allocated() >= 5006);
        backlog.advance(2);
        let mut expected = b"e".to_vec();
        expected.extend_from_slice(&[7; 5000]);
        expected.extend_from_slice(b"two");
        assert_eq!(content(&backlog), expected);
        backlog.advance(1 + 5000);
        assert_eq!(content(&backlog), b"two");
        backlog.advance(3);
        assert!(backlog.is_empty());
        assert_eq!(backlog.allocated(), 0);
    }
}
