//! Whose turn it is among servers that are equally full, so that connections which come one after the other are shared as well.

use std::collections::BTreeMap;

/// The length of a turn of a server of weight 1.
const TURN: u64 = 1 << 20;

/// Start-time fair queueing: who takes a stream is out of turn for a time that is the shorter the larger its weight is.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    now: u64,
    /// When the last turn of each server ends.
    ends: BTreeMap<u32, u64>,
}

impl Turns {
    /// When the server's next turn begins; the least comes first.
    pub(crate) fn next(&self, server: u32) -> u64 {
        // Who was away has not saved up turns.
        self.ends
            .get(&server)
            .map_or(self.now, |&end| end.max(self.now))
    }

    /// The server takes a stream.
    pub(crate) fn take(&mut self, server: u32, weight: u32) {
        self.now = self.next(server);
        self.ends
            .insert(server, self.now + TURN / u64::from(weight.max(1)));
    }

    /// Only these servers are left.
    pub(crate) fn retain(&mut self, is_left: impl Fn(u32) -> bool) {
        self.ends.retain(|&server, _| is_left(server));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of so many streams each of these servers takes.
    fn shared(turns: &mut Turns, servers: &[(u32, u32)], streams: usize) -> Vec<usize> {
        let mut taken = vec![0; servers.len()];
        for _ in 0..streams {
            let order = |&place: &usize| turns.next(servers[place].0);
            let place = (0..servers.len()).min_by_key(order).unwrap();
            turns.take(servers[place].0, servers[place].1);
            taken[place] += 1;
        }
        taken
    }

    #[test]
    fn streams_are_shared_by_weight() {
        assert_eq!(
            shared(&mut Turns::default(), &[(0, 1), (7, 3), (9, 1)], 100),
            [20, 60, 20]
        );
    }

    #[test]
    fn a_server_that_was_away_makes_up_for_nothing() {
        let mut turns = Turns::default();
        shared(&mut turns, &[(0, 1)], 50);
        assert_eq!(shared(&mut turns, &[(0, 1), (1, 1)], 10), [5, 5]);
    }
}
