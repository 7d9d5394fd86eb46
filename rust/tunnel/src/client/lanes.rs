//! Dials of further sessions, which new streams may wait for rather than be carried beside a bulk transfer.
//!
//! On a path with loss, everything in one connection waits for each lost packet, for as long as the stream lives. So where the path is
//! long, a stream waits a moment if a session without bulk transfers is about to be up.

use std::time::{Duration, Instant};

/// A server is far from so long a time to connect on: there a dial takes so long that bulk transfers should be foreseen.
pub(crate) const FAR: Duration = Duration::from_millis(20);

/// A stream to a server that is far, which moves so many bytes within some seconds, may become a bulk transfer. It is less than the
/// first flight of slow start (ten packets, RFC 6928), so that this flight is enough although one of its last packets was lost.
pub(crate) const EARLY_BULK: u64 = 8 << 10;

/// In quarters of a round trip. A dial takes three (TCP, TLS, the WebSocket), and some time at both ends.
const DIAL_QUARTERS: u32 = 13;

/// A stream waits for a dial that is expected within so many round trips, and within so long: what is further away is not worth it.
const WAIT_ROUND_TRIPS: u32 = 3;
const WAIT_MAX: Duration = Duration::from_millis(500);

/// It goes on waiting for a dial that is so many round trips late, and so long: one of its packets was lost and is sent again.
const LATE_ROUND_TRIPS: u32 = 2;
const LATE_MAX: Duration = Duration::from_millis(250);

/// The dials that are under way.
#[derive(Default)]
pub(crate) struct Dials(Vec<Dial>);

struct Dial {
    number: u64,
    upstream: u32,
    begun: Instant,
}

impl Dials {
    pub(crate) fn begin(&mut self, number: u64, upstream: u32, now: Instant) {
        self.0.push(Dial {
            number,
            upstream,
            begun: now,
        });
    }

    pub(crate) fn end(&mut self, number: u64) {
        self.0.retain(|dial| dial.number != number);
    }

    /// Until when it is worth waiting for one to this server, if it is: one that is expected soon, and then for some time more.
    /// `distance`: a round trip.
    pub(crate) fn worth_waiting_for(
        &self,
        upstream: u32,
        distance: Duration,
        now: Instant,
    ) -> Option<Instant> {
        if distance < FAR {
            return None;
        }
        let soon = now + (distance * WAIT_ROUND_TRIPS).min(WAIT_MAX);
        let late = (distance * LATE_ROUND_TRIPS).min(LATE_MAX);
        self.0
            .iter()
            .filter(|dial| dial.upstream == upstream)
            .map(|dial| dial.begun + distance * DIAL_QUARTERS / 4)
            .filter(|&expected| expected <= soon)
            .map(|expected| expected + late)
            .filter(|&until| until > now)
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISTANCE: Duration = Duration::from_millis(80);

    #[test]
    fn a_dial_is_waited_for_when_it_is_about_to_be_up_or_a_little_late_and_not_before_or_after() {
        let start = Instant::now();
        let mut dials = Dials::default();
        dials.begin(7, 0, start);
        let wait = |dials: &Dials, at: u64| {
            let now = start + Duration::from_millis(at);
            let until = dials.worth_waiting_for(0, DISTANCE, now);
            until.map(|until| until.duration_since(start).as_millis())
        };
        assert_eq!(wait(&dials, 0), None);
        assert_eq!(wait(&dials, 19), None);
        assert_eq!(wait(&dials, 20), Some(420));
        assert_eq!(wait(&dials, 261), Some(420));
        assert_eq!(wait(&dials, 419), Some(420));
        assert_eq!(wait(&dials, 420), None);
        dials.end(7);
        assert_eq!(wait(&dials, 200), None);
    }

    #[test]
    fn nobody_waits_on_a_short_path_nor_for_another_server_nor_for_what_is_far_off() {
        let start = Instant::now();
        let mut dials = Dials::default();
        dials.begin(7, 0, start);
        let short = Duration::from_millis(19);
        assert_eq!(dials.worth_waiting_for(0, short, start + short * 3), None);
        let later = start + DISTANCE * 2;
        assert!(dials.worth_waiting_for(0, DISTANCE, later).is_some());
        assert_eq!(dials.worth_waiting_for(1, DISTANCE, later), None);
        let long = Duration::from_secs(1);
        assert_eq!(dials.worth_waiting_for(0, long, start + long * 2), None);
        let wait = dials.worth_waiting_for(0, long, start + long * 3);
        assert_eq!(wait, Some(start + long * DIAL_QUARTERS / 4 + LATE_MAX));
    }
}
