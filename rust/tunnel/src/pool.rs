//! The sessions that new streams may go to, the choice among them, and the wait for one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::counters::Counter;
use crate::dial::{DialPlan, Mode};
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
    /// By which simple mode dials for each connection.
    plan: Option<Arc<DialPlan>>,
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
    pub(crate) fn set_plan(&self, plan: Option<DialPlan>) {
        self.state.lock().plan = plan.map(Arc::new);
        self.wake();
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

    /// What carries the next stream, waiting for it until `deadline`. An error: nothing will.
    pub(crate) async fn carrier(&self, deadline: Instant) -> Result<Carrier, Unavailable> {
        while Instant::now() < deadline {
            if let Some(carrier) = self.state.lock().choose()? {
                return Ok(carrier);
            }
            let mut changed = std::pin::pin!(self.changed.notified());
            // From here on no change is missed; one may have come since the look.
            changed.as_mut().enable();
            if let Some(carrier) = self.state.lock().choose()? {
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
    /// The least loaded session, or how simple mode goes. `Ok(None)`: wait. An error: do not.
    fn choose(&mut self) -> Result<Option<Carrier>, Unavailable> {
        if let Some(plan) = &self.plan
            && plan.mode == Mode::Simple
        {
            let now = Instant::now();
            for member in &mut self.sessions {
                if matches!(member.purpose, Purpose::One(until) if until > now)
                    && !member.handle.is_closed()
                {
                    member.purpose = Purpose::Taken;
                    return Ok(Some(Carrier::Session(member.handle.clone())));
                }
            }
            return Ok(Some(Carrier::Dial(Arc::clone(plan))));
        }
        let open = self.sessions.iter().filter(|member| {
            member.purpose == Purpose::Many
                && !member.retiring.load(Ordering::Relaxed)
                && member.stats.streams.value() < member.room.load(Ordering::Relaxed)
                && !member.handle.is_closed()
        });
        match open.min_by_key(|member| member.stats.streams.value()) {
            Some(member) => Ok(Some(Carrier::Session(member.handle.clone()))),
            None => self.unavailable.clone().map_or(Ok(None), Err),
        }
    }
}

impl Member {
    fn snapshot(&self) -> SessionSnapshot {
        let stats = &self.stats;
        SessionSnapshot {
            session: self.session,
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
