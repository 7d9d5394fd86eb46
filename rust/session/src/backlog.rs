//! Bytes that an end has not taken yet.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::IoSlice;

/// The least that a chunk holds, so that many small payloads do not cost an allocation each.
const CHUNK_MIN: usize = 4096;

/// What a chunk holds that a larger payload is put into: the content of a TLS record.
const CHUNK: usize = 16 << 10;

/// So many empty chunks are kept for each thread, 1 MiB: an end that is filled and emptied again and again would otherwise
/// make the allocator give its memory back to the system and ask for it anew each time.
const SPARE_MAX: usize = 64;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// A piece of memory with bytes in it.
#[derive(Debug)]
struct Chunk(Vec<u8>);

impl Chunk {
    /// One that can hold `len` bytes.
    fn new(len: usize) -> Self {
        if len <= CHUNK_MIN || len > CHUNK {
            return Self(Vec::with_capacity(len.max(CHUNK_MIN)));
        }
        let spare = SPARE
            .try_with(|spare| spare.borrow_mut().pop())
            .ok()
            .flatten();
        Self(spare.unwrap_or_else(|| Vec::with_capacity(CHUNK)))
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if self.0.capacity() != CHUNK {
            return;
        }
        let mut memory = std::mem::take(&mut self.0);
        memory.clear();
        // A thread that is ending keeps none.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < SPARE_MAX {
                spare.push(memory);
            }
        });
    }
}

/// Bytes that wait for an end, in order.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    chunks: VecDeque<Chunk>,
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
            && last.0.capacity() - last.0.len() >= bytes.len()
        {
            last.0.extend_from_slice(bytes);
            return;
        }
        let mut chunk = Chunk::new(bytes.len());
        chunk.0.extend_from_slice(bytes);
        self.allocated += chunk.0.capacity();
        self.chunks.push_back(chunk);
    }

    /// The first bytes, in as many pieces as there are slots. Returns how many slots were filled.
    pub(crate) fn pieces<'a>(&'a self, slots: &mut [IoSlice<'a>]) -> usize {
        let mut count = 0;
        let mut start = self.start;
        for (slot, chunk) in slots.iter_mut().zip(&self.chunks) {
            *slot = IoSlice::new(chunk.0.get(start..).unwrap_or_default());
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
            let left = first.0.len() - self.start;
            if n < left {
                self.start += n;
                return;
            }
            n -= left;
            self.start = 0;
            self.allocated -= first.0.capacity();
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

    #[test]
    fn the_memory_of_large_payloads_is_used_again() {
        SPARE.with_borrow_mut(Vec::clear);
        let spare = || SPARE.with_borrow(Vec::len);
        let mut backlog = Backlog::default();
        for _ in 0..3 {
            backlog.push(&[1; CHUNK]);
        }
        assert_eq!(backlog.allocated(), 3 * CHUNK);
        backlog.advance(2 * CHUNK);
        assert_eq!((backlog.allocated(), spare()), (CHUNK, 2));
        backlog.push(&[2; 5000]);
        assert_eq!((backlog.allocated(), spare()), (2 * CHUNK, 1));
        backlog.advance(CHUNK);
        assert_eq!(content(&backlog), [2; 5000]);
        drop(backlog);
        assert_eq!(spare(), 3);
    }

    #[test]
    fn the_memory_that_is_kept_is_bounded() {
        SPARE.with_borrow_mut(Vec::clear);
        let mut backlog = Backlog::default();
        for _ in 0..2 * SPARE_MAX {
            backlog.push(&[0; CHUNK]);
        }
        // Too large, and too small, to be kept.
        backlog.push(&[0; 2 * CHUNK]);
        backlog.push(&[0; 10]);
        drop(backlog);
        assert_eq!(SPARE.with_borrow(Vec::len), SPARE_MAX);
    }
}
