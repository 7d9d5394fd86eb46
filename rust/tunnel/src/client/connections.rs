//! The local connections that are open, for a user who looks at them or ends one.
//!
//! Those who relay count in their own entry, without a lock; the list is locked when a connection comes or goes, and when
//! somebody looks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Waker;
use std::time::{Duration, Instant};

use ech_workers_sync::Mutex;

use crate::counters::Counter;

/// What carries a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carried {
    /// Nothing yet: it waits for a session, or for its target.
    Waiting,
    /// A session of this number, to the server of that number.
    Session(u64, u32),
    /// It goes straight to its target.
    Direct,
}

/// One connection at one moment.
#[derive(Debug, Clone)]
pub struct ConnectionSnapshot {
    /// Its number, never used twice.
    pub id: u64,
    /// Where it goes, `host:port`.
    pub target: String,
    /// How it came: `socks5`, `connect`, `http`, or `api`.
    pub protocol: &'static str,
    /// What carries it.
    pub carried: Carried,
    /// Bytes from the program.
    pub bytes_up: u64,
    /// Bytes to the program.
    pub bytes_down: u64,
    /// Since its request was understood.
    pub age: Duration,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    open: Mutex<BTreeMap<u64, Arc<Entry>>>,
    last: AtomicU64,
}

#[derive(Debug)]
struct Entry {
    target: String,
    protocol: &'static str,
    since: Instant,
    carried: Mutex<Carried>,
    up: Counter,
    down: Counter,
    cut: AtomicBool,
    /// Whom to wake when it is cut.
    relay: Mutex<Option<Waker>>,
}

/// A connection's place in the list, until it is dropped.
#[derive(Debug)]
pub(crate) struct Listed {
    id: u64,
    entry: Arc<Entry>,
    connections: Arc<Connections>,
    watched: bool,
}

impl Connections {
    pub(crate) fn list(self: &Arc<Self>, target: String, protocol: &'static str) -> Listed {
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let entry = Arc::new(Entry {
            target,
            protocol,
            since: Instant::now(),
            carried: Mutex::new(Carried::Waiting),
            up: Counter::default(),
            down: Counter::default(),
            cut: AtomicBool::new(false),
            relay: Mutex::default(),
        });
        self.open.lock().insert(id, Arc::clone(&entry));
        Listed {
            id,
            entry,
            connections: Arc::clone(self),
            watched: false,
        }
    }

    /// The oldest first.
    pub(crate) fn snapshot(&self) -> Vec<ConnectionSnapshot> {
        let open = self.open.lock();
        open.iter()
            .map(|(&id, entry)| ConnectionSnapshot {
                id,
                target: entry.target.clone(),
                protocol: entry.protocol,
                carried: *entry.carried.lock(),
                bytes_up: entry.up.value(),
                bytes_down: entry.down.value(),
                age: entry.since.elapsed(),
            })
            .collect()
    }

    /// Ends a connection. False: there is none of this number.
    pub(crate) fn cut(&self, id: u64) -> bool {
        let entry = self.open.lock().get(&id).map(Arc::clone);
        entry.inspect(|entry| entry.cut()).is_some()
    }

    /// Ends those that no session carries: nobody else does.
    pub(crate) fn cut_direct(&self) {
        let open = self.open.lock();
        let direct = open
            .values()
            .filter(|entry| *entry.carried.lock() == Carried::Direct);
        direct.for_each(|entry| entry.cut());
    }
}

impl Entry {
    fn cut(&self) {
        self.cut.store(true, Ordering::Release);
        let relay = self.relay.lock().take();
        if let Some(relay) = relay {
            relay.wake();
        }
    }
}

impl Listed {
    pub(crate) fn carried_by(&self, carried: Carried) {
        *self.entry.carried.lock() = carried;
    }

    /// Somebody has ended it.
    pub(crate) fn is_cut(&self) -> bool {
        self.entry.cut.load(Ordering::Acquire)
    }

    /// Has `relay` woken when it is cut. Asked for once, until another one relays.
    pub(crate) fn watch(&mut self, relay: &Waker) {
        if !self.watched {
            self.watched = true;
            *self.entry.relay.lock() = Some(relay.clone());
        }
    }

    /// Another one relays from now on.
    pub(crate) fn unwatch(&mut self) {
        self.watched = false;
    }

    // There is one who relays: adding needs no lock and no locked instruction.

    pub(crate) fn sent(&self, bytes: usize) {
        let up = &self.entry.up;
        up.set(up.value() + bytes as u64);
    }

    pub(crate) fn received(&self, bytes: usize) {
        let down = &self.entry.down;
        down.set(down.value() + bytes as u64);
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.connections.open.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_connection_is_listed_from_its_request_to_its_end() {
        let connections = Arc::<Connections>::default();
        let first = connections.list("a.example:443".to_owned(), "socks5");
        let second = connections.list("b.example:80".to_owned(), "api");
        first.sent(5);
        first.sent(2);
        second.received(3);
        second.carried_by(Carried::Session(7, 1));
        let [one, two] = &connections.snapshot()[..] else {
            panic!("two are open");
        };
        assert_eq!(
            (one.target.as_str(), one.protocol, one.carried),
            ("a.example:443", "socks5", Carried::Waiting)
        );
        assert_eq!((one.bytes_up, one.bytes_down), (7, 0));
        assert_eq!((two.bytes_up, two.bytes_down), (0, 3));
        assert_eq!(two.carried, Carried::Session(7, 1));
        drop(first);
        assert_eq!(connections.snapshot().len(), 1);
        assert!(!connections.cut(one.id));
    }

    #[test]
    fn whoever_relays_a_connection_hears_that_it_is_cut() {
        let connections = Arc::<Connections>::default();
        let mut listed = connections.list("a.example:443".to_owned(), "connect");
        let (before, after) = (Arc::<Woken>::default(), Arc::<Woken>::default());
        listed.watch(&Arc::clone(&before).into());
        listed.unwatch();
        listed.watch(&Arc::clone(&after).into());
        assert!(!listed.is_cut());
        let id = connections.snapshot()[0].id;
        assert!(connections.cut(id));
        assert!(listed.is_cut());
        let woken = |who: &Woken| who.0.load(Ordering::Relaxed);
        assert_eq!((woken(&before), woken(&after)), (0, 1));
    }
}
