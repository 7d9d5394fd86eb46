//! The sessions that new streams may go to, the choice among them, and the wait for one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::counters::Counter;
use crate::dial::DialPlan;
use crate::driver::{Handle, SessionStats};
use crate::program::Program;
use crate::snapshot::SessionSnapshot;

/// How long a warm connection of simple mode may wait for its first use; idle cuts of CDNs begin at 30 s.
pub(crate) const WARM: Duration = Duration::from_secs(15);

/// How often a stream that waits for a session looks whether one that was full has room.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What new streams can go to.
#[derive(Default)]
pub(crate) struct Pool {
    state: Mutex<State>,
    /// A session came, or the plan or the availability changed.
    changed: Notify,
    /// Streams that wait for a session.
    waiting: Counter,
}

#[derive(Default)]
struct State {
    sessions: Vec<Member>,
    /// The servers in simple mode, by number, and how each of their connections is dialled.
    plans: BTreeMap<u32, Arc<DialPlan>>,
    /// Which servers streams go to: numbers and weights, the first tier that can take one. Empty: all alike.
    tiers: Vec<Vec<(u32, u32)>>,
    unavailable: Option<Unavailable>,
}

/// Why no session will carry a stream.
#[derive(Clone, Debug)]
pub(crate) struct Unavailable {
    /// For the owner.
    pub(crate) reason: String,
    /// For local programs.
    pub(crate) cause: &'static str,
}

pub(crate) struct Member {
    pub(crate) session: u64,
    pub(crate) upstream: u32,
    pub(crate) handle: Handle<Program>,
    /// What it may be used for.
    pub(crate) purpose: Purpose,
    pub(crate) stats: Arc<SessionStats>,
    pub(crate) address: SocketAddr,
    pub(crate) since: Instant,
    /// It is given no new streams.
    pub(crate) retiring: Arc<AtomicBool>,
    /// How many streams it has room for, as far as its server showed.
    pub(crate) room: Arc<AtomicU64>,
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

pub(crate) enum Carrier {
    Session(Handle<Program>),
    /// A session for this stream alone is to be dialled.
    Dial(Arc<DialPlan>),
}

impl Pool {
    /// Takes in a session that is up.
    pub(crate) fn add(&self, member: Member) {
        self.state.lock().sessions.push(member);
    }

    /// Lets those who wait look again.
    pub(crate) fn wake(&self) {
        self.changed.notify_waiters();
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
                None => state.plans.remove(&upstream),
            };
        }
        self.wake();
    }

    /// Which servers streams go to from now on.
    pub(crate) fn route(&self, tiers: Vec<Vec<(u32, u32)>>) {
        self.state.lock().tiers = tiers;
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

    /// Tells one session something.
    pub(crate) fn tell(&self, session: u64, tell: impl Fn(&Handle<Program>)) {
        for member in &self.state.lock().sessions {
            if member.session == session {
                tell(&member.handle);
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

    /// What carries the next stream, waiting for it until `deadline`. Servers in `failed` come last. An error: nothing will.
    pub(crate) async fn carrier(
        &self,
        deadline: Instant,
        failed: &[u32],
    ) -> Result<Carrier, Unavailable> {
        while Instant::now() < deadline {
            if let Some(carrier) = self.state.lock().choose(failed)? {
                return Ok(carrier);
            }
            let mut changed = std::pin::pin!(self.changed.notified());
            // From here on no change is missed; one may have come since the look.
            changed.as_mut().enable();
            if let Some(carrier) = self.state.lock().choose(failed)? {
                return Ok(carrier);
            }
            self.waiting.add(1);
            // A session that was full may have room again.
            let until = deadline.min(Instant::now() + LOOK_AGAIN);
            let _ = tokio::time::timeout_at(until.into(), changed).await;
            self.waiting.sub(1);
        }
        Err(Unavailable {
            reason: "no session came up in time".to_owned(),
            cause: "none came up in time",
        })
    }
}

impl State {
    /// Where the next stream goes: to the first tier that can take it, in its turn the servers that failed for this stream.
    /// `Ok(None)`: wait. An error: do not.
    fn choose(&mut self, failed: &[u32]) -> Result<Option<Carrier>, Unavailable> {
        let tiers = if self.tiers.is_empty() {
            vec![self.all_alike()]
        } else {
            self.tiers.clone()
        };
        for tier in &tiers {
            let fresh = tier.iter().filter(|(number, _)| !failed.contains(number));
            if let Some(carrier) = self.choose_of(&fresh.copied().collect::<Vec<_>>()) {
                return Ok(Some(carrier));
            }
        }
        for tier in tiers.iter().filter(|_| !failed.is_empty()) {
            if let Some(carrier) = self.choose_of(tier) {
                return Ok(Some(carrier));
            }
        }
        self.unavailable.clone().map_or(Ok(None), Err)
    }

    /// Every server, with the same weight.
    fn all_alike(&self) -> Vec<(u32, u32)> {
        let sessions = self.sessions.iter().map(|member| member.upstream);
        let mut all: Vec<u32> = sessions.chain(self.plans.keys().copied()).collect();
        all.sort_unstable();
        all.dedup();
        all.into_iter().map(|upstream| (upstream, 1)).collect()
    }

    /// The session with the fewest streams for its server's weight, or how simple mode goes at the server with the fewest.
    fn choose_of(&mut self, tier: &[(u32, u32)]) -> Option<Carrier> {
        let best = tier
            .iter()
            .filter_map(|&(upstream, weight)| Some((self.offer_of(upstream, weight)?, upstream)))
            .min_by_key(|&(share, _)| share);
        let (_, upstream) = best?;
        if let Some(plan) = self.plans.get(&upstream).map(Arc::clone) {
            let now = Instant::now();
            for member in &mut self.sessions {
                if member.upstream == upstream
                    && matches!(member.purpose, Purpose::One(until) if until > now)
                    && !member.handle.is_closed()
                {
                    member.purpose = Purpose::Taken;
                    return Some(Carrier::Session(member.handle.clone()));
                }
            }
            return Some(Carrier::Dial(plan));
        }
        let open = self
            .sessions
            .iter()
            .filter(|member| member.upstream == upstream && member.is_open());
        let least = open.min_by_key(|member| member.stats.streams.value())?;
        Some(Carrier::Session(least.handle.clone()))
    }

    /// How full a server would be with one more stream, for its weight; `None` if it can take none.
    fn offer_of(&self, upstream: u32, weight: u32) -> Option<u64> {
        let own = || {
            self.sessions
                .iter()
                .filter(|member| member.upstream == upstream)
        };
        let streams = if self.plans.contains_key(&upstream) {
            own()
                .filter(|member| member.purpose == Purpose::Taken)
                .count() as u64
        } else {
            let open = own().filter(|member| member.is_open());
            open.map(|member| member.stats.streams.value()).min()?
        };
        Some((streams + 1).saturating_mul(1 << 20) / u64::from(weight.max(1)))
    }
}

impl Member {
    /// Whether it takes one stream more, of many.
    fn is_open(&self) -> bool {
        self.purpose == Purpose::Many
            && !self.retiring.load(Ordering::Relaxed)
            && self.stats.streams.value() < self.room.load(Ordering::Relaxed)
            && !self.handle.is_closed()
    }

    fn snapshot(&self) -> SessionSnapshot {
        let stats = &self.stats;
        let heard = stats.heard.moment();
        SessionSnapshot {
            session: self.session,
            upstream: self.upstream,
            heard: heard.unwrap_or(self.since).elapsed(),
            unanswered: stats
                .probed
                .moment()
                .filter(|&probed| heard.is_none_or(|heard| heard < probed))
                .map(|probed| probed.elapsed()),
            address: self.address,
            retiring: self.retiring.load(Ordering::Relaxed),
            streams: stats.streams.value(),
            streams_total: stats.streams_total.value(),
            age: self.since.elapsed(),
            rtt: Some(stats.rtt_us.value())
                .filter(|&rtt| rtt > 0)
                .map(Duration::from_micros),
            bytes_up: stats.traffic.up.value(),
            bytes_down: stats.traffic.down.value(),
        }
    }
}
