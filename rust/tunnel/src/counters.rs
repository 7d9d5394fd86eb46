//! Counters: relaxed atomics on the hot path, summed when somebody looks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A number that many tasks change and few read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// Takes `n` away.
    pub fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Relaxed);
    }

    /// Replaces the value.
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    /// The value now.
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// One of those that a counter counts, from its creation to its drop.
#[derive(Debug)]
pub(crate) struct Counted(Arc<Counter>);

impl Counted {
    pub(crate) fn new(counter: &Arc<Counter>) -> Self {
        counter.add(1);
        Self(Arc::clone(counter))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.sub(1);
    }
}

/// A number for each ECH configuration id; there are 256 of them (RFC 9849 section 4).
#[derive(Debug)]
pub struct ByConfigId([Counter; 256]);

impl Default for ByConfigId {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl ByConfigId {
    /// Counts one more for `id`.
    pub fn add(&self, id: u8) {
        self.0[usize::from(id)].add(1);
    }

    /// The ids that were counted at least once.
    pub fn counted(&self) -> impl Iterator<Item = (u8, u64)> {
        (0..=u8::MAX)
            .zip(self.0.iter().map(Counter::value))
            .filter(|&(_, count)| count > 0)
    }
}

/// Bytes relayed: up from local programs to targets, down the other way.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Bytes from local programs to targets.
    pub up: Counter,
    /// Bytes from targets to local programs.
    pub down: Counter,
}
