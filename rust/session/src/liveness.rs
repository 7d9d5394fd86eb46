//! Keeps a quiet connection alive, and finds out when it is dead.
//!
//! Pings of the carrier (WebSocket) keep what lies between from cutting a quiet connection, at random times and with
//! payloads of random length, so that they have no period and no size to be recognised by. What lies between may answer
//! them for a server that is dead: so a yamux session also needs a proof of life from its other end, at least once a
//! minute. Data is one, and otherwise the answer to a yamux ping.

use std::time::{Duration, Instant};

use crate::random::Random;

/// The longest payload of a ping (RFC 6455 section 5.5).
const PAYLOAD_MAX: u64 = 125;
/// The proof of life is asked for between so and so long after the last one.
const PROOF_MIN: Duration = Duration::from_secs(33);
const PROOF_MAX: Duration = Duration::from_secs(50);
/// A session that reads nothing sends a ping between so and so long after the last one. Its peer takes it for dead when it has
/// heard nothing for 10 s (a client of ours) or 15 s (a server).
const PAUSED_MIN: Duration = Duration::from_secs(2);
const PAUSED_MAX: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Liveness {
    random: Random,
    /// The longest time between two pings.
    interval: Duration,
    /// How long an answer may take while nothing else arrives.
    timeout: Duration,
    next_ping: Option<Instant>,
    last_length: u64,
    /// The ping that was sent last, until it is answered. A peer may answer the last of several alone (RFC 6455 section
    /// 5.5.3).
    unanswered: Option<Unanswered>,
    last_received: Instant,
    /// When the other end of a yamux session must be asked for a proof of life.
    proof_due: Option<Instant>,
    state: State,
}

/// What of this is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    /// The session stands still because its local ends do. Nothing is read that could prove life of the peer, whose pings are
    /// not read either: so that it knows of life here, pings of ours go on, more often than it waits for answers.
    Paused,
    /// Nothing: the peer has closed the connection.
    Over,
}

#[derive(Debug, Clone)]
struct Unanswered {
    payload: Vec<u8>,
    at: Instant,
    /// When the first ping was sent that may not have been answered.
    since: Instant,
}

/// What is to be done now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// Send a ping of the carrier with this payload.
    Ping(Vec<u8>),
    /// Ask the other end of the session for a proof of life.
    Proof,
    /// The peer is dead.
    Dead,
}

impl Liveness {
    pub(crate) fn new(
        seed: u64,
        interval: Duration,
        timeout: Duration,
        end_to_end: bool,
        now: Instant,
    ) -> Self {
        let mut liveness = Self {
            random: Random::new(seed),
            interval,
            timeout,
            next_ping: None,
            last_length: PAYLOAD_MAX + 1,
            unanswered: None,
            last_received: now,
            proof_due: None,
            state: State::Running,
        };
        liveness.next_ping = liveness.draw(interval / 3, interval, now);
        if end_to_end {
            // The other end takes a session whose first bytes do not come for one that is not used.
            liveness.proof_due = liveness.draw(interval / 3, interval, now);
        }
        liveness
    }

    /// A moment between `least` and `most` from now. `None`: never.
    fn draw(&mut self, least: Duration, most: Duration, now: Instant) -> Option<Instant> {
        let span = u64::try_from(most.saturating_sub(least).as_micros()).unwrap_or(u64::MAX);
        let random = Duration::from_micros(self.random.below(span.max(1)));
        now.checked_add(least.checked_add(random)?)
    }

    /// Bytes arrived. `messages`: payload of the other end among them.
    pub(crate) fn received(&mut self, messages: bool, now: Instant) {
        self.last_received = now;
        if messages && self.proof_due.is_some() {
            self.proof_due = self.draw(PROOF_MIN, PROOF_MAX, now);
        }
    }

    /// An answer to a ping came: the round trip, if it answers the last one.
    pub(crate) fn pong(&mut self, payload: &[u8], now: Instant) -> Option<Duration> {
        let sent = self.unanswered.take_if(|sent| sent.payload == payload)?;
        Some(now.saturating_duration_since(sent.at))
    }

    /// Asks for a ping now.
    pub(crate) fn probe(&mut self, now: Instant) {
        self.next_ping = Some(now);
    }

    /// The session reads nothing from now on, and so learns nothing.
    pub(crate) fn pause(&mut self, now: Instant) {
        if self.state != State::Running {
            return;
        }
        self.state = State::Paused;
        if self.next_ping.is_some_and(|at| at > now + PAUSED_MAX) {
            self.next_ping = self.draw(PAUSED_MIN, PAUSED_MAX, now);
        }
    }

    /// It reads again.
    pub(crate) fn resume(&mut self, now: Instant) {
        if self.state != State::Paused {
            return;
        }
        self.state = State::Running;
        self.last_received = now;
        if let Some(sent) = &mut self.unanswered {
            sent.since = now;
        }
    }

    /// Nothing more is to be done.
    pub(crate) fn stop(&mut self) {
        self.state = State::Over;
    }

    /// When bytes arrived last.
    pub(crate) fn last_received(&self) -> Instant {
        self.last_received
    }

    /// When [`poll`](Self::poll) has something to do.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Running => [self.next_ping, self.dead_at(), self.proof_due]
                .into_iter()
                .flatten()
                .min(),
            State::Paused => self.next_ping,
            State::Over => None,
        }
    }

    fn dead_at(&self) -> Option<Instant> {
        let sent = self.unanswered.as_ref()?;
        self.last_received.max(sent.since).checked_add(self.timeout)
    }

    /// The next thing that is due.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Due> {
        match self.state {
            State::Running => {}
            State::Paused if self.next_ping.is_some_and(|at| at <= now) => {
                self.next_ping = self.draw(PAUSED_MIN, PAUSED_MAX, now);
                // Its answer is not waited for.
                return Some(Due::Ping(self.payload()));
            }
            State::Paused | State::Over => return None,
        }
        if self.dead_at().is_some_and(|at| at <= now) {
            return Some(Due::Dead);
        }
        if self.next_ping.is_some_and(|at| at <= now) {
            self.next_ping = self.draw(self.interval / 3, self.interval, now);
            let payload = self.payload();
            let since = self.unanswered.as_ref().map_or(now, |sent| sent.since);
            self.unanswered = Some(Unanswered {
                payload: payload.clone(),
                at: now,
                since,
            });
            return Some(Due::Ping(payload));
        }
        if self.proof_due.is_some_and(|at| at <= now) {
            self.proof_due = self.draw(PROOF_MIN, PROOF_MAX, now);
            return Some(Due::Proof);
        }
        None
    }

    /// Random bytes, never as many as the last time.
    fn payload(&mut self) -> Vec<u8> {
        let mut length = self.random.below(PAYLOAD_MAX);
        if length >= self.last_length {
            length += 1;
        }
        self.last_length = length;
        (0..length).map(|_| self.random.next() as u8).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(28);
    const TIMEOUT: Duration = Duration::from_secs(15);

    fn liveness(seed: u64, now: Instant) -> Liveness {
        Liveness::new(seed, INTERVAL, TIMEOUT, true, now)
    }

    #[test]
    fn pings_have_no_period_and_no_two_in_a_row_have_one_length() {
        let start = Instant::now();
        let mut liveness = liveness(7, start);
        let (mut last_ping, mut last_proof) = (start, start);
        let mut lengths = Vec::new();
        let mut gaps = Vec::new();
        let mut now = start;
        while lengths.len() < 300 {
            now = liveness.next_timeout().unwrap();
            match liveness.poll(now).unwrap() {
                Due::Ping(payload) => {
                    lengths.push(payload.len());
                    gaps.push(now - last_ping);
                    last_ping = now;
                    liveness.received(false, now);
                    if let Some(sent) = liveness.unanswered.clone() {
                        assert_eq!(liveness.pong(&sent.payload, now), Some(Duration::ZERO));
                    }
                }
                Due::Proof => {
                    assert!(now - last_proof < Duration::from_secs(60));
                    last_proof = now;
                    liveness.received(true, now);
                }
                Due::Dead => panic!("taken for dead"),
            }
        }
        assert!(now > start);
        assert!(lengths.windows(2).all(|two| two[0] != two[1]));
        assert!(lengths.iter().all(|&length| length <= 125));
        assert!(gaps.iter().all(|&gap| gap < Duration::from_secs(30)));
        gaps.sort();
        gaps.dedup();
        assert!(gaps.len() > 290, "the times repeat");
    }

    #[test]
    fn a_peer_that_answers_nothing_is_dead_and_one_that_sends_anything_is_not() {
        let start = Instant::now();
        let mut liveness = liveness(1, start);
        liveness.probe(start);
        assert!(matches!(liveness.poll(start), Some(Due::Ping(_))));
        liveness.received(false, start + TIMEOUT / 2);
        assert_ne!(liveness.poll(start + TIMEOUT), Some(Due::Dead));
        assert_eq!(
            liveness.poll(start + TIMEOUT / 2 + TIMEOUT),
            Some(Due::Dead)
        );
    }

    #[test]
    fn the_answer_to_the_last_of_several_pings_is_enough() {
        let start = Instant::now();
        let mut liveness = liveness(1, start);
        let mut last = Vec::new();
        for _ in 0..3 {
            liveness.probe(start);
            let Some(Due::Ping(payload)) = liveness.poll(start) else {
                panic!("no ping")
            };
            last = payload;
        }
        liveness.received(false, start);
        assert_eq!(liveness.pong(&last, start), Some(Duration::ZERO));
        assert_ne!(liveness.poll(start + TIMEOUT), Some(Due::Dead));
    }

    #[test]
    fn a_session_that_stands_still_is_not_taken_for_dead() {
        let start = Instant::now();
        let mut liveness = liveness(1, start);
        liveness.probe(start);
        liveness.poll(start);
        liveness.pause(start);
        let mut now = start;
        // The peer, which gets no answers meanwhile, hears from it sooner than it gives up.
        while now < start + TIMEOUT * 10 {
            let next = liveness.next_timeout().unwrap();
            assert!(next - now <= PAUSED_MAX, "{:?}", next - now);
            now = next;
            assert!(matches!(liveness.poll(now), Some(Due::Ping(_))));
            assert_eq!(liveness.poll(now), None);
        }
        liveness.resume(now);
        assert_ne!(liveness.poll(now), Some(Due::Dead));
    }

    #[test]
    fn a_session_that_stands_still_again_and_again_is_heard_of_as_often() {
        const STEP: Duration = Duration::from_millis(150);
        let start = Instant::now();
        let mut liveness = liveness(2, start);
        let (mut now, mut last_ping) = (start, start);
        while now < start + TIMEOUT * 20 {
            liveness.pause(now);
            while let Some(due) = liveness.poll(now) {
                assert!(matches!(due, Due::Ping(_) | Due::Proof), "{due:?}");
                if matches!(due, Due::Ping(_)) {
                    last_ping = now;
                }
            }
            assert!(
                now - last_ping <= PAUSED_MAX + STEP,
                "{:?}",
                now - last_ping
            );
            liveness.resume(now);
            now += STEP;
            liveness.received(true, now);
        }
    }

    #[test]
    fn nothing_is_due_when_the_peer_has_closed() {
        let start = Instant::now();
        let mut liveness = liveness(1, start);
        liveness.stop();
        liveness.pause(start);
        liveness.resume(start);
        assert_eq!(liveness.next_timeout(), None);
        assert_eq!(liveness.poll(start + TIMEOUT * 10), None);
    }

    #[test]
    fn an_answer_that_is_not_to_the_last_ping_measures_nothing() {
        let start = Instant::now();
        let mut liveness = liveness(3, start);
        liveness.probe(start);
        let Some(Due::Ping(payload)) = liveness.poll(start) else {
            panic!("no ping")
        };
        let mut other = payload.clone();
        other.push(0);
        assert_eq!(liveness.pong(&other, start), None);
        let later = start + Duration::from_millis(80);
        assert_eq!(
            liveness.pong(&payload, later),
            Some(Duration::from_millis(80))
        );
    }
}
