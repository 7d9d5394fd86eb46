//! Record buffers, lent while there is something in them.
//!
//! An idle stream holds none: 2,000 idle sessions would otherwise keep 800 MB. The pool is the thread's own, so lending
//! one is a push and a pop without a lock; what a thread does not need at once goes back to the system.

use std::cell::RefCell;

use crate::record::{MAX_PLAINTEXT, OVERHEAD};

/// Several records a system call, and what is left of the last one moved to the front at most once a fill. 128 KiB
/// measured no worse than 256 KiB.
pub(crate) const READ_CAPACITY: usize = 128 * 1024;

/// Records gathered for one system call: 16 cost a tenth less than 4, more than 16 nothing less.
pub(crate) const GATHERED_RECORDS: usize = 16;

/// Room behind the gathered records for a KeyUpdate and an alert, so that these never wait for room.
pub(crate) const CONTROL_ROOM: usize = 128;

/// The gathering buffer.
pub(crate) const WRITE_CAPACITY: usize =
    GATHERED_RECORDS * (MAX_PLAINTEXT + OVERHEAD) + CONTROL_ROOM;

/// Kept for each thread and kind. Enough for the streams that are busy in the same moment; the rest is freed.
const KEPT: usize = 4;

thread_local! {
    static READ: RefCell<Vec<Buffer>> = const { RefCell::new(Vec::new()) };
    static WRITE: RefCell<Vec<Buffer>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of one of the two capacities.
pub(crate) type Buffer = Box<[u8]>;

/// A buffer of [`READ_CAPACITY`]; what is in it is left from another use.
pub(crate) fn take_read() -> Buffer {
    take(&READ, READ_CAPACITY)
}

/// Gives a buffer of [`take_read`] back.
pub(crate) fn give_read(buffer: Buffer) {
    give(&READ, buffer);
}

/// A buffer of [`WRITE_CAPACITY`]; what is in it is left from another use.
pub(crate) fn take_write() -> Buffer {
    take(&WRITE, WRITE_CAPACITY)
}

/// Gives a buffer of [`take_write`] back.
pub(crate) fn give_write(buffer: Buffer) {
    give(&WRITE, buffer);
}

type Pool = std::thread::LocalKey<RefCell<Vec<Buffer>>>;

fn take(pool: &'static Pool, capacity: usize) -> Buffer {
    // A stream may be dropped while its thread ends, after the pool: then there is no pool, only the system.
    pool.try_with(|pool| pool.borrow_mut().pop())
        .ok()
        .flatten()
        .unwrap_or_else(|| vec![0; capacity].into_boxed_slice())
}

fn give(pool: &'static Pool, buffer: Buffer) {
    let _ = pool.try_with(|pool| {
        let mut pool = pool.borrow_mut();
        if pool.len() < KEPT {
            pool.push(buffer);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_keeps_a_few_buffers_and_frees_the_rest() {
        let lent: Vec<_> = (0..10).map(|_| take_read()).collect();
        assert!(lent.iter().all(|buffer| buffer.len() == READ_CAPACITY));
        lent.into_iter().for_each(give_read);
        assert_eq!(READ.with(|pool| pool.borrow().len()), KEPT);
        assert_eq!(take_write().len(), WRITE_CAPACITY);
    }
}
