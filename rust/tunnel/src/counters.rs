//! Counters: relaxed atomics on the hot path, summed when somebody looks.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

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

    /// Replaces the value by a time in microseconds, at least one.
    pub(crate) fn set_duration(&self, time: Duration) {
        self.set(u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1));
    }

    /// The value as such a time; `None` while it is 0.
    pub(crate) fn duration(&self) -> Option<Duration> {
        Some(self.value())
            .filter(|&micros| micros > 0)
            .map(Duration::from_micros)
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

/// A moment that one task sets and others read.
#[derive(Debug, Default)]
pub struct Stamp(AtomicU64);

/// What stamps count from.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

impl Stamp {
    /// Replaces the moment.
    pub fn set(&self, moment: Instant) {
        let since = moment.saturating_duration_since(*EPOCH);
        // 0 stands for never.
        self.0.store(
            u64::try_from(since.as_micros()).unwrap_or(u64::MAX).max(1),
            Relaxed,
        );
    }

    /// The moment; `None` if there was none yet.
    pub fn moment(&self) -> Option<Instant> {
        match self.0.load(Relaxed) {
            0 => None,
            micros => Some(*EPOCH + Duration::from_micros(micros)),
        }
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
