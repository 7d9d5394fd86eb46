//! Who may be connected to the server: separate bounds for connections in their handshake, web visitors and authenticated
//! sessions, so that strangers cannot take the places of those who have a token.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use ech_workers_sync::Mutex;
use tokio::sync::Notify;

use crate::descriptors::Budget;
use crate::failure::{Code, Layer};
use crate::seldom::{Seldom, times};
use crate::server::served::{Served, ServedSession};

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

    /// Other limits, for those who come from now on.
    pub(crate) fn resize(&self, budget: &Budget) {
        self.handshakes.set_limit(budget.handshakes);
        self.visitors.set_limit(budget.visitors);
        self.sessions.set_limit(budget.sessions);
    }
}

/// The connections of one kind, at most a certain number of them. When the room is full, a newcomer takes the place of the
/// oldest connection of the address prefix that has the most: whoever opens many connections ends their own.
///
/// Of sessions those without streams go first, and none with streams goes for another one of its own address: a client that
/// wants one more than there is room for would cut its own traffic.
#[derive(Debug)]
pub(crate) struct Room {
    kind: Kind,
    limit: AtomicUsize,
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

impl Kind {
    /// Where they are.
    const fn layer(self) -> Layer {
        match self {
            Self::Handshakes => Layer::Tls,
            Self::Visitors | Self::Sessions => Layer::WebSocket,
        }
    }

    /// That there are as many of them as there may be.
    const fn full(self) -> Code {
        match self {
            Self::Handshakes | Self::Visitors => Code::TooManyConnections,
            Self::Sessions => Code::ServerFull,
        }
    }
}

#[derive(Debug, Default)]
struct Table {
    len: usize,
    /// The number of the connection that came last.
    last: u64,
    /// The connections of each prefix by their number, oldest first.
    prefixes: HashMap<Prefix, BTreeMap<u64, Arc<Occupant>>>,
    /// How many connections each prefix has.
    sizes: BTreeSet<(usize, Prefix)>,
}

/// One connection in a room.
#[derive(Debug, Default)]
pub(crate) struct Occupant {
    /// Its place is needed.
    ending: Notify,
    /// Set when it is a session.
    served: OnceLock<Served>,
}

impl Occupant {
    fn is_idle(&self, now: Instant) -> bool {
        self.served.get().is_none_or(|served| served.is_idle(now))
    }
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
            limit: AtomicUsize::new(limit.max(1)),
            table: Mutex::default(),
            full: Seldom::default(),
        })
    }

    fn set_limit(&self, limit: usize) {
        self.limit.store(limit.max(1), Ordering::Relaxed);
    }

    /// The sessions, at most `most` of them, those that have carried the most first.
    pub(crate) fn sessions(&self, most: usize) -> Vec<ServedSession> {
        let now = Instant::now();
        let occupants: Vec<_> = {
            let table = self.table.lock();
            let all = table.prefixes.values().flatten();
            all.map(|(&number, occupant)| (number, Arc::clone(occupant)))
                .collect()
        };
        let mut found: Vec<_> = occupants
            .iter()
            .filter_map(|(number, occupant)| Some(occupant.served.get()?.snapshot(*number, now)))
            .collect();
        found.sort_by_key(|one| {
            std::cmp::Reverse((one.bytes_up.saturating_add(one.bytes_down), one.age))
        });
        found.truncate(most);
        found
    }

    /// A place for a connection of this address, which may end another connection.
    ///
    /// `None` only for a session: when every address has at most one, because what is established there is not ended for a
    /// stranger; and when all that the address itself could give up have streams.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let prefix = Prefix::from(address);
        let mut table = self.table.lock();
        if table.len >= self.limit.load(Ordering::Relaxed) {
            let said = self.full.happened();
            let Some(ending) = table.displace(prefix, self.kind) else {
                drop(table);
                if let Some(count) = said {
                    tracing::warn!(
                        layer = self.kind.layer().name(),
                        code = self.kind.full().as_str(),
                        "a session was refused: there are {}, of as many addresses or with streams that it would cut{}; \
                         --max-sessions sets how many there may be",
                        self.limit.load(Ordering::Relaxed),
                        times(count)
                    );
                }
                return None;
            };
            ending.ending.notify_one();
            if let Some(count) = said {
                self.say_full(count);
            }
        }
        table.last += 1;
        let number = table.last;
        table.len += 1;
        let occupant = Arc::<Occupant>::default();
        table.change(prefix, |connections| {
            connections.insert(number, Arc::clone(&occupant));
        });
        Some(Place {
            room: Arc::clone(self),
            prefix,
            number,
            occupant,
        })
    }

    fn say_full(&self, count: u64) {
        let (limit, times) = (self.limit.load(Ordering::Relaxed), times(count));
        let (layer, code) = (self.kind.layer().name(), self.kind.full().as_str());
        match self.kind {
            Kind::Handshakes => tracing::warn!(
                layer,
                code,
                "the oldest connection without a finished handshake was ended for a new one: there are {limit}{times}"
            ),
            Kind::Visitors => tracing::warn!(
                layer,
                code,
                "the oldest web visitor was ended for a new one: there are {limit}{times}"
            ),
            Kind::Sessions => tracing::warn!(
                layer,
                code,
                "a session of the address with the most was ended for a new one: there are {limit}{times}; \
                 --max-sessions sets how many there may be"
            ),
        }
    }
}

impl Table {
    /// Changes the connections of one prefix and keeps the sizes right.
    fn change(&mut self, prefix: Prefix, change: impl FnOnce(&mut BTreeMap<u64, Arc<Occupant>>)) {
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

    /// Takes the place of a connection of the prefix that has the most, and returns that one, which is to end.
    fn displace(&mut self, newcomer: Prefix, kind: Kind) -> Option<Arc<Occupant>> {
        let own = self.prefixes.get(&newcomer).map_or(0, BTreeMap::len);
        let &(most, largest) = self.sizes.last()?;
        // Among equals those of the newcomer's own address go first.
        let victim = if own == most { newcomer } else { largest };
        if kind != Kind::Sessions {
            return self.oldest_of(victim);
        }
        if victim != newcomer && most > own + 1 {
            return match self.idle_of(victim) {
                Some(idle) => Some(idle),
                None => self.oldest_of(victim),
            };
        }
        self.idle_of(newcomer)
    }

    fn oldest_of(&mut self, prefix: Prefix) -> Option<Arc<Occupant>> {
        let (&oldest, _) = self.prefixes.get(&prefix)?.first_key_value()?;
        self.take(prefix, oldest)
    }

    /// The oldest session of the prefix that nobody would miss.
    fn idle_of(&mut self, prefix: Prefix) -> Option<Arc<Occupant>> {
        let now = Instant::now();
        let mut own = self.prefixes.get(&prefix)?.iter();
        let (&idle, _) = own.find(|(_, occupant)| occupant.is_idle(now))?;
        self.take(prefix, idle)
    }

    fn take(&mut self, prefix: Prefix, number: u64) -> Option<Arc<Occupant>> {
        let mut taken = None;
        self.change(prefix, |connections| taken = connections.remove(&number));
        self.len -= usize::from(taken.is_some());
        taken
    }
}

/// A place in a [`Room`], given up when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    room: Arc<Room>,
    prefix: Prefix,
    number: u64,
    occupant: Arc<Occupant>,
}

impl Place {
    /// The connection is a session from now on.
    pub(crate) fn serve(&self, session: Served) {
        // It becomes one once.
        let _ = self.occupant.served.set(session);
    }

    /// The number of the connection in its room, from 1 on: that of the session, if it is one.
    pub(crate) const fn number(&self) -> u64 {
        self.number
    }

    /// The session, if it is one.
    pub(crate) fn served(&self) -> Option<&Served> {
        self.occupant.served.get()
    }

    /// Waits until the place is needed for a newer connection: this one has to end now.
    pub(crate) async fn lost(&self) {
        self.occupant.ending.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.room.table.lock();
        if table.prefixes.contains_key(&self.prefix) {
            table.take(self.prefix, self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;
    use proptest::prelude::*;

    use super::*;
    use crate::server::tokens::Tokens;

    fn v4(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    fn lost(place: &Place) -> bool {
        place.lost().now_or_never().is_some()
    }

    /// A session of this address with so many streams.
    fn session(room: &Arc<Room>, address: IpAddr, streams: u64) -> Option<Place> {
        let place = room.enter(address)?;
        let tokens = [("token".to_owned(), "ann".to_owned())];
        let holder = Tokens::new(&tokens, &Tokens::default())
            .unwrap()
            .find(b"token");
        place.serve(Served::new((address, 50_000).into(), holder.unwrap()));
        let stats = &place.served().unwrap().stats;
        stats.streams.add(streams);
        Some(place)
    }

    #[test]
    fn a_session_with_streams_is_not_ended_for_another_one_of_its_address() {
        let room = Room::new(Kind::Sessions, 3);
        let busy = session(&room, v4(1), 2).unwrap();
        let idle = session(&room, v4(1), 0).unwrap();
        let other = session(&room, v4(2), 1).unwrap();
        // The one without streams goes, though it is not the oldest.
        let newcomer = session(&room, v4(1), 1).unwrap();
        assert_eq!([&busy, &idle, &other].map(lost), [false, true, false]);
        assert!(session(&room, v4(1), 0).is_none());
        assert!(session(&room, v4(2), 0).is_none());
        assert_eq!([&busy, &other, &newcomer].map(lost), [false; 3]);
        // Its last stream has ended.
        busy.served().unwrap().stats.streams.sub(2);
        assert!(session(&room, v4(1), 0).is_some());
        assert!(lost(&busy));
    }

    #[test]
    fn an_address_that_has_more_than_its_part_gives_up_sessions_without_streams_first() {
        let room = Room::new(Kind::Sessions, 4);
        let streams = [3, 0, 1, 1];
        let greedy = streams.map(|streams| session(&room, v4(1), streams).unwrap());
        let first = session(&room, v4(2), 1).unwrap();
        assert_eq!(greedy.each_ref().map(lost), [false, true, false, false]);
        // Now all of them have streams, and every address has a right to some.
        let second = session(&room, v4(3), 1).unwrap();
        assert_eq!(greedy.each_ref().map(lost), [true, false, false, false]);
        assert_eq!([&first, &second].map(lost), [false, false]);
    }

    #[test]
    fn streams_of_a_client_that_is_silent_for_long_do_not_hold_its_place() {
        let room = Room::new(Kind::Sessions, 1);
        let gone = session(&room, v4(1), 1).unwrap();
        let served = gone.served().unwrap();
        let now = Instant::now();
        served.stats.heard.set(now);
        assert!(!served.is_idle(now + Duration::from_secs(30)));
        assert!(served.is_idle(now + Duration::from_secs(45)));
    }

    #[test]
    fn another_limit_counts_for_those_who_come() {
        let room = Room::new(Kind::Sessions, 1);
        let first = session(&room, v4(1), 1).unwrap();
        assert!(session(&room, v4(2), 1).is_none());
        room.set_limit(2);
        let second = session(&room, v4(2), 1).unwrap();
        assert!(session(&room, v4(3), 1).is_none());
        assert_eq!([&first, &second].map(lost), [false, false]);
    }

    #[test]
    fn the_list_of_sessions_has_the_busiest_first_and_an_end() {
        let room = Room::new(Kind::Sessions, 10);
        let held: Vec<_> = (1..=5)
            .filter_map(|last| session(&room, v4(last), 1))
            .collect();
        for (number, place) in held.iter().enumerate() {
            let served = place.served().unwrap();
            served.stats.traffic.up.add(number as u64);
            served.begin("yamux");
        }
        // A connection that is no session yet is not in it.
        let _early = room.enter(v4(9)).unwrap();
        let found = room.sessions(3);
        assert_eq!(
            found.iter().map(|one| one.bytes_up).collect::<Vec<_>>(),
            [4, 3, 2]
        );
        assert_eq!(
            (found[0].label.as_str(), found[0].mode),
            ("ann", Some("yamux"))
        );
        assert_eq!(room.sessions(100).len(), 5);
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
