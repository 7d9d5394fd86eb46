//! What was counted so far, for each server, and for all of them together.

use std::collections::BTreeMap;
use std::sync::Arc;

use ech_workers_sync::Mutex;

use super::snapshot::UpstreamSnapshot;
use crate::counters::{Counter, Traffic};

/// Servers that are counted apart. A server that was taken out of the configuration gives its place to a new one.
const SERVERS_MAX: usize = 1024;

/// Of one server.
#[derive(Debug, Default)]
pub(crate) struct UpstreamTotals {
    pub(crate) dials: Counter,
    pub(crate) dials_failed: Counter,
    /// ECH rejections met with retry configurations.
    pub(crate) ech_retries: Counter,
    /// How long the last connection took to be made, in microseconds; 0 before the first.
    pub(crate) connect_us: Counter,
    /// What its sessions carried.
    pub(crate) traffic: Arc<Traffic>,
}

/// Of all servers.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    servers: BTreeMap<u32, Arc<UpstreamTotals>>,
    /// The sum of those that are not counted apart any more.
    gone: UpstreamSnapshot,
}

impl Totals {
    /// The counters of a server.
    pub(crate) fn of(&self, upstream: u32) -> Arc<UpstreamTotals> {
        let mut state = self.state.lock();
        if let Some(known) = state.servers.get(&upstream) {
            return Arc::clone(known);
        }
        if state.servers.len() >= SERVERS_MAX {
            state.give_up_one();
        }
        Arc::clone(state.servers.entry(upstream).or_default())
    }

    /// All of them together, and those of each server, by their numbers.
    pub(crate) fn snapshot(&self) -> (UpstreamSnapshot, Vec<UpstreamSnapshot>) {
        let state = self.state.lock();
        let servers = state.servers.iter();
        let each: Vec<_> = servers.map(|(&number, of)| of.snapshot(number)).collect();
        let all = each.iter().fold(state.gone.clone(), |sum, of| sum.plus(of));
        (all, each)
    }
}

impl State {
    /// The oldest server that nothing counts for at this moment.
    fn give_up_one(&mut self) {
        let resting = |of: &UpstreamTotals| Arc::strong_count(&of.traffic) == 1;
        let mut servers = self.servers.iter();
        let oldest = servers.find(|(_, of)| Arc::strong_count(of) == 1 && resting(of));
        if let Some((&number, _)) = oldest
            && let Some(of) = self.servers.remove(&number)
        {
            self.gone = self.gone.plus(&of.snapshot(0));
        }
    }
}

impl UpstreamTotals {
    fn snapshot(&self, upstream: u32) -> UpstreamSnapshot {
        UpstreamSnapshot {
            upstream,
            dials_total: self.dials.value(),
            dials_failed: self.dials_failed.value(),
            ech_retries: self.ech_retries.value(),
            connect: self.connect_us.duration(),
            bytes_up: self.traffic.up.value(),
            bytes_down: self.traffic.down.value(),
        }
    }
}

impl UpstreamSnapshot {
    fn plus(&self, other: &Self) -> Self {
        Self {
            upstream: self.upstream,
            dials_total: self.dials_total + other.dials_total,
            dials_failed: self.dials_failed + other.dials_failed,
            ech_retries: self.ech_retries + other.ech_retries,
            // Nothing that can be added up.
            connect: None,
            bytes_up: self.bytes_up + other.bytes_up,
            bytes_down: self.bytes_down + other.bytes_down,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_that_of_the_servers_and_of_those_that_are_gone() {
        let totals = Totals::default();
        let held = totals.of(0);
        held.dials.add(1);
        let (first, last) = (1, u32::try_from(SERVERS_MAX).unwrap());
        for number in first..=last {
            let of = totals.of(number);
            of.dials.add(2);
            of.dials_failed.add(1);
            of.traffic.up.add(u64::from(number));
        }
        let (all, each) = totals.snapshot();
        assert_eq!(each.len(), SERVERS_MAX);
        // The first is still counted for; the second gave its place to the last.
        assert_eq!(
            (each[0].upstream, each[1].upstream),
            (0, 2),
            "{:?}",
            &each[..2]
        );
        let others = u64::from(last);
        assert_eq!(
            (all.dials_total, all.dials_failed),
            (1 + 2 * others, others)
        );
        assert_eq!(all.bytes_up, others * (others + 1) / 2);
        assert_eq!(each.last().unwrap().bytes_up, others);
    }

    #[test]
    fn a_server_that_comes_back_is_the_same() {
        let totals = Totals::default();
        totals.of(7).ech_retries.add(1);
        totals.of(7).traffic.down.add(5);
        let (all, each) = totals.snapshot();
        assert_eq!((all.ech_retries, all.bytes_down, each.len()), (1, 5, 1));
    }
}
