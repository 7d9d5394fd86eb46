//! How many streams a session carries, and each stream's place in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ech_workers_session::BulkLoad;
use ech_workers_sync::Mutex;

use crate::client::connections::Carried;

/// How long a session counts as full at the number of streams at which it had no room for another one. A server's limit is not
/// announced, and it may have refused for a reason that has passed.
pub(super) const FULL_FOR: Duration = Duration::from_secs(30);

/// What a session carries, and when it was full.
#[derive(Debug, Default)]
pub(crate) struct Load {
    /// Streams that were assigned to it and have not ended. Those that its driver has not begun yet count too, or a burst of
    /// streams would all go to one session.
    assigned: AtomicU64,
    /// Twice the streams that are bulk transfers, or one if one may become such.
    bulk: AtomicU64,
    /// With how many streams it had no room for another one, and when.
    full: Mutex<Option<(u64, Instant)>>,
}

impl Load {
    pub(super) fn assigned(&self) -> u64 {
        self.assigned.load(Ordering::Relaxed)
    }

    /// So much its streams move now.
    pub(crate) fn note_bulk(&self, bulk: BulkLoad) {
        let transfers = 2 * bulk.transfers as u64;
        let bulk = transfers.max(u64::from(bulk.is_growing));
        self.bulk.store(bulk, Ordering::Relaxed);
    }

    pub(super) fn bulk(&self) -> u64 {
        self.bulk.load(Ordering::Relaxed)
    }

    /// The session had no room for a stream, which still holds its ticket. Returns how many streams it has room for.
    pub(crate) fn note_full(&self) -> u64 {
        let others = self.assigned().saturating_sub(1);
        *self.full.lock() = Some((others, Instant::now()));
        others
    }

    pub(super) fn has_room(&self, now: Instant) -> bool {
        let mut full = self.full.lock();
        match *full {
            Some((streams, at)) if now.saturating_duration_since(at) < FULL_FOR => {
                self.assigned() < streams
            }
            _ => {
                *full = None;
                true
            }
        }
    }
}

/// A stream's place in a session, held until the stream has ended or goes to another session.
#[derive(Debug)]
pub(crate) struct Ticket {
    load: Arc<Load>,
    carried: Carried,
}

impl Ticket {
    /// Counts one more stream. `carried`: the session, for the user.
    pub(super) fn new(load: &Arc<Load>, carried: Carried) -> Self {
        load.assigned.fetch_add(1, Ordering::Relaxed);
        let load = Arc::clone(load);
        Self { load, carried }
    }

    /// The session, for the user.
    pub(crate) const fn carried(&self) -> Carried {
        self.carried
    }

    /// Whether this is a place in the session with this load.
    #[cfg(test)]
    pub(super) fn is_of(&self, load: &Arc<Load>) -> bool {
        Arc::ptr_eq(&self.load, load)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.load.assigned.fetch_sub(1, Ordering::Relaxed);
    }
}
