//! Dials of further sessions, which new streams may wait for rather than be carried beside a bulk transfer.
//!
//! On a path with loss, everything in one connection waits for each lost packet, for as long as the stream lives. So where the path is
//! long, a stream waits a moment if a session without bulk transfers is about to be up.

use std::time::{Duration, Instant};

/// A server is far from so long a time to connect on: there a dial takes so long that bulk transfers should be foreseen.
pub(crate) const FAR: Duration = Duration::from_millis(20);

/// A stream to a server that is far, which moves so many bytes within some seconds, may become a bulk transfer: the second flight
/// of slow start gets it there, twenty packets (RFC 6928), while the first one often comes with the server's answer and does not count.
pub(crate) const EARLY_BULK: u64 = 24 << 10;

/// In quarters of a round trip. A dial takes three (TCP, TLS, the WebSocket), and some time at both ends.
const DIAL_QUARTERS: u32 = 13;

/// A stream waits so many round trips at most, and so long: what is further away is not worth it, and may not come.
const WAIT_ROUND_TRIPS: u32 = 3;
const WAIT_MAX: Duration = Duration::from_millis(500);

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

    /// Until when it is worth waiting for one to this server, if it is. `distance`: a round trip.
    pub(crate) fn worth_waiting_for(
        &self,
        upstream: u32,
        distance: Duration,
        now: Instant,
    ) -> Option<Instant> {
        if distance < FAR {
            return None;
        }
        let most = (distance * WAIT_ROUND_TRIPS).min(WAIT_MAX);
        self.0
            .iter()
            .filter(|dial| dial.upstream == upstream)
            .map(|dial| dial.begun + distance * DIAL_QUARTERS / 4)
            .filter(|&up| up > now && up <= now + most)
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISTANCE: Duration = Duration::from_millis(80);

    #[test]
    fn a_dial_is_waited_for_when_it_is_about_to_be_up_and_not_before_or_after() {
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
        assert_eq!(wait(&dials, 20), Some(260));
        assert_eq!(wait(&dials, 259), Some(260));
        assert_eq!(wait(&dials, 260), None);
        dials.end(7);
        assert_eq!(wait(&dials, 200), None);
    }

    #[test]
    fn nobody_waits_on_a_short_path_nor_for_another_server_nor_longer_than_half_a_second() {
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
        assert!(dials.worth_waiting_for(0, long, start + long * 3).is_some());
    }
}
