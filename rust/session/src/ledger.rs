//! Memory that is held for peers: counted where it is held, bounded for each session and for the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A session that holds no more than this is never stopped on account of the others.
const SMALL: usize = 1 << 20;

/// What all sessions of the process hold together.
#[derive(Debug)]
pub struct Ledger {
    limit: AtomicUsize,
    held: AtomicUsize,
}

impl Ledger {
    /// A ledger with room for `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            limit: AtomicUsize::new(limit),
            held: AtomicUsize::new(0),
        }
    }

    /// The limit, in bytes.
    pub fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// Another limit, which counts at once.
    pub fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// What is held now, in bytes.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

/// What one session may hold of what the ledger allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowance {
    /// So many bytes, whatever the ledger's limit is.
    Bytes(usize),
    /// The ledger's limit divided by this number, which is not 0. It follows the limit when that changes.
    Part(usize),
}

/// What one session holds, and its share of the ledger.
#[derive(Debug)]
pub(crate) struct Share {
    ledger: Arc<Ledger>,
    allowance: Allowance,
    held: usize,
}

impl Share {
    pub(crate) const fn new(ledger: Arc<Ledger>, allowance: Allowance) -> Self {
        Self {
            ledger,
            allowance,
            held: 0,
        }
    }

    /// What the session holds, in bytes.
    pub(crate) const fn held(&self) -> usize {
        self.held
    }

    /// Replaces what was counted as `before` by `after` bytes.
    pub(crate) fn adjust(&mut self, before: usize, after: usize) {
        if after >= before {
            let more = after - before;
            self.held += more;
            if more > 0 {
                self.ledger.held.fetch_add(more, Ordering::Relaxed);
            }
        } else {
            let less = (before - after).min(self.held);
            self.held -= less;
            self.ledger.held.fetch_sub(less, Ordering::Relaxed);
        }
    }

    /// The session holds as much as it may: nothing more is to be read from its peer.
    pub(crate) fn is_exhausted(&self) -> bool {
        let limit = match self.allowance {
            Allowance::Bytes(bytes) => bytes,
            Allowance::Part(part) => self.ledger.limit() / part,
        };
        self.held > limit || self.held > SMALL && self.ledger.held() > self.ledger.limit()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.ledger.held.fetch_sub(self.held, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_counted_in_both_places_and_given_back() {
        let ledger = Arc::new(Ledger::new(10 << 20));
        let mut share = Share::new(Arc::clone(&ledger), Allowance::Bytes(1000));
        share.adjust(0, 800);
        assert!(!share.is_exhausted());
        share.adjust(0, 300);
        assert!(share.is_exhausted());
        share.adjust(300, 100);
        assert_eq!((share.held(), ledger.held()), (900, 900));
        assert!(!share.is_exhausted());
        drop(share);
        assert_eq!(ledger.held(), 0);
    }

    #[test]
    fn a_full_process_stops_sessions_that_hold_much_and_no_others() {
        let ledger = Arc::new(Ledger::new(4 << 20));
        let mut large = Share::new(Arc::clone(&ledger), Allowance::Bytes(16 << 20));
        let mut small = Share::new(Arc::clone(&ledger), Allowance::Bytes(16 << 20));
        large.adjust(0, 4 << 20);
        small.adjust(0, 1000);
        assert!(large.is_exhausted());
        assert!(!small.is_exhausted());
        ledger.set_limit(8 << 20);
        assert!(!large.is_exhausted());
    }

    #[test]
    fn another_limit_counts_for_the_part_of_a_session_that_is_open() {
        let ledger = Arc::new(Ledger::new(16 << 20));
        let mut share = Share::new(Arc::clone(&ledger), Allowance::Part(4));
        share.adjust(0, 5 << 20);
        assert!(share.is_exhausted());
        ledger.set_limit(24 << 20);
        assert!(!share.is_exhausted());
        ledger.set_limit(19 << 20);
        assert!(share.is_exhausted());
    }
}
