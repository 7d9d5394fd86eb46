//! Permits for work that takes something there is little of, with a fair share of them for each holder.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use ech_workers_sync::Mutex;

/// What a permit is for, as far as that is bounded within a holder: the address of a target, for example.
pub(crate) trait PermitKey: Clone + Ord + Hash + Unpin {}

impl<P: Clone + Ord + Hash + Unpin> PermitKey for P {}

/// So many permits in the whole process, divided among holders (sessions) by what is free.
///
/// A holder may always have its share, and beyond that as many permits as are left for the others: one that is alone gets half of
/// all, two get a third each, and a newcomer finds some that are free. Of a holder's permits no more than a certain number are for
/// the same purpose, so that many attempts to reach one silent target do not hold up an attempt to reach another one.
///
/// Those who wait are served so that the holder with the fewest permits comes first.
#[derive(Debug, Clone)]
pub(crate) struct Permits<P: PermitKey = ()>(Arc<Mutex<State<P>>>);

#[derive(Debug)]
struct State<P> {
    free: usize,
    /// What one holder may have in any case.
    share: usize,
    /// The most that one holder may have for one purpose.
    each: usize,
    next: u64,
    holders: HashMap<u64, Holding<P>>,
    /// Holders with a request that may be granted: permits held, the number of that request, who they are.
    queue: BTreeSet<(usize, u64, u64)>,
}

#[derive(Debug)]
struct Holding<P> {
    held: usize,
    lines: HashMap<P, Line>,
    /// The first request of each line that has not all its permits.
    ready: BTreeSet<(u64, P)>,
    /// Requests that were granted and not looked at yet; they count as held.
    granted: BTreeSet<u64>,
    /// The [`Share`] is gone; the rest goes with the last permit.
    left: bool,
}

impl<P> Default for Holding<P> {
    fn default() -> Self {
        Self {
            held: 0,
            lines: HashMap::new(),
            ready: BTreeSet::new(),
            granted: BTreeSet::new(),
            left: false,
        }
    }
}

/// A holder's permits and requests for one purpose.
#[derive(Debug, Default)]
struct Line {
    held: usize,
    /// Requests by number, oldest first.
    waiting: BTreeMap<u64, Waker>,
}

impl<P: PermitKey> Holding<P> {
    /// Changes one line and keeps what depends on it right.
    fn change<R>(&mut self, purpose: &P, each: usize, change: impl FnOnce(&mut Line) -> R) -> R {
        let line = self.lines.entry(purpose.clone()).or_default();
        if let Some((&first, _)) = line.waiting.first_key_value() {
            self.ready.remove(&(first, purpose.clone()));
        }
        let outcome = change(line);
        match line.waiting.first_key_value() {
            Some((&first, _)) if line.held < each => {
                self.ready.insert((first, purpose.clone()));
            }
            None if line.held == 0 => {
                self.lines.remove(purpose);
            }
            _ => {}
        }
        outcome
    }
}

impl<P: PermitKey> Permits<P> {
    /// total: in the process. share: what a holder may have in any case. each: what one may have at most for one purpose.
    pub(crate) fn new(total: usize, share: usize, each: usize) -> Self {
        Self(Arc::new(Mutex::new(State {
            free: total.max(1),
            share: share.max(1),
            each: each.max(1),
            next: 0,
            holders: HashMap::new(),
            queue: BTreeSet::new(),
        })))
    }

    /// A holder with a share of its own.
    pub(crate) fn share(&self) -> Share<P> {
        let mut state = self.0.lock();
        let holder = state.number();
        state.holders.insert(holder, Holding::default());
        Share {
            permits: self.clone(),
            holder,
        }
    }
}

impl<P: PermitKey> State<P> {
    const fn number(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
    }

    /// Takes a holder out of the queue before it changes; [`State::enqueue`] puts it back.
    fn dequeue(&mut self, id: u64) {
        if let Some(holder) = self.holders.get(&id)
            && let Some(&(first, _)) = holder.ready.first()
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
        } else if let Some(&(first, _)) = holder.ready.first() {
            self.queue.insert((holder.held, first, id));
        }
    }

    /// Grants what is free to those who wait.
    fn grant(&mut self) {
        // If the one with the fewest may have no more, none of the others may.
        while self.free > 0
            && let Some(&(held, _, id)) = self.queue.first()
            && held < self.share.max(self.free)
        {
            self.dequeue(id);
            let each = self.each;
            if let Some(holder) = self.holders.get_mut(&id)
                && let Some((request, purpose)) = holder.ready.first().cloned()
            {
                let waker = holder.change(&purpose, each, |line| {
                    line.held += 1;
                    line.waiting.remove(&request)
                });
                holder.held += 1;
                holder.granted.insert(request);
                self.free -= 1;
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            self.enqueue(id);
        }
    }

    fn give_back(&mut self, id: u64, purpose: &P) {
        self.dequeue(id);
        let each = self.each;
        if let Some(holder) = self.holders.get_mut(&id) {
            holder.held -= 1;
            holder.change(purpose, each, |line| line.held -= 1);
        }
        self.free += 1;
        self.enqueue(id);
        self.grant();
    }
}

/// One holder's right to permits.
#[derive(Debug)]
pub(crate) struct Share<P: PermitKey = ()> {
    permits: Permits<P>,
    holder: u64,
}

impl<P: PermitKey> Share<P> {
    /// Waits for a permit.
    pub(crate) const fn acquire(&self, purpose: P) -> Acquire<'_, P> {
        Acquire {
            share: self,
            purpose,
            request: None,
        }
    }
}

impl<P: PermitKey> Drop for Share<P> {
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
pub(crate) struct Acquire<'a, P: PermitKey = ()> {
    share: &'a Share<P>,
    purpose: P,
    request: Option<u64>,
}

impl<P: PermitKey> Acquire<'_, P> {
    fn permit(&mut self) -> Permit<P> {
        self.request = None;
        Permit {
            permits: self.share.permits.clone(),
            holder: self.share.holder,
            purpose: self.purpose.clone(),
        }
    }
}

impl<P: PermitKey> Future for Acquire<'_, P> {
    type Output = Permit<P>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Permit<P>> {
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
        let each = state.each;
        let mut granted = false;
        if let Some(holder) = state.holders.get_mut(&id) {
            granted = holder.granted.remove(&request);
            if !granted {
                let waker = cx.waker().clone();
                holder.change(&self.purpose, each, |line| {
                    line.waiting.insert(request, waker)
                });
            }
        }
        state.enqueue(id);
        if !granted {
            state.grant();
            let holder = state.holders.get_mut(&id);
            granted = holder.is_some_and(|holder| holder.granted.remove(&request));
        }
        drop(state);
        if granted {
            Poll::Ready(self.permit())
        } else {
            Poll::Pending
        }
    }
}

impl<P: PermitKey> Drop for Acquire<'_, P> {
    fn drop(&mut self) {
        let Some(request) = self.request else {
            return;
        };
        let id = self.share.holder;
        let mut state = self.share.permits.0.lock();
        state.dequeue(id);
        let each = state.each;
        let granted = state.holders.get_mut(&id).is_some_and(|holder| {
            holder.change(&self.purpose, each, |line| line.waiting.remove(&request));
            holder.granted.remove(&request)
        });
        state.enqueue(id);
        if granted {
            state.give_back(id, &self.purpose);
        }
    }
}

/// Leave to do one piece of work, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Permit<P: PermitKey = ()> {
    permits: Permits<P>,
    holder: u64,
    purpose: P,
}

impl<P: PermitKey> Drop for Permit<P> {
    fn drop(&mut self) {
        self.permits.0.lock().give_back(self.holder, &self.purpose);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use proptest::prelude::*;

    use super::*;

    fn now(share: &Share<u8>) -> Option<Permit<u8>> {
        to(share, 0)
    }

    fn to(share: &Share<u8>, purpose: u8) -> Option<Permit<u8>> {
        share.acquire(purpose).now_or_never()
    }

    #[test]
    fn a_holder_that_is_alone_gets_half_and_leaves_the_rest_to_others() {
        let permits = Permits::new(12, 3, usize::MAX);
        let (greedy, other) = (permits.share(), permits.share());
        let taken: Vec<_> = (0..20).map_while(|_| now(&greedy)).collect();
        assert_eq!(taken.len(), 6);
        // The next one gets a share that is its own, whatever the first has.
        let others: Vec<_> = (0..20).map_while(|_| now(&other)).collect();
        assert_eq!(others.len(), 3);
        let third = permits.share();
        assert!(now(&third).is_some());
        drop(taken);
        assert!(now(&other).is_some());
    }

    #[test]
    fn every_holder_gets_its_share_while_there_are_permits() {
        let permits = Permits::new(6, 3, usize::MAX);
        let (first, second) = (permits.share(), permits.share());
        let held: Vec<_> = (0..9).map_while(|_| now(&first)).collect();
        assert_eq!(held.len(), 3);
        let others: Vec<_> = (0..9).map_while(|_| now(&second)).collect();
        assert_eq!(others.len(), 3);
    }

    #[test]
    fn requests_for_one_purpose_do_not_hold_up_those_for_another() {
        let permits = Permits::new(100, 10, 4);
        let share = permits.share();
        let silent: Vec<_> = (0..9).map_while(|_| to(&share, 1)).collect();
        assert_eq!(silent.len(), 4);
        let mut waiting: Vec<_> = (0..50).map(|_| Box::pin(share.acquire(1))).collect();
        for request in &mut waiting {
            assert!(request.now_or_never().is_none());
        }
        assert!(to(&share, 2).is_some());
        drop(silent);
        let served = waiting.iter_mut().filter_map(FutureExt::now_or_never);
        assert_eq!(served.count(), 50);
    }

    #[tokio::test]
    async fn the_holder_with_the_fewest_permits_is_served_first() {
        let permits = Permits::new(4, 4, usize::MAX);
        let (greedy, other) = (permits.share(), permits.share());
        let mut taken: Vec<_> = (0..4).filter_map(|_| now(&greedy)).collect();
        let mut more = Box::pin(greedy.acquire(0));
        let mut first = Box::pin(other.acquire(0));
        assert!((&mut more).now_or_never().is_none());
        assert!((&mut first).now_or_never().is_none());
        taken.pop();
        assert!((&mut more).now_or_never().is_none());
        assert!((&mut first).now_or_never().is_some());
    }

    #[test]
    fn a_request_that_is_given_up_takes_nothing_with_it() {
        let permits = Permits::new(1, 1, usize::MAX);
        let share = permits.share();
        let held = now(&share);
        let mut waiting = Box::pin(share.acquire(0));
        assert!((&mut waiting).now_or_never().is_none());
        drop(held);
        // It was granted and never looked at.
        drop(waiting);
        assert!(now(&share).is_some());
        assert_eq!(permits.0.lock().free, 1);
    }

    #[test]
    fn a_holder_that_has_left_is_forgotten_with_its_last_permit() {
        let permits = Permits::new(2, 2, usize::MAX);
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
        Ask(usize, u8),
        Look(usize),
        GiveUp(usize),
        GiveBack(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step =
            (0_usize..5, 0_usize..64, 0_u8..3).prop_map(|(kind, number, purpose)| match kind {
                0 | 1 => Step::Ask(number, purpose),
                2 => Step::Look(number),
                3 => Step::GiveUp(number),
                _ => Step::GiveBack(number),
            });
        proptest::collection::vec(step, 1..200)
    }

    proptest! {
        /// Whatever is asked, given up and given back in whatever order: no permit is lost, none is made, none is for a purpose
        /// that has all its permits, and no one waits while there is a permit for them.
        #[test]
        fn permits_are_neither_lost_nor_made(
            total in 1_usize..12, share in 1_usize..5, each in 1_usize..5, steps in steps()
        ) {
            let permits = Permits::new(total, share, each);
            let shares: Vec<Share<u8>> = (0..3).map(|_| permits.share()).collect();
            let mut waiting: Vec<Pin<Box<Acquire<'_, u8>>>> = Vec::new();
            let mut held: Vec<Permit<u8>> = Vec::new();
            for step in steps {
                match step {
                    Step::Ask(n, purpose) => waiting.push(Box::pin(shares[n % shares.len()].acquire(purpose))),
                    Step::Look(n) if !waiting.is_empty() => {
                        let at = n % waiting.len();
                        if let Some(permit) = (&mut waiting[at]).now_or_never() {
                            held.push(permit);
                            drop(waiting.swap_remove(at));
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
                    prop_assert_eq!(holder.held, holder.lines.values().map(|line| line.held).sum::<usize>());
                    let may_have_more = state.free > 0 && holder.held < state.share.max(state.free);
                    for line in holder.lines.values() {
                        prop_assert!(line.held <= each);
                        prop_assert!(line.waiting.is_empty() || line.held == each || !may_have_more);
                    }
                }
            }
            drop(waiting);
            drop(held);
            let state = permits.0.lock();
            prop_assert_eq!(state.free, total);
            prop_assert!(state.queue.is_empty());
            prop_assert!(state.holders.values().all(|holder| holder.lines.is_empty() && holder.ready.is_empty()));
        }
    }
}
