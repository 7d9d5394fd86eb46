//! Pings: they keep the session alive, find that it is dead, and measure the round trip.

use std::time::{Duration, Instant};

/// While streams are busy a new measurement is wanted when the last is older than this.
const REFRESH: Duration = Duration::from_secs(1);

/// A measurement during which fewer bytes than this went over the session is one of the path without our own queue.
const QUIET: u64 = 64 * 1024;

/// How many times `ping_timeout` an answer may take while other bytes arrive.
const PATIENCE: u32 = 4;

#[derive(Debug)]
pub(crate) struct KeepAlive {
    state: State,
    next_id: u32,
    interval: Duration,
    timeout: Duration,
    latest: Option<Duration>,
    base: Option<Duration>,
}

#[derive(Debug)]
enum State {
    Idle {
        since: Instant,
    },
    Due {
        since: Instant,
    },
    Sent {
        id: u32,
        since: Instant,
        at: Instant,
        traffic: u64,
    },
}

impl KeepAlive {
    /// The first ping is due at once, so that windows can grow from the first stream on; with an endless interval only
    /// those are made that somebody asks for.
    pub(crate) fn new(interval: Duration, timeout: Duration, now: Instant) -> Self {
        let state = if interval == Duration::MAX {
            State::Idle { since: now }
        } else {
            State::Due { since: now }
        };
        Self {
            state,
            next_id: 0,
            interval,
            timeout,
            latest: None,
            base: None,
        }
    }

    /// Makes a ping due, unless one is under way.
    pub(crate) fn request(&mut self, now: Instant) {
        if let State::Idle { .. } = self.state {
            self.state = State::Due { since: now };
        }
    }

    /// Makes a ping due if the last measurement is old.
    pub(crate) fn refresh(&mut self, now: Instant) {
        if let State::Idle { since } = self.state
            && now.saturating_duration_since(since) >= REFRESH
        {
            self.state = State::Due { since: now };
        }
    }

    pub(crate) fn is_due(&self) -> bool {
        matches!(self.state, State::Due { .. })
    }

    /// The id of a ping that is due; it counts as sent. `traffic` is the number of bytes the session has carried.
    pub(crate) fn poll(&mut self, traffic: u64, now: Instant) -> Option<u32> {
        let State::Due { since } = self.state else {
            return None;
        };
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        self.state = State::Sent {
            id,
            since,
            at: now,
            traffic,
        };
        Some(id)
    }

    /// The round trip, if this answers the ping under way.
    pub(crate) fn pong(&mut self, answered: u32, traffic: u64, now: Instant) -> Option<Duration> {
        let State::Sent {
            id,
            at,
            traffic: before,
            ..
        } = self.state
        else {
            return None;
        };
        if id != answered {
            return None;
        }
        self.state = State::Idle { since: now };
        let sample = now.saturating_duration_since(at);
        let quiet = traffic.saturating_sub(before) < QUIET;
        self.latest = Some(sample);
        self.base = Some(match self.base {
            None => sample,
            Some(base) if sample <= base => sample,
            // The path may have become longer, or the peer was slow to answer once: follow with a gain of 1/8, as the
            // smoothed round trip of RFC 6298 section 2 does.
            Some(base) if quiet => base + (sample - base) / 8,
            Some(base) => base,
        });
        Some(sample)
    }

    /// A round trip that was measured without a ping, by the first exchange on the session.
    pub(crate) fn exchanged(&mut self, sample: Duration) {
        if self.latest.is_none() {
            self.latest = Some(sample);
            self.base = Some(sample);
        }
    }

    /// Gives a ping under way all its time again.
    pub(crate) fn excuse(&mut self, now: Instant) {
        if let State::Due { since } | State::Sent { since, .. } = &mut self.state {
            *since = now;
        }
    }

    /// The last measured round trip.
    pub(crate) fn round_trip(&self) -> Option<Duration> {
        self.latest
    }

    /// The round trip that window sizes are measured against: of the path, with little of the queue that windows of ours
    /// make on it. Windows that followed the queue would only make it deeper, and small requests would wait behind it.
    pub(crate) fn window_round_trip(&self) -> Option<Duration> {
        let (latest, base) = (self.latest?, self.base?);
        Some(latest.min(base + base / 4))
    }

    /// When [`Self::check`] has something to do, given when bytes last arrived. `None` is never.
    pub(crate) fn deadline(&self, last_received: Instant) -> Option<Instant> {
        match self.state {
            State::Idle { since } => since.checked_add(self.interval),
            State::Due { since } | State::Sent { since, .. } => {
                let last = since.checked_add(self.timeout.saturating_mul(PATIENCE));
                let quiet = since.max(last_received).checked_add(self.timeout);
                match (quiet, last) {
                    (Some(quiet), Some(last)) => Some(quiet.min(last)),
                    (either, None) | (None, either) => either,
                }
            }
        }
    }

    /// Makes a ping due when it is time. False when the peer must be taken for dead.
    pub(crate) fn check(&mut self, last_received: Instant, now: Instant) -> bool {
        if self.deadline(last_received).is_none_or(|at| now < at) {
            return true;
        }
        match self.state {
            State::Idle { .. } => {
                self.state = State::Due { since: now };
                true
            }
            State::Due { .. } | State::Sent { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(20);
    const TIMEOUT: Duration = Duration::from_secs(15);

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn measured(keep_alive: &mut KeepAlive, start: Instant, round_trip: Duration, traffic: u64) {
        keep_alive.request(start);
        let id = keep_alive.poll(0, start).unwrap();
        assert_eq!(
            keep_alive.pong(id, traffic, start + round_trip),
            Some(round_trip)
        );
    }

    #[test]
    fn the_first_ping_measures_at_once_and_the_next_comes_after_the_interval() {
        let start = Instant::now();
        let mut keep_alive = KeepAlive::new(INTERVAL, TIMEOUT, start);
        assert_eq!(keep_alive.poll(0, start), Some(0));
        assert_eq!(keep_alive.poll(0, start), None);
        assert_eq!(keep_alive.pong(0, 0, start + ms(80)), Some(ms(80)));
        assert_eq!(keep_alive.deadline(start), Some(start + ms(80) + INTERVAL));
        assert!(keep_alive.check(start, start + ms(80) + INTERVAL));
        assert_eq!(keep_alive.poll(0, start + INTERVAL + ms(80)), Some(1));
    }

    #[test]
    fn a_silent_peer_is_dead_after_the_timeout_and_a_busy_one_only_much_later() {
        let start = Instant::now();
        let mut keep_alive = KeepAlive::new(INTERVAL, TIMEOUT, start);
        keep_alive.poll(0, start);
        assert!(keep_alive.check(start, start + TIMEOUT - ms(1)));
        assert!(!keep_alive.check(start, start + TIMEOUT));
        let later = start + TIMEOUT * 2;
        assert!(keep_alive.check(later, later + ms(1)));
        let last = start + TIMEOUT * PATIENCE;
        assert!(!keep_alive.check(last, last));
    }

    #[test]
    fn a_ping_that_cannot_even_be_sent_ends_the_session_too() {
        let start = Instant::now();
        let mut keep_alive = KeepAlive::new(INTERVAL, TIMEOUT, start);
        assert!(!keep_alive.check(start, start + TIMEOUT));
    }

    #[test]
    fn an_answer_to_nothing_and_a_wrong_answer_measure_nothing() {
        let start = Instant::now();
        let mut keep_alive = KeepAlive::new(INTERVAL, TIMEOUT, start);
        assert_eq!(keep_alive.pong(0, 0, start), None);
        let id = keep_alive.poll(0, start).unwrap();
        assert_eq!(keep_alive.pong(id + 1, 0, start), None);
        assert_eq!(keep_alive.round_trip(), None);
    }

    #[test]
    fn endless_times_in_the_configuration_mean_never() {
        let start = Instant::now();
        let mut keep_alive = KeepAlive::new(Duration::MAX, Duration::MAX, start);
        assert_eq!(keep_alive.deadline(start), None);
        keep_alive.poll(0, start);
        keep_alive.pong(0, 0, start);
        assert_eq!(keep_alive.deadline(start), None);
        assert!(keep_alive.check(start, start + Duration::from_secs(1 << 30)));
    }

    #[test]
    fn a_queue_of_our_own_making_does_not_pass_for_a_long_path() {
        let start = Instant::now();
        let mut keep_alive = KeepAlive::new(INTERVAL, TIMEOUT, start);
        measured(&mut keep_alive, start, ms(50), 0);
        measured(&mut keep_alive, start, ms(3000), 10 << 20);
        assert_eq!(
            keep_alive.window_round_trip(),
            Some(Duration::from_micros(62_500))
        );
        measured(&mut keep_alive, start, ms(60), 10 << 20);
        assert_eq!(keep_alive.window_round_trip(), Some(ms(60)));
        let short = Duration::from_micros(90);
        measured(&mut keep_alive, start, short, 0);
        assert_eq!(keep_alive.window_round_trip(), Some(short));
    }

    #[test]
    fn a_path_that_became_longer_is_followed_by_quiet_measurements() {
        let start = Instant::now();
        let mut keep_alive = KeepAlive::new(INTERVAL, TIMEOUT, start);
        measured(&mut keep_alive, start, ms(50), 0);
        for _ in 0..40 {
            measured(&mut keep_alive, start, ms(900), 0);
        }
        assert!(keep_alive.window_round_trip() > Some(ms(850)));
    }
}
