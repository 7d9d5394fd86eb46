//! Log lines about what may happen thousands of times a second: at most one a minute, with a count.

use std::time::{Duration, Instant};

use ech_workers_sync::Mutex;

/// Between two lines about the same thing.
const INTERVAL: Duration = Duration::from_secs(60);

/// Counts how often one thing happens, and says when it is time for a line about it.
#[derive(Debug, Default)]
pub(crate) struct Seldom(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    said: Option<Instant>,
    count: u64,
}

impl Seldom {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(State {
            said: None,
            count: 0,
        }))
    }

    /// It has happened. `Some`: a line is due; the number is how often it has happened since the last line.
    pub(crate) fn happened(&self) -> Option<u64> {
        self.happened_at(Instant::now())
    }

    fn happened_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock();
        state.count += 1;
        if state.said.is_some_and(|said| now < said + INTERVAL) {
            return None;
        }
        state.said = Some(now);
        Some(std::mem::take(&mut state.count))
    }
}

/// The end of such a line: how often it has happened.
pub(crate) fn times(count: u64) -> String {
    if count == 1 {
        String::new()
    } else {
        format!(" ({count} times since the last such line)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_line_a_minute_with_the_count() {
        let seldom = Seldom::default();
        let start = Instant::now();
        assert_eq!(seldom.happened_at(start), Some(1));
        for second in 1..60 {
            assert_eq!(
                seldom.happened_at(start + Duration::from_secs(second)),
                None
            );
        }
        assert_eq!(
            seldom.happened_at(start + Duration::from_secs(60)),
            Some(60)
        );
    }
}
