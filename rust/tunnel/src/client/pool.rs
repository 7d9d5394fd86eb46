//! The sessions that new streams may go to, the choice among them, and the wait for one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ech_workers_sync::Mutex;
use tokio::sync::Notify;

use crate::client::cause;
use crate::client::connections::Carried;
use crate::client::dial::DialPlan;
use crate::client::event::{Echo, Event};
use crate::client::lanes::Dials;
use crate::client::load::{Load, Ticket};
use crate::client::program::Program;
use crate::client::snapshot::SessionSnapshot;
use crate::client::turns::Turns;
use crate::counters::{Counted, Counter};
use crate::driver::{Handle, SessionStats};
use crate::events::Events;
use crate::failure::Failure;

/// How long a warm connection of simple mode may wait for its first use; idle cuts of CDNs begin at 30 s.
pub(crate) const WARM: Duration = Duration::from_secs(15);

/// How often a stream that waits for a session looks whether one that was full has room.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How often the owner hears that all sessions of a server are full, while streams would go there.
const FULL_NEWS: Duration = Duration::from_secs(1);

/// How long a session of which it is not known whether it is alive gets no new streams at most. By then its owner has found out.
const DOUBT: Duration = Duration::from_secs(5);

/// How long a server that could not be reached is not waited for.
const DOWN_FOR: Duration = Duration::from_secs(600);

/// What new streams can go to.
#[derive(Default)]
pub(crate) struct Pool {
    state: Mutex<State>,
    /// A session came, or the plan or the availability changed.
    changed: Notify,
    /// Streams that wait for a session.
    waiting: Counter,
    /// Where the owner is told that all sessions of a server are full.
    events: Arc<Events<Event>>,
}

#[derive(Default)]
struct State {
    sessions: Vec<Member>,
    /// The servers in simple mode, by number, and how each of their connections is dialled.
    plans: BTreeMap<u32, Arc<DialPlan>>,
    /// Which servers streams go to: numbers and weights, the first tier that can take one. Empty: all alike.
    tiers: Vec<Vec<(u32, u32)>>,
    turns: Turns,
    unavailable: Option<Unavailable>,
    dials: Dials,
    /// Dials under way for one stream each, of each server.
    dialled: BTreeMap<u32, Arc<Counter>>,
    /// When a dial to a server failed, if no session to it has come up since.
    failed_at: BTreeMap<u32, Instant>,
    /// When the owner was last told that all sessions of a server are full, by the server's number.
    full_told: BTreeMap<u32, Instant>,
}

/// Why no session will carry a stream.
#[derive(Clone, Debug)]
pub(crate) struct Unavailable {
    /// For the owner.
    pub(crate) reason: String,
    /// For local programs.
    pub(crate) cause: &'static str,
}

impl Unavailable {
    /// The stream's time for opening is over.
    pub(crate) fn in_time() -> Self {
        Self {
            reason: "no session came up in time".to_owned(),
            cause: "none came up in time",
        }
    }

    /// A dial for the stream failed.
    pub(crate) fn after(failure: &Failure) -> Self {
        Self {
            reason: failure.message.clone(),
            cause: cause::of(failure.code.as_str()),
        }
    }
}

pub(crate) struct Member {
    pub(crate) session: u64,
    pub(crate) upstream: u32,
    pub(crate) handle: Handle<Program>,
    /// What it may be used for.
    pub(crate) purpose: Purpose,
    /// Since when it is not known whether the session is alive.
    pub(crate) doubted: Option<Instant>,
    pub(crate) stats: Arc<SessionStats>,
    pub(crate) address: SocketAddr,
    pub(crate) since: Instant,
    /// It is given no new streams.
    pub(crate) retiring: Arc<AtomicBool>,
    pub(crate) load: Arc<Load>,
    /// The number of the thread that carries it.
    pub(crate) thread: usize,
    /// How long it took to connect: a round trip, or more if a packet was lost.
    pub(crate) distance: Duration,
    /// The server sends back what comes for the reserved target.
    pub(crate) echoes: bool,
}

/// What new streams may find in a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Many streams.
    Many,
    /// One stream, if it is taken before this time: simple mode.
    One(Instant),
    /// The one stream that it is for has been assigned.
    Taken,
}

/// Whether a stream can go to another server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Prospect {
    /// At once.
    Now,
    /// To one that has no session: it has to be dialled.
    Later,
    /// There is none, or its last dial failed.
    None,
}

/// What is to be done with a stream.
enum Choice {
    Carrier(Carrier),
    /// It waits, until this time at most, for a session that is about to be up: those that there are carry bulk transfers.
    Later(Instant),
}

pub(crate) enum Carrier {
    Session(Handle<Program>, Ticket),
    /// A session for this stream alone is to be dialled. It counts among the server's until the session is in the pool.
    Dial(Arc<DialPlan>, Counted),
}

impl Pool {
    /// Without a session. What the owner has to know goes to `events`.
    pub(crate) fn new(events: Arc<Events<Event>>) -> Self {
        Self {
            events,
            ..Self::default()
        }
    }

    /// Takes in a session that is up.
    pub(crate) fn add(&self, member: Member) {
        let mut state = self.state.lock();
        state.failed_at.remove(&member.upstream);
        state.sessions.push(member);
    }

    /// Lets those who wait look again.
    pub(crate) fn wake(&self) {
        self.changed.notify_waiters();
    }

    /// A dial has begun whose session many streams will be able to use.
    pub(crate) fn dial_began(&self, number: u64, upstream: u32) {
        self.state
            .lock()
            .dials
            .begin(number, upstream, Instant::now());
    }

    /// It has failed.
    pub(crate) fn dial_failed(&self, number: u64, upstream: u32) {
        {
            let mut state = self.state.lock();
            state.dials.end(number);
            let mut sessions = state.sessions.iter();
            // A further session that could not be had says nothing of the server.
            if !sessions.any(|member| member.upstream == upstream) {
                state.failed_at.insert(upstream, Instant::now());
            }
        }
        self.wake();
    }

    /// It has ended. Its session, if there is one, was added before.
    pub(crate) fn dial_ended(&self, number: u64) {
        self.state.lock().dials.end(number);
        self.wake();
    }

    pub(crate) fn remove(&self, session: u64) {
        self.state
            .lock()
            .sessions
            .retain(|member| member.session != session);
    }

    /// Retires a session of simple mode that was not used in time.
    pub(crate) fn discard_unused(&self, session: u64) {
        for member in &self.state.lock().sessions {
            if member.session == session && matches!(member.purpose, Purpose::One(_)) {
                member.handle.retire();
            }
        }
    }

    /// The plan by which simple mode dials for each connection.
    pub(crate) fn set_plan(&self, upstream: u32, plan: Option<DialPlan>) {
        {
            let mut state = self.state.lock();
            match plan {
                Some(plan) => state.plans.insert(upstream, Arc::new(plan)),
                None => {
                    // Those that are under way count for nobody any more.
                    state.dialled.remove(&upstream);
                    state.plans.remove(&upstream)
                }
            };
        }
        self.wake();
    }

    /// Which servers streams go to from now on.
    pub(crate) fn route(&self, tiers: Vec<Vec<(u32, u32)>>) {
        let mut state = self.state.lock();
        let is_left = |server| tiers.iter().flatten().any(|&(other, _)| other == server);
        state.turns.retain(is_left);
        state.tiers = tiers;
        drop(state);
        self.wake();
    }

    /// Whether there is a server beside these that could take a stream now.
    pub(crate) fn has_other(&self, failed: &[u32]) -> bool {
        let state = self.state.lock();
        let is_other = |upstream: u32| {
            !failed.contains(&upstream)
                && (state.tiers.is_empty()
                    || state
                        .tiers
                        .iter()
                        .flatten()
                        .any(|&(number, _)| number == upstream))
        };
        state.plans.keys().any(|&upstream| is_other(upstream))
            || state
                .sessions
                .iter()
                .any(|member| member.is_open() && is_other(member.upstream))
    }

    /// Whether there is a server beside these, which may be one that stands by without a session.
    pub(crate) fn prospect(&self, failed: &[u32]) -> Prospect {
        if self.has_other(failed) {
            return Prospect::Now;
        }
        let state = self.state.lock();
        let now = Instant::now();
        let mut all = state.tiers.iter().flatten();
        let may_come = |upstream: u32| {
            let failed_at = state.failed_at.get(&upstream);
            !failed.contains(&upstream)
                && failed_at.is_none_or(|&at| now.duration_since(at) > DOWN_FOR)
        };
        if all.any(|&(upstream, _)| may_come(upstream)) {
            Prospect::Later
        } else {
            Prospect::None
        }
    }

    /// Waits until a server beside these can take a stream; `false`: until the deadline, or until none is to be expected.
    pub(crate) async fn wait_for_other(&self, failed: &[u32], deadline: Instant) -> bool {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            match self.prospect(failed) {
                Prospect::Now => return true,
                Prospect::None => return false,
                Prospect::Later => {}
            }
            self.waiting.add(1);
            let waited = tokio::time::timeout_at(deadline.into(), changed).await;
            self.waiting.sub(1);
            if waited.is_err() {
                return false;
            }
        }
    }

    /// With a reason: streams that find no session fail at once. Without: they wait.
    pub(crate) fn set_unavailable(&self, why: Option<Unavailable>) {
        self.state.lock().unavailable = why;
        self.wake();
    }

    /// Gives this session no new streams from now on.
    pub(crate) fn retire(&self, session: u64) {
        for member in &self.state.lock().sessions {
            if member.session == session {
                member.retiring.store(true, Ordering::Relaxed);
                member.handle.retire();
            }
        }
    }

    /// A place for a stream to the reserved target in a session that has no stream: the session's handle, and what it carries.
    /// An error: what is to be said instead. Its server has not announced that, it takes no streams, or it has some.
    pub(crate) fn place_for_echo(
        &self,
        session: u64,
    ) -> Result<(Handle<Program>, Ticket, Arc<SessionStats>), Echo> {
        let state = self.state.lock();
        let mut sessions = state.sessions.iter();
        let member = sessions
            .find(|member| member.session == session && member.echoes && member.is_open())
            .ok_or(Echo::Failed)?;
        if member.load.assigned() > 0 {
            return Err(Echo::Busy);
        }
        let stats = Arc::clone(&member.stats);
        Ok((member.handle.clone(), member.ticket(), stats))
    }

    /// Tells one session something.
    pub(crate) fn tell(&self, session: u64, tell: impl Fn(&Handle<Program>)) {
        for member in &self.state.lock().sessions {
            if member.session == session {
                tell(&member.handle);
            }
        }
    }

    /// Something has happened by which any session may be dead: each takes new streams again when its server has
    /// answered, or after a while. A connection of simple mode that waits for its first use is not used any more.
    pub(crate) fn doubt_all(&self) {
        let now = Instant::now();
        for member in &mut self.state.lock().sessions {
            match member.purpose {
                Purpose::Many => member.doubted = Some(now),
                Purpose::One(until) => member.purpose = Purpose::One(until.min(now)),
                Purpose::Taken => {}
            }
        }
    }

    /// Tells every session something.
    pub(crate) fn tell_all(&self, tell: impl Fn(&Handle<Program>)) {
        for member in &self.state.lock().sessions {
            tell(&member.handle);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.state.lock().sessions.is_empty()
    }

    /// Streams that wait for a session now.
    pub(crate) fn waiting(&self) -> u64 {
        self.waiting.value()
    }

    pub(crate) fn snapshot(&self) -> Vec<SessionSnapshot> {
        self.state
            .lock()
            .sessions
            .iter()
            .filter(|member| member.purpose == Purpose::Many)
            .map(Member::snapshot)
            .collect()
    }

    /// What carries the next stream, waiting for it until `deadline`. Servers in `failed` come last, those in `avoided` before
    /// them. A session of the thread `near`, where the stream's socket is already, is taken unless another has fewer streams by
    /// more than what moving the socket is worth: one, and an eighth. `only`: no other server will do. An error:
    /// nothing will.
    pub(crate) async fn carrier(
        &self,
        deadline: Instant,
        failed: &[u32],
        avoided: &[u32],
        near: Option<usize>,
        only: Option<u32>,
    ) -> Result<Carrier, Unavailable> {
        let mut is_full = false;
        while Instant::now() < deadline {
            if let Some(Choice::Carrier(carrier)) = self.choose(failed, avoided, near, only)?.0 {
                return Ok(carrier);
            }
            let mut changed = std::pin::pin!(self.changed.notified());
            // From here on no change is missed; one may have come since the look.
            changed.as_mut().enable();
            let (choice, any_full) = self.choose(failed, avoided, near, only)?;
            is_full = any_full;
            let until = match choice {
                Some(Choice::Carrier(carrier)) => return Ok(carrier),
                Some(Choice::Later(until)) => deadline.min(until),
                // A session that was full may have room again.
                None => deadline.min(Instant::now() + LOOK_AGAIN),
            };
            self.waiting.add(1);
            let _ = tokio::time::timeout_at(until.into(), changed).await;
            self.waiting.sub(1);
        }
        Err(if is_full {
            Unavailable {
                reason: "every session has as many streams as its server allows".to_owned(),
                cause: "there are as many connections as it allows",
            }
        } else {
            Unavailable::in_time()
        })
    }

    /// What carries a stream now, if anything does, and whether a server that it would have gone to is full. The owner hears of
    /// such a server.
    fn choose(
        &self,
        failed: &[u32],
        avoided: &[u32],
        near: Option<usize>,
        only: Option<u32>,
    ) -> Result<(Option<Choice>, bool), Unavailable> {
        let (carrier, full) = {
            let mut state = self.state.lock();
            let (carrier, passed) = state.choose(failed, avoided, near, only)?;
            (carrier, state.full_of(&passed))
        };
        let any_full = !full.is_empty();
        for (upstream, is_news) in full {
            if is_news {
                self.events.push(Event::SessionsFull { upstream });
            }
        }
        Ok((carrier, any_full))
    }
}

impl State {
    /// Those of these servers that have sessions, all of them full; and whether the owner is to be told of it again.
    fn full_of(&mut self, servers: &[u32]) -> Vec<(u32, bool)> {
        let now = Instant::now();
        let mut full = Vec::new();
        for &upstream in servers {
            let own = || {
                let own = self.sessions.iter();
                own.filter(|member| member.upstream == upstream && member.is_alive())
            };
            if own().next().is_none() || own().any(Member::is_open) {
                continue;
            }
            let told = self.full_told.get(&upstream);
            let is_news = told.is_none_or(|&told| now.duration_since(told) >= FULL_NEWS);
            if is_news {
                self.full_told.insert(upstream, now);
            }
            full.push((upstream, is_news));
        }
        full
    }

    /// Where the next stream goes: to the first tier that can take it; then to the servers that are avoided for its target, and
    /// last to those that failed for this stream. With it come the servers that were passed because they can take none. No
    /// carrier: wait. An error: do not. `only`: to this server.
    fn choose(
        &mut self,
        failed: &[u32],
        avoided: &[u32],
        near: Option<usize>,
        only: Option<u32>,
    ) -> Result<(Option<Choice>, Vec<u32>), Unavailable> {
        let tiers = if let Some(server) = only {
            vec![vec![(server, 1)]]
        } else if self.tiers.is_empty() {
            vec![self.all_alike()]
        } else {
            self.tiers.clone()
        };
        let mut passed = Vec::new();
        let first = [failed, avoided].concat();
        // Whom each round leaves out.
        for left_out in [first.as_slice(), failed, &[]] {
            for tier in &tiers {
                let tier = tier.iter().filter(|(number, _)| !left_out.contains(number));
                let tier = tier.copied().collect::<Vec<_>>();
                if let Some(choice) = self.choose_of(&tier, near) {
                    return Ok((Some(choice), passed));
                }
                passed.extend(tier.iter().map(|&(number, _)| number));
            }
            if left_out.is_empty() {
                break;
            }
        }
        match self.unavailable.clone() {
            Some(why) => Err(why),
            None => Ok((None, passed)),
        }
    }

    /// Every server, with the same weight.
    fn all_alike(&self) -> Vec<(u32, u32)> {
        let sessions = self.sessions.iter().map(|member| member.upstream);
        let mut all: Vec<u32> = sessions.chain(self.plans.keys().copied()).collect();
        all.sort_unstable();
        all.dedup();
        all.into_iter().map(|upstream| (upstream, 1)).collect()
    }

    /// Of the server with the fewest streams for its weight, or whose turn it is among equals, the session with the fewest bulk
    /// transfers, then with the fewest streams, of several the one that answers fastest, or how simple mode goes there.
    fn choose_of(&mut self, tier: &[(u32, u32)], near: Option<usize>) -> Option<Choice> {
        let best = tier
            .iter()
            .filter_map(|&(upstream, weight)| {
                let fullness = self.fullness_of(upstream, weight)?;
                Some((fullness, self.turns.next(upstream), upstream, weight))
            })
            .min_by_key(|&(fullness, turn, ..)| (fullness, turn));
        let (.., upstream, weight) = best?;
        let choice = self.choose_at(upstream, near)?;
        if !matches!(choice, Choice::Later(_)) {
            self.turns.take(upstream, weight);
        }
        Some(choice)
    }

    /// The same of one server.
    fn choose_at(&mut self, upstream: u32, near: Option<usize>) -> Option<Choice> {
        if let Some(plan) = self.plans.get(&upstream).map(Arc::clone) {
            let now = Instant::now();
            for member in &mut self.sessions {
                if member.upstream == upstream
                    && matches!(member.purpose, Purpose::One(until) if until > now)
                    && !member.handle.is_closed()
                {
                    member.purpose = Purpose::Taken;
                    return Some(Choice::Carrier(member.assign()));
                }
            }
            let dialled = self.dialled.entry(upstream).or_default();
            let counted = Counted::new(dialled);
            return Some(Choice::Carrier(Carrier::Dial(plan, counted)));
        }
        let open = self
            .sessions
            .iter()
            .filter(|member| member.upstream == upstream && member.is_open());
        // What is lost of a bulk transfer holds up everything in its connection.
        let least = open.min_by_key(|member| {
            let load = &member.load;
            let assigned = load.assigned();
            let is_far = near.is_some_and(|near| near != member.thread);
            let moving = if is_far { 1 + assigned / 8 } else { 0 };
            let streams = (assigned + moving, is_far);
            (load.bulk(), streams, member.round_trip())
        })?;
        if least.load.bulk() > 0 {
            let all = self.sessions.iter();
            let own = all.filter(|member| member.upstream == upstream && member.is_open());
            let distance = own.map(|member| member.distance).min()?;
            let now = Instant::now();
            if let Some(until) = self.dials.worth_waiting_for(upstream, distance, now) {
                return Some(Choice::Later(until));
            }
        }
        Some(Choice::Carrier(least.assign()))
    }

    /// How full a server is for its weight; `None` if it can take no stream more.
    fn fullness_of(&self, upstream: u32, weight: u32) -> Option<u64> {
        let own = || {
            self.sessions
                .iter()
                .filter(|member| member.upstream == upstream)
        };
        let streams = if self.plans.contains_key(&upstream) {
            let taken = own().filter(|member| member.purpose == Purpose::Taken);
            let dialled = self.dialled.get(&upstream);
            taken.count() as u64 + dialled.map_or(0, |dialled| dialled.value())
        } else {
            own().find(|member| member.is_open())?;
            // Of all its sessions: how many it has is no reason for more streams or fewer.
            own().map(|member| member.load.assigned()).sum()
        };
        Some(streams.saturating_mul(1 << 20) / u64::from(weight.max(1)))
    }
}

impl Member {
    /// Whether it takes one stream more, of many.
    fn is_open(&self) -> bool {
        self.is_alive() && self.load.has_room(Instant::now())
    }

    /// Whether it takes streams at all.
    fn is_alive(&self) -> bool {
        self.purpose == Purpose::Many
            && !self.retiring.load(Ordering::Relaxed)
            && !self.handle.is_closed()
            && !self.is_in_doubt()
    }

    /// Whether the server has given no sign of life since it was asked for one because the session may be dead.
    fn is_in_doubt(&self) -> bool {
        self.doubted
            .is_some_and(|doubted| doubted.elapsed() < DOUBT && !self.stats.is_heard_since(doubted))
    }

    fn assign(&self) -> Carrier {
        Carrier::Session(self.handle.clone(), self.ticket())
    }

    /// A place in it for one more stream.
    fn ticket(&self) -> Ticket {
        let carried = Carried::Session(self.session, self.upstream);
        Ticket::new(&self.load, carried)
    }

    /// In microseconds; the longest while none was measured.
    fn round_trip(&self) -> u64 {
        match self.stats.rtt_us.value() {
            0 => u64::MAX,
            measured => measured,
        }
    }

    fn snapshot(&self) -> SessionSnapshot {
        let stats = &self.stats;
        let heard = stats.heard.moment();
        SessionSnapshot {
            session: self.session,
            upstream: self.upstream,
            heard: heard.unwrap_or(self.since).elapsed(),
            unanswered: stats.unanswered().map(|probed| probed.elapsed()),
            address: self.address,
            retiring: self.retiring.load(Ordering::Relaxed),
            streams: stats.streams.value(),
            streams_total: stats.streams_total.value(),
            age: self.since.elapsed(),
            rtt: stats.rtt_us.duration(),
            path: stats.path_us.duration(),
            bytes_up: stats.traffic.up.value(),
            bytes_down: stats.traffic.down.value(),
        }
    }
}

#[cfg(test)]
mod tests {
    use ech_workers_session::{BulkLoad, Open};
    use ech_workers_tls::Profile;
    use tokio::sync::mpsc;

    use super::*;
    use crate::client::dial::Mode;
    use crate::client::lanes::FAR;
    use crate::client::load::FULL_FOR;
    use crate::events::Next;

    fn transfers(transfers: usize) -> BulkLoad {
        BulkLoad {
            transfers,
            is_growing: false,
        }
    }

    /// A pool whose sessions do nothing, and their queues, which must not close.
    #[derive(Default)]
    struct Sessions {
        pool: Pool,
        loads: Vec<Arc<Load>>,
        queues: Vec<mpsc::Receiver<Box<Open<Program>>>>,
    }

    impl Sessions {
        /// Sessions 0, 1, ... with these round trips in microseconds (0: not measured).
        fn new(round_trips: &[u64]) -> Self {
            let mut this = Self::default();
            for (session, &round_trip) in (0..).zip(round_trips) {
                let (handle, queue) = Handle::with_queue();
                let stats = SessionStats::default();
                stats.rtt_us.set(round_trip);
                let load = Arc::<Load>::default();
                this.loads.push(Arc::clone(&load));
                this.queues.push(queue);
                this.pool.add(Member {
                    session,
                    upstream: 0,
                    handle,
                    purpose: Purpose::Many,
                    doubted: None,
                    stats: Arc::new(stats),
                    address: "192.0.2.1:443".parse().unwrap(),
                    since: Instant::now(),
                    retiring: Arc::default(),
                    load,
                    thread: usize::try_from(session).unwrap(),
                    distance: FAR,
                    echoes: false,
                });
            }
            this
        }

        /// The session that the next stream goes to, and its ticket; why there is none after a moment.
        async fn assign(&self) -> Result<(usize, Ticket), String> {
            let deadline = Instant::now() + Duration::from_millis(20);
            match self.pool.carrier(deadline, &[], &[], None, None).await {
                Ok(Carrier::Session(_, ticket)) => {
                    let mut loads = self.loads.iter();
                    let session = loads.position(|load| ticket.is_of(load));
                    Ok((session.unwrap(), ticket))
                }
                Ok(Carrier::Dial(..)) => Err("a dial".to_owned()),
                Err(why) => Err(why.reason),
            }
        }
    }

    #[tokio::test]
    async fn a_stream_counts_from_its_assignment_on() {
        let sessions = Sessions::new(&[0, 0, 0]);
        let mut held = Vec::new();
        // No driver runs here: nothing but the assignment can count.
        for expected in [0, 1, 2, 0, 1, 2] {
            let (session, ticket) = sessions.assign().await.unwrap();
            assert_eq!(session, expected);
            held.push(ticket);
        }
        held.remove(1);
        assert_eq!(sessions.assign().await.unwrap().0, 1);
    }

    #[tokio::test]
    async fn of_equally_loaded_sessions_the_one_that_answers_fastest_is_chosen() {
        let sessions = Sessions::new(&[0, 80_000, 20_000]);
        let first = sessions.assign().await.unwrap();
        let second = sessions.assign().await.unwrap();
        let third = sessions.assign().await.unwrap();
        assert_eq!((first.0, second.0, third.0), (2, 1, 0));
    }

    #[tokio::test]
    async fn streams_keep_away_from_sessions_with_bulk_transfers() {
        let sessions = Sessions::new(&[0, 0]);
        sessions.loads[0].note_bulk(transfers(1));
        let mut held = Vec::new();
        for _ in 0..3 {
            let (session, ticket) = sessions.assign().await.unwrap();
            assert_eq!(session, 1);
            held.push(ticket);
        }
        sessions.loads[1].note_bulk(transfers(2));
        assert_eq!(sessions.assign().await.unwrap().0, 0);
        sessions.loads[0].note_bulk(transfers(0));
        assert_eq!(sessions.assign().await.unwrap().0, 0);
    }

    #[tokio::test]
    async fn a_stream_waits_for_a_session_that_is_about_to_be_up_if_all_others_carry_bulk_transfers()
     {
        let sessions = Sessions::new(&[0, 0]);
        sessions.pool.dial_began(9, 0);
        assert_eq!(sessions.assign().await.unwrap().0, 0);
        for load in &sessions.loads {
            load.note_bulk(BulkLoad {
                transfers: 0,
                is_growing: true,
            });
        }
        let choose = || {
            let chosen = sessions.pool.choose(&[], &[], None, None).unwrap().0;
            matches!(chosen, Some(Choice::Later(_)))
        };
        // On a busy machine the moment may pass before the choice.
        let waits = (0..1000).any(|_| {
            sessions.pool.dial_ended(9);
            let begun = Instant::now().checked_sub(FAR * 2).unwrap();
            sessions.pool.state.lock().dials.begin(9, 0, begun);
            choose()
        });
        assert!(waits);
        sessions.pool.dial_ended(9);
        assert!(!choose());
        // A dial that is far too late is not waited for any longer.
        let begun = Instant::now().checked_sub(FAR * 6).unwrap();
        sessions.pool.state.lock().dials.begin(9, 0, begun);
        assert!(!choose());
        assert_eq!(sessions.assign().await.unwrap().0, 0);
    }

    #[tokio::test]
    async fn a_server_that_cannot_reach_the_target_comes_after_the_others() {
        let sessions = Sessions::new(&[0, 0, 0]);
        for (number, member) in (0..).zip(&mut sessions.pool.state.lock().sessions) {
            member.upstream = number;
        }
        sessions
            .pool
            .route(vec![vec![(0, 1)], vec![(1, 1)], vec![(2, 1)]]);
        let chosen = |failed: &[u32], avoided: &[u32]| {
            let chosen = sessions.pool.choose(failed, avoided, None, None).unwrap();
            let Some(Choice::Carrier(Carrier::Session(_, ticket))) = chosen.0 else {
                panic!("there is no session");
            };
            let mut loads = sessions.loads.iter();
            loads.position(|load| ticket.is_of(load)).unwrap()
        };
        assert_eq!(chosen(&[], &[]), 0);
        assert_eq!(chosen(&[], &[0]), 1);
        assert_eq!(chosen(&[1], &[0]), 2);
        assert_eq!(chosen(&[1, 2], &[0]), 0);
        assert_eq!(chosen(&[0], &[0, 1, 2]), 1);
        assert_eq!(chosen(&[0, 1, 2], &[]), 0);
        // A rule names the only server: it may be avoided, or have failed, and no other will do.
        let only = sessions.pool.choose(&[2], &[2], None, Some(2)).unwrap();
        let Some(Choice::Carrier(Carrier::Session(_, ticket))) = only.0 else {
            panic!("there is no session");
        };
        assert!(ticket.is_of(&sessions.loads[2]));
        assert!(
            sessions
                .pool
                .choose(&[], &[], None, Some(3))
                .unwrap()
                .0
                .is_none()
        );
    }

    #[tokio::test]
    async fn a_session_on_the_streams_own_thread_is_chosen_unless_another_has_clearly_fewer() {
        let sessions = Sessions::new(&[10_000, 80_000, 20_000]);
        let mut held = Vec::new();
        for expected in [1, 1, 0, 2, 1] {
            let deadline = Instant::now() + Duration::from_secs(20);
            let carrier = sessions
                .pool
                .carrier(deadline, &[], &[], Some(1), None)
                .await;
            let Ok(Carrier::Session(_, ticket)) = carrier else {
                panic!("no session");
            };
            assert!(ticket.is_of(&sessions.loads[expected]));
            held.push(ticket);
        }
    }

    #[tokio::test]
    async fn a_session_that_had_no_room_is_full_until_one_of_its_streams_ends() {
        let sessions = Sessions::new(&[0]);
        let first = sessions.assign().await.unwrap();
        let second = sessions.assign().await.unwrap();
        // The server refused the second one.
        assert_eq!(sessions.loads[0].note_full(), 1);
        drop(second);
        assert_eq!(
            sessions.assign().await.unwrap_err(),
            "every session has as many streams as its server allows"
        );
        drop(first);
        assert!(sessions.assign().await.is_ok());
    }

    /// The servers that the owner was told of as full.
    fn told_full(pool: &Pool) -> Vec<u32> {
        let mut told = Vec::new();
        while let Next::Event(Event::SessionsFull { upstream }) =
            pool.events.next(Some(Duration::ZERO))
        {
            told.push(upstream);
        }
        told
    }

    #[tokio::test]
    async fn the_owner_hears_of_a_server_whose_sessions_are_all_full_and_not_at_each_look() {
        let sessions = Sessions::new(&[0, 0]);
        let held = [
            sessions.assign().await.unwrap(),
            sessions.assign().await.unwrap(),
        ];
        sessions.loads[0].note_full();
        assert_eq!(sessions.assign().await.unwrap().0, 1);
        assert_eq!(told_full(&sessions.pool), []);
        sessions.loads[1].note_full();
        for _ in 0..3 {
            sessions.assign().await.unwrap_err();
        }
        assert_eq!(told_full(&sessions.pool), [0]);
        drop(held);
    }

    #[tokio::test]
    async fn streams_that_come_one_after_the_other_are_shared_by_weight() {
        let sessions = Sessions::new(&[1000, 1000]);
        sessions.pool.state.lock().sessions[1].upstream = 1;
        sessions.pool.route(vec![vec![(0, 1), (1, 3)]]);
        let mut taken = [0, 0];
        for _ in 0..40 {
            // Its ticket is given back at once: the stream is over.
            let (session, _) = sessions.assign().await.unwrap();
            taken[session] += 1;
        }
        assert_eq!(taken, [10, 30]);
    }

    #[tokio::test]
    async fn streams_are_shared_by_weight_whatever_number_of_sessions_each_server_has() {
        let sessions = Sessions::new(&[1000, 1000, 1000, 1000]);
        sessions.pool.state.lock().sessions[3].upstream = 1;
        sessions.pool.route(vec![vec![(0, 1), (1, 1)]]);
        let mut held = Vec::new();
        for _ in 0..30 {
            held.push(sessions.assign().await.unwrap());
        }
        let second = held.iter().filter(|(session, _)| *session == 3).count();
        assert_eq!(second, 15);
    }

    fn simple_plan(upstream: u32) -> DialPlan {
        DialPlan {
            upstream,
            server_name: "server.test".to_owned(),
            port: 443,
            authority_port: None,
            path: "/".to_owned(),
            token: None,
            addresses: Vec::new(),
            ech: None,
            profile: Profile::standard(),
            websocket_hello: false,
            mode: Mode::Simple,
            tcp_timeout: Duration::ZERO,
            handshake_timeout: Duration::ZERO,
        }
    }

    #[tokio::test]
    async fn connections_that_are_being_dialled_count_among_those_of_a_server_in_simple_mode() {
        let sessions = Sessions::new(&[1000]);
        sessions.pool.set_plan(1, Some(simple_plan(1)));
        sessions.pool.set_plan(2, Some(simple_plan(2)));
        sessions.pool.route(vec![vec![(0, 1), (1, 1), (2, 2)]]);
        let mut held = Vec::new();
        let mut dialled = BTreeMap::from([(1, 0), (2, 0)]);
        for _ in 0..40 {
            let deadline = Instant::now() + Duration::from_secs(20);
            let carrier = sessions
                .pool
                .carrier(deadline, &[], &[], None, None)
                .await
                .map_err(|why| why.reason)
                .unwrap();
            if let Carrier::Dial(plan, _) = &carrier {
                *dialled.get_mut(&plan.upstream).unwrap() += 1;
            }
            held.push(carrier);
        }
        assert_eq!(dialled, BTreeMap::from([(1, 10), (2, 20)]));
        // Those that are over, or carried by a session by now, count no more.
        held.retain(|carrier| !matches!(carrier, Carrier::Dial(plan, _) if plan.upstream == 1));
        let carrier = sessions.pool.choose(&[], &[], None, None).unwrap().0;
        let Some(Choice::Carrier(Carrier::Dial(plan, _))) = carrier else {
            panic!("no dial");
        };
        assert_eq!(plan.upstream, 1);
    }

    #[tokio::test]
    async fn the_owner_hears_of_a_full_server_when_its_streams_go_to_the_next_one() {
        let sessions = Sessions::new(&[0, 0]);
        sessions.pool.state.lock().sessions[1].upstream = 1;
        sessions.pool.route(vec![vec![(0, 1)], vec![(1, 1)]]);
        let first = sessions.assign().await.unwrap();
        assert_eq!(first.0, 0);
        sessions.loads[0].note_full();
        assert_eq!(sessions.assign().await.unwrap().0, 1);
        assert_eq!(told_full(&sessions.pool), [0]);
    }

    #[tokio::test]
    async fn a_session_that_takes_no_new_streams_gets_none() {
        let sessions = Sessions::new(&[0, 0]);
        sessions.pool.retire(0);
        for _ in 0..3 {
            assert_eq!(sessions.assign().await.unwrap().0, 1);
        }
        sessions.pool.retire(1);
        assert_eq!(
            sessions.assign().await.unwrap_err(),
            "no session came up in time"
        );
    }

    #[tokio::test]
    async fn a_probe_has_a_place_only_in_a_session_without_streams_whose_server_announced_it() {
        let sessions = Sessions::new(&[0, 0]);
        let place = |session| {
            sessions
                .pool
                .place_for_echo(session)
                .map(|(_, ticket, _)| ticket)
        };
        assert_eq!(place(0).unwrap_err(), Echo::Failed);
        sessions.pool.state.lock().sessions[0].echoes = true;
        let held = place(0).unwrap();
        // A stream goes to the session beside it, and there is one probe at a time.
        let (session, ticket) = sessions.assign().await.unwrap();
        assert_eq!(session, 1);
        assert_eq!(place(0).unwrap_err(), Echo::Busy);
        drop(held);
        let (session, _ticket) = sessions.assign().await.unwrap();
        assert_eq!(session, 0);
        assert_eq!(place(0).unwrap_err(), Echo::Busy);
        drop(ticket);
        sessions.pool.retire(0);
        assert_eq!(place(0).unwrap_err(), Echo::Failed);
        assert_eq!(place(7).unwrap_err(), Echo::Failed);
    }

    #[tokio::test]
    async fn a_session_that_may_be_dead_gets_no_stream_before_something_has_come_from_its_server() {
        let sessions = Sessions::new(&[0, 0]);
        sessions.pool.doubt_all();
        let now = Instant::now();
        let why = sessions.assign().await.unwrap_err();
        assert_eq!(why, "no session came up in time");
        // It is not full either, which would have its owner dial another one.
        assert_eq!(told_full(&sessions.pool), []);
        let stats =
            |session: usize| Arc::clone(&sessions.pool.state.lock().sessions[session].stats);
        // What waited in the socket since before.
        stats(0).heard.set(now + Duration::from_millis(50));
        assert!(
            sessions
                .pool
                .choose(&[], &[], None, None)
                .unwrap()
                .0
                .is_none()
        );
        stats(1).answered.set(now + Duration::from_millis(1));
        let held = sessions.assign().await.unwrap();
        assert_eq!(held.0, 1);
        assert_eq!(sessions.assign().await.unwrap().0, 1);
        // After a while nobody has found it dead.
        sessions.pool.state.lock().sessions[0].doubted = now.checked_sub(DOUBT);
        assert_eq!(sessions.assign().await.unwrap().0, 0);
    }

    #[tokio::test]
    async fn a_warm_connection_that_may_be_dead_is_not_used_any_more() {
        let sessions = Sessions::new(&[0, 0]);
        sessions.pool.set_plan(0, Some(simple_plan(0)));
        for member in &mut sessions.pool.state.lock().sessions {
            member.purpose = Purpose::One(Instant::now() + WARM);
        }
        assert_eq!(sessions.assign().await.unwrap().0, 0);
        sessions.pool.doubt_all();
        assert_eq!(sessions.assign().await.unwrap_err(), "a dial");
    }

    #[test]
    fn that_a_session_was_full_is_forgotten_after_a_while() {
        let load = Load::default();
        load.note_full();
        let now = Instant::now();
        assert!(!load.has_room(now));
        assert!(load.has_room(now + FULL_FOR));
    }
}
