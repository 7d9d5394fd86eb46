//! The time of a turn.

use std::time::{Duration, Instant};

/// How long a turn may take before the other sessions of the thread have theirs: a few of the largest batches that go
/// between a socket and the carrier, so that a small request beside many bulk transfers waits for tens of these at most.
const TURN: Duration = Duration::from_micros(200);

/// How much of a turn's time is left.
pub(crate) struct Budget<'a> {
    clock: &'a dyn Fn() -> Instant,
    until: Instant,
}

impl<'a> Budget<'a> {
    /// Of a turn that begins now, by this clock.
    pub(crate) fn new(clock: &'a dyn Fn() -> Instant, now: Instant) -> Self {
        Self {
            clock,
            until: now + TURN,
        }
    }

    pub(crate) fn is_spent(&self) -> bool {
        (self.clock)() >= self.until
    }
}
