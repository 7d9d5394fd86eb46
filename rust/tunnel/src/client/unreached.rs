//! Which targets a server could not reach: new streams to them go to other servers for a while, as far as there are any.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use ech_workers_session::Status;
use ech_workers_sync::Mutex;

/// How long a failure counts that comes from a server's rules or platform, and one that may pass.
const LASTING: Duration = Duration::from_secs(600);
const PASSING: Duration = Duration::from_secs(60);
/// Targets that are remembered; the one whose time is over first makes room.
const TARGETS_MAX: usize = 1024;

/// A server's number, and until when its failure counts.
type Server = (u32, Instant);

/// Targets, each with the servers that could not reach it, and until when that counts.
#[derive(Debug, Default)]
pub(crate) struct Unreached {
    targets: Mutex<HashMap<Vec<u8>, Vec<Server>>>,
}

impl Unreached {
    /// A server answered that it cannot reach a target. A limit of what it has left says nothing of the target.
    pub(crate) fn note(&self, target: &[u8], upstream: u32, status: Status, now: Instant) {
        let until = match status {
            Status::SocketLimit => return,
            Status::PlatformAddress | Status::NotAllowed => now + LASTING,
            _ => now + PASSING,
        };
        let mut targets = self.targets.lock();
        if targets.len() >= TARGETS_MAX && !targets.contains_key(target) {
            let last = |servers: &[Server]| servers.iter().map(|(_, until)| *until).max();
            targets.retain(|_, servers| last(servers).is_some_and(|until| until > now));
            if targets.len() >= TARGETS_MAX
                && let Some(first) = targets.iter().min_by_key(|(_, servers)| last(servers))
            {
                let first = first.0.clone();
                targets.remove(&first);
            }
        }
        let servers = targets.entry(target.to_vec()).or_default();
        servers.retain(|&(number, until)| number != upstream && until > now);
        servers.push((upstream, until));
    }

    /// The servers that could not reach a target a short while ago.
    pub(crate) fn of(&self, target: &[u8], now: Instant) -> Vec<u32> {
        let targets = self.targets.lock();
        let Some(servers) = targets.get(target) else {
            return Vec::new();
        };
        let counting = servers.iter().filter(|(_, until)| *until > now);
        counting.map(|&(number, _)| number).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_remembered_for_a_target_for_as_long_as_the_reason_is_likely_to_last() {
        let (unreached, now) = (Unreached::default(), Instant::now());
        unreached.note(b"a.test:443", 1, Status::PlatformAddress, now);
        unreached.note(b"a.test:443", 2, Status::TimedOut, now);
        unreached.note(b"b.test:443", 1, Status::SocketLimit, now);
        assert_eq!(unreached.of(b"a.test:443", now), [1, 2]);
        assert_eq!(unreached.of(b"a.test:443", now + PASSING), [1]);
        assert_eq!(unreached.of(b"a.test:443", now + LASTING), []);
        assert_eq!(unreached.of(b"b.test:443", now), []);
    }

    #[test]
    fn the_number_of_targets_is_bounded_and_the_oldest_goes_first() {
        let (unreached, now) = (Unreached::default(), Instant::now());
        for number in 0..2 * TARGETS_MAX as u64 {
            let at = now + Duration::from_millis(number);
            let target = format!("{number}.test:1");
            unreached.note(target.as_bytes(), 1, Status::TimedOut, at);
        }
        assert_eq!(unreached.targets.lock().len(), TARGETS_MAX);
        assert_eq!(unreached.of(b"0.test:1", now), []);
        assert_eq!(unreached.of(b"2047.test:1", now), [1]);
    }
}
