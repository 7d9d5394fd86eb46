//! Counters: relaxed atomics on the hot path, summed when somebody looks.

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

/// Bytes relayed: up from local programs to targets, down the other way.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Bytes from local programs to targets.
    pub up: Counter,
    /// Bytes from targets to local programs.
    pub down: Counter,
}
