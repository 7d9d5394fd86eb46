//! How far away the peer is, by the answers to pings.

use std::time::{Duration, Instant};

/// What is measured while fewer bytes than this are carried is the round trip of the path, without a queue of ours.
const QUIET: u64 = 64 << 10;

/// Round trips that were measured.
#[derive(Debug, Default)]
pub(crate) struct Distance {
    latest: Option<Duration>,
    path: Option<Duration>,
    /// How many bytes had been carried when the last ping was sent.
    asked: u64,
    /// When the last question was sent that was answered.
    answered: Option<Instant>,
}

impl Distance {
    /// A ping is sent. `carried`: bytes so far.
    pub(crate) fn ask(&mut self, carried: u64) {
        self.asked = carried;
    }

    /// An answer has come. `carried`: bytes so far.
    pub(crate) fn note(&mut self, measured: Duration, carried: u64, now: Instant) {
        self.latest = Some(measured);
        self.answered = now.checked_sub(measured).max(self.answered);
        let is_quiet = carried.saturating_sub(self.asked) < QUIET;
        if is_quiet || self.path.is_none_or(|path| measured < path) {
            self.path = Some(measured);
        }
    }

    /// When the last question was sent that was answered.
    pub(crate) fn answered(&self) -> Option<Instant> {
        self.answered
    }

    /// What was measured last.
    pub(crate) fn latest(&self) -> Option<Duration> {
        self.latest
    }

    /// The last that was measured without a queue of ours, or a shorter one with it.
    pub(crate) fn path(&self) -> Option<Duration> {
        self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_as_long_as_was_measured_last_without_our_own_queue_or_shorter() {
        let mut distance = Distance::default();
        assert_eq!((distance.latest(), distance.path()), (None, None));
        let mut carried = 0;
        for (measured, meanwhile, path) in [
            (50, QUIET, 50),
            (300, QUIET, 50),
            (300, QUIET - 1, 300),
            (400, QUIET, 300),
            (40, QUIET, 40),
            (60, 0, 60),
        ] {
            distance.ask(carried);
            carried += meanwhile;
            let (sent, measured) = (Instant::now(), Duration::from_millis(measured));
            distance.note(measured, carried, sent + measured);
            assert_eq!(distance.latest(), Some(measured));
            assert_eq!(distance.answered(), Some(sent));
            assert_eq!(distance.path(), Some(Duration::from_millis(path)));
        }
    }
}
