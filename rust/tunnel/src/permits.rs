//! Permits for work that takes something there is little of, with a share of them for each holder.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use ech_workers_sync::Mutex;

/// So many permits in the whole process, and at most a share of them for each holder (a session). Those who wait are served so
/// that the holder with the fewest permits comes first: one that takes all it can get does not make the others wait.
#[derive(Debug, Clone)]
pub(crate) struct Permits(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    free: usize,
    /// The most that one holder may have.
    share: usize,
    next: u64,
    holders: HashMap<u64, Holder>,
    /// Holders that wait and have less than their share: permits held, the number of their first waiter, who they are.
    queue: BTreeSet<(usize, u64, u64)>,
}

#[derive(Debug, Default)]
struct Holder {
    held: usize,
    /// Their requests by number, oldest first.
    waiting: BTreeMap<u64, Waker>,
    /// Requests that were granted and not looked at yet; they count as held.
    granted: BTreeSet<u64>,
    /// The [`Share`] is gone; the rest goes with the last permit.
    left: bool,
}

impl Permits {
    pub(crate) fn new(total: usize, share: usize) -> Self {
        Self(Arc::new(Mutex::new(State {
            free: total.max(1),
            share: share.max(1),
            next: 0,
            holders: HashMap::new(),
            queue: BTreeSet::new(),
        })))
    }

    /// A holder with a share of its own.
    pub(crate) fn share(&self) -> Share {
        let mut state = self.0.lock();
        let holder = state.number();
        state.holders.insert(holder, Holder::default());
        Share {
            permits: self.clone(),
            holder,
        }
    }
}

impl State {
    const fn number(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
    }

    /// Takes a holder out of the queue before it changes; [`State::enqueue`] puts it back.
    fn dequeue(&mut self, id: u64) {
        if let Some(holder) = self.holders.get(&id)
            && let Some((&first, _)) = holder.waiting.first_key_value()
        {
            self.queue.remove(&(holder.held, first, id));
        }
    }

    fn enqueue(&mut self, id: u64) {
        let Some(holder) = self.holders.get(&id) else {
            return;
        };
        if holder.left && holder.held == 0 {
            self.holders.remove(&id);
        } else if let Some((&first, _)) = holder.waiting.first_key_value()
            && holder.held < self.share
        {
            self.queue.insert((holder.held, first, id));
        }
    }

    /// Grants what is free to those who wait.
    fn grant(&mut self) {
        while self.free > 0
            && let Some((_, request, id)) = self.queue.pop_first()
        {
            if let Some(holder) = self.holders.get_mut(&id)
                && let Some(waker) = holder.waiting.remove(&request)
            {
                holder.held += 1;
                holder.granted.insert(request);
                self.free -= 1;
                waker.wake();
            }
            self.enqueue(id);
        }
    }

    fn give_back(&mut self, id: u64) {
        self.dequeue(id);
        if let Some(holder) = self.holders.get_mut(&id) {
            holder.held -= 1;
        }
        self.free += 1;
        self.enqueue(id);
        self.grant();
    }
}

/// One holder's right to permits.
#[derive(Debug)]
pub(crate) struct Share {
    permits: Permits,
    holder: u64,
}

impl Share {
    /// Waits for a permit.
    pub(crate) const fn acquire(&self) -> Acquire<'_> {
        Acquire {
            share: self,
            request: None,
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut state = self.permits.0.lock();
        state.dequeue(self.holder);
        if let Some(holder) = state.holders.get_mut(&self.holder) {
            holder.left = true;
        }
        state.enqueue(self.holder);
    }
}

/// Waits for a permit; dropping it gives up the place in the queue.
#[derive(Debug)]
pub(crate) struct Acquire<'a> {
    share: &'a Share,
    request: Option<u64>,
}

impl Future for Acquire<'_> {
    type Output = Permit;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Permit> {
        let id = self.share.holder;
        let mut state = self.share.permits.0.lock();
        let request = match self.request {
            Some(request) => request,
            None => {
                let request = state.number();
                self.request = Some(request);
                request
            }
        };
        state.dequeue(id);
        if let Some(holder) = state.holders.get_mut(&id) {
            if holder.granted.remove(&request) {
                state.enqueue(id);
                self.request = None;
                return Poll::Ready(Permit {
                    permits: self.share.permits.clone(),
                    holder: id,
                });
            }
            holder.waiting.insert(request, cx.waker().clone());
        }
        state.enqueue(id);
        state.grant();
        let granted = state
            .holders
            .get_mut(&id)
            .is_some_and(|holder| holder.granted.remove(&request));
        if !granted {
            return Poll::Pending;
        }
        self.request = None;
        Poll::Ready(Permit {
            permits: self.share.permits.clone(),
            holder: id,
        })
    }
}

impl Drop for Acquire<'_> {
    fn drop(&mut self) {
        let Some(request) = self.request else {
            return;
        };
        let id = self.share.holder;
        let mut state = self.share.permits.0.lock();
        state.dequeue(id);
        let granted = state.holders.get_mut(&id).is_some_and(|holder| {
            holder.waiting.remove(&request);
            holder.granted.remove(&request)
        });
        state.enqueue(id);
        if granted {
            state.give_back(id);
        }
    }
}

/// Leave to do one piece of work, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    permits: Permits,
    holder: u64,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.permits.0.lock().give_back(self.holder);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use proptest::prelude::*;

    use super::*;

    fn now(share: &Share) -> Option<Permit> {
        share.acquire().now_or_never()
    }

    #[test]
    fn a_holder_gets_its_share_and_leaves_the_rest_to_others() {
        let permits = Permits::new(5, 3);
        let (greedy, other) = (permits.share(), permits.share());
        let taken: Vec<_> = (0..10).filter_map(|_| now(&greedy)).collect();
        assert_eq!(taken.len(), 3);
        let others: Vec<_> = (0..10).filter_map(|_| now(&other)).collect();
        assert_eq!(others.len(), 2);
        drop(taken);
        assert!(now(&other).is_some());
    }

    #[tokio::test]
    async fn the_holder_with_the_fewest_permits_is_served_first() {
        let permits = Permits::new(4, 4);
        let (greedy, other) = (permits.share(), permits.share());
        let mut taken: Vec<_> = (0..4).filter_map(|_| now(&greedy)).collect();
        let mut more = Box::pin(greedy.acquire());
        let mut first = Box::pin(other.acquire());
        assert!((&mut more).now_or_never().is_none());
        assert!((&mut first).now_or_never().is_none());
        taken.pop();
        assert!((&mut more).now_or_never().is_none());
        assert!((&mut first).now_or_never().is_some());
    }

    #[test]
    fn a_request_that_is_given_up_takes_nothing_with_it() {
        let permits = Permits::new(1, 1);
        let share = permits.share();
        let held = now(&share);
        let mut waiting = Box::pin(share.acquire());
        assert!((&mut waiting).now_or_never().is_none());
        drop(held);
        // It was granted and never looked at.
        drop(waiting);
        assert!(now(&share).is_some());
        assert_eq!(permits.0.lock().free, 1);
    }

    #[test]
    fn a_holder_that_has_left_is_forgotten_with_its_last_permit() {
        let permits = Permits::new(2, 2);
        let share = permits.share();
        let held = now(&share);
        drop(share);
        assert_eq!(permits.0.lock().holders.len(), 1);
        drop(held);
        let state = permits.0.lock();
        assert_eq!((state.holders.len(), state.free), (0, 2));
        assert!(state.queue.is_empty());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Ask(usize),
        Look(usize),
        GiveUp(usize),
        GiveBack(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = (0_usize..4, 0_usize..64).prop_map(|(kind, number)| match kind {
            0 => Step::Ask(number),
            1 => Step::Look(number),
            2 => Step::GiveUp(number),
            _ => Step::GiveBack(number),
        });
        proptest::collection::vec(step, 1..200)
    }

    proptest! {
        /// Whatever is asked, given up and given back in whatever order: no permit is lost, none is made, no share is passed,
        /// and no one waits while there is a permit for them.
        #[test]
        fn permits_are_neither_lost_nor_made(total in 1_usize..8, each in 1_usize..5, steps in steps()) {
            let permits = Permits::new(total, each);
            let shares: Vec<Share> = (0..3).map(|_| permits.share()).collect();
            let mut waiting: Vec<(usize, Pin<Box<Acquire<'_>>>)> = Vec::new();
            let mut held: Vec<(usize, Permit)> = Vec::new();
            for step in steps {
                match step {
                    Step::Ask(n) => {
                        let who = n % shares.len();
                        waiting.push((who, Box::pin(shares[who].acquire())));
                    }
                    Step::Look(n) if !waiting.is_empty() => {
                        let at = n % waiting.len();
                        if let Some(permit) = (&mut waiting[at].1).now_or_never() {
                            held.push((waiting.swap_remove(at).0, permit));
                        }
                    }
                    Step::GiveUp(n) if !waiting.is_empty() => {
                        let at = n % waiting.len();
                        drop(waiting.swap_remove(at));
                    }
                    Step::GiveBack(n) if !held.is_empty() => {
                        let at = n % held.len();
                        drop(held.swap_remove(at));
                    }
                    _ => {}
                }
                let state = permits.0.lock();
                let granted: usize = state.holders.values().map(|holder| holder.granted.len()).sum();
                prop_assert_eq!(state.free + granted + held.len(), total);
                for holder in state.holders.values() {
                    prop_assert!(holder.held <= each);
                    prop_assert!(state.free == 0 || holder.held == each || holder.waiting.is_empty());
                }
                drop(state);
                for (who, _) in &held {
                    prop_assert!(held.iter().filter(|(other, _)| other == who).count() <= each);
                }
            }
            drop(waiting);
            drop(held);
            let state = permits.0.lock();
            prop_assert_eq!(state.free, total);
            prop_assert!(state.queue.is_empty());
        }
    }
}
