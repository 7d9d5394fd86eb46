//! Who may be connected to the server: separate bounds for connections in their handshake, web visitors and authenticated
//! sessions, so that strangers cannot take the places of those who have a token.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ech_workers_sync::Mutex;
use tokio::sync::Notify;

use crate::descriptors::Budget;
use crate::seldom::{Seldom, times};

/// The rooms of a server.
#[derive(Debug)]
pub(crate) struct Rooms {
    /// From the TCP connection to the end of the handshake.
    pub(crate) handshakes: Arc<Room>,
    /// From there to the end, or to an upgrade with a token.
    pub(crate) visitors: Arc<Room>,
    /// From that upgrade on.
    pub(crate) sessions: Arc<Room>,
}

impl Rooms {
    pub(crate) fn new(budget: &Budget) -> Self {
        Self {
            handshakes: Room::new(Kind::Handshakes, budget.handshakes),
            visitors: Room::new(Kind::Visitors, budget.visitors),
            sessions: Room::new(Kind::Sessions, budget.sessions),
        }
    }
}

/// The connections of one kind, at most a certain number of them. When the room is full, a newcomer takes the place of the
/// oldest connection of the address prefix that has the most: whoever opens many connections ends their own.
#[derive(Debug)]
pub(crate) struct Room {
    kind: Kind,
    limit: usize,
    table: Mutex<Table>,
    full: Seldom,
}

/// What the connections of a room are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Handshakes,
    Visitors,
    Sessions,
}

#[derive(Debug, Default)]
struct Table {
    len: usize,
    next: u64,
    /// The connections of each prefix by their number, oldest first.
    prefixes: HashMap<Prefix, BTreeMap<u64, Arc<Notify>>>,
    /// How many connections each prefix has.
    sizes: BTreeSet<(usize, Prefix)>,
}

/// What counts as one address: all of an IPv4 address, the first 56 bits of an IPv6 address, which is what one subscriber has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Prefix {
    V4(Ipv4Addr),
    V6(u64),
}

impl From<IpAddr> for Prefix {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(address) => Self::V6((u128::from(address) >> 72) as u64),
        }
    }
}

impl Room {
    pub(crate) fn new(kind: Kind, limit: usize) -> Arc<Self> {
        Arc::new(Self {
            kind,
            limit: limit.max(1),
            table: Mutex::default(),
            full: Seldom::default(),
        })
    }

    /// A place for a connection of this address, which may end another connection.
    ///
    /// `None` only for a session when every address has at most one: what is established there is not ended for a stranger.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let prefix = Prefix::from(address);
        let mut table = self.table.lock();
        let full = table.len >= self.limit;
        if full {
            let said = self.full.happened();
            let Some(ending) = table.displace(prefix, self.kind) else {
                drop(table);
                if let Some(count) = said {
                    tracing::warn!(
                        "a session was refused: there are {} of as many addresses{}; --max-sessions sets how many there may be",
                        self.limit,
                        times(count)
                    );
                }
                return None;
            };
            ending.notify_one();
            if let Some(count) = said {
                self.say_full(count);
            }
        }
        let number = table.next;
        table.next += 1;
        table.len += 1;
        let ending = Arc::new(Notify::new());
        table.change(prefix, |connections| {
            connections.insert(number, Arc::clone(&ending));
        });
        Some(Place {
            room: Arc::clone(self),
            prefix,
            number,
            ending,
        })
    }

    fn say_full(&self, count: u64) {
        let (limit, times) = (self.limit, times(count));
        match self.kind {
            Kind::Handshakes => tracing::warn!(
                "the oldest connection without a finished handshake was ended for a new one: there are {limit}{times}"
            ),
            Kind::Visitors => tracing::warn!(
                "the oldest web visitor was ended for a new one: there are {limit}{times}"
            ),
            Kind::Sessions => tracing::warn!(
                "the oldest session of the address with the most was ended for a new one: there are {limit}{times}; \
                 --max-sessions sets how many there may be"
            ),
        }
    }
}

impl Table {
    /// Changes the connections of one prefix and keeps the sizes right.
    fn change(&mut self, prefix: Prefix, change: impl FnOnce(&mut BTreeMap<u64, Arc<Notify>>)) {
        let connections = self.prefixes.entry(prefix).or_default();
        self.sizes.remove(&(connections.len(), prefix));
        change(connections);
        let size = connections.len();
        if size == 0 {
            self.prefixes.remove(&prefix);
        } else {
            self.sizes.insert((size, prefix));
        }
    }

    /// Takes the place of the oldest connection of the prefix that has the most, and returns how to end it.
    fn displace(&mut self, newcomer: Prefix, kind: Kind) -> Option<Arc<Notify>> {
        let own = self.prefixes.get(&newcomer).map_or(0, BTreeMap::len);
        let &(most, largest) = self.sizes.last()?;
        // Among equals those of the newcomer's own address go first.
        let victim = if own == most { newcomer } else { largest };
        if kind == Kind::Sessions && victim != newcomer && most <= own + 1 {
            if own == 0 {
                return None;
            }
            return self.oldest_of(newcomer);
        }
        self.oldest_of(victim)
    }

    fn oldest_of(&mut self, prefix: Prefix) -> Option<Arc<Notify>> {
        let mut oldest = None;
        self.change(prefix, |connections| oldest = connections.pop_first());
        let (_, ending) = oldest?;
        self.len -= 1;
        Some(ending)
    }
}

/// A place in a [`Room`], given up when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    room: Arc<Room>,
    prefix: Prefix,
    number: u64,
    ending: Arc<Notify>,
}

impl Place {
    /// Waits until the place is needed for a newer connection: this one has to end now.
    pub(crate) async fn lost(&self) {
        self.ending.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.room.table.lock();
        let (mut found, number) = (false, self.number);
        if table.prefixes.contains_key(&self.prefix) {
            table.change(self.prefix, |connections| {
                found = connections.remove(&number).is_some();
            });
        }
        if found {
            table.len -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use proptest::prelude::*;

    use super::*;

    fn v4(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    fn lost(place: &Place) -> bool {
        place.lost().now_or_never().is_some()
    }

    #[test]
    fn many_connections_of_one_address_do_not_keep_another_out() {
        let room = Room::new(Kind::Handshakes, 100);
        let flood: Vec<_> = (0..10_000).filter_map(|_| room.enter(v4(1))).collect();
        assert_eq!(flood.len(), 10_000);
        assert_eq!(flood.iter().filter(|place| !lost(place)).count(), 100);
        let others: Vec<_> = (2..42).filter_map(|last| room.enter(v4(last))).collect();
        let flood_again: Vec<_> = (0..1000).filter_map(|_| room.enter(v4(1))).collect();
        assert!(others.iter().all(|place| !lost(place)));
        assert_eq!(flood_again.iter().filter(|place| !lost(place)).count(), 60);
    }

    #[test]
    fn the_oldest_goes_first() {
        let room = Room::new(Kind::Visitors, 2);
        let first = room.enter(v4(1)).unwrap();
        let second = room.enter(v4(2)).unwrap();
        let third = room.enter(v4(2)).unwrap();
        assert!(!lost(&first));
        assert!(lost(&second));
        assert!(!lost(&third));
    }

    #[test]
    fn a_session_is_not_ended_for_a_stranger_when_every_address_has_one() {
        let room = Room::new(Kind::Sessions, 3);
        let held: Vec<_> = (1..4).filter_map(|last| room.enter(v4(last))).collect();
        assert!(room.enter(v4(9)).is_none());
        // Who comes again takes the place of their own old session.
        let again = room.enter(v4(2)).unwrap();
        assert_eq!(
            held.iter().map(lost).collect::<Vec<_>>(),
            [false, true, false]
        );
        drop(again);
        assert!(room.enter(v4(9)).is_some());
    }

    #[test]
    fn a_session_takes_the_place_of_the_oldest_of_the_address_with_the_most() {
        let room = Room::new(Kind::Sessions, 3);
        let greedy: Vec<_> = (0..3).filter_map(|_| room.enter(v4(1))).collect();
        let _other = room.enter(v4(2)).unwrap();
        assert_eq!(
            greedy.iter().map(lost).collect::<Vec<_>>(),
            [true, false, false]
        );
    }

    #[test]
    fn a_subscriber_of_ipv6_counts_as_one_address() {
        let prefix = |text: &str| Prefix::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(prefix("2001:db8:1:200::1"), prefix("2001:db8:1:2ff:ffff::"));
        assert_ne!(prefix("2001:db8:1:200::1"), prefix("2001:db8:1:300::1"));
        assert_eq!(prefix("::ffff:192.0.2.7"), prefix("192.0.2.7"));
        assert_ne!(prefix("192.0.2.7"), prefix("192.0.2.8"));
    }

    proptest! {
        /// Whoever comes and goes in whatever order: no more than the limit have a place, and nothing of those who left stays.
        #[test]
        fn the_limit_holds(limit in 1_usize..6, steps in proptest::collection::vec((0_u8..4, any::<bool>()), 1..100)) {
            for kind in [Kind::Handshakes, Kind::Visitors, Kind::Sessions] {
                let room = Room::new(kind, limit);
                let mut places: Vec<Place> = Vec::new();
                for &(address, enters) in &steps {
                    if enters {
                        places.extend(room.enter(v4(address)));
                    } else if !places.is_empty() {
                        places.remove(usize::from(address) % places.len());
                    }
                    let table = room.table.lock();
                    prop_assert!(table.len <= limit);
                    prop_assert_eq!(table.len, table.prefixes.values().map(BTreeMap::len).sum::<usize>());
                    prop_assert_eq!(table.sizes.len(), table.prefixes.len());
                }
                drop(places);
                let table = room.table.lock();
                prop_assert_eq!(table.len, 0);
                prop_assert!(table.prefixes.is_empty() && table.sizes.is_empty());
            }
        }
    }
}
