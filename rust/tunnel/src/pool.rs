//! The sessions that new streams may go to, the choice among them, and the wait for one.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use crate::counters::Counter;
use crate::dial::{DialPlan, Mode};
use crate::link::Link;
use crate::session::{Command, SessionStats};
use crate::snapshot::SessionSnapshot;

/// How long a warm connection of simple mode may wait for its first use; idle cuts of CDNs begin at 30 s.
pub(crate) const WARM: Duration = Duration::from_secs(15);

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
    /// Connections of simple mode that wait for their first use.
    warm: VecDeque<(Instant, Box<Link>)>,
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
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) stats: Arc<SessionStats>,
    pub(crate) address: SocketAddr,
    pub(crate) since: Instant,
    /// It is given no new streams.
    pub(crate) retiring: Arc<AtomicBool>,
}

pub(crate) enum Carrier {
    Session(mpsc::Sender<Command>),
    Simple(Arc<DialPlan>, Option<Box<Link>>),
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

    /// Keeps a connection of simple mode for the next stream.
    pub(crate) fn add_warm(&self, link: Link) {
        self.state
            .lock()
            .warm
            .push_back((Instant::now(), Box::new(link)));
        self.wake();
    }

    /// Closes the warm connections that would be cut soon.
    pub(crate) fn discard_cold(&self) {
        self.state
            .lock()
            .warm
            .retain(|(since, _)| since.elapsed() < WARM);
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

    /// Gives this session no new streams from now on. Returns where its driver is told.
    pub(crate) fn retire(&self, session: u64) -> Option<mpsc::Sender<Command>> {
        let state = self.state.lock();
        let member = state
            .sessions
            .iter()
            .find(|member| member.session == session)?;
        member.retiring.store(true, Ordering::Relaxed);
        Some(member.commands.clone())
    }

    /// Tells every session, as far as its queue has room.
    pub(crate) fn tell_all(&self, command: impl Fn() -> Command) {
        for member in &self.state.lock().sessions {
            let _ = member.commands.try_send(command());
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
            // Whether it came in time, the clock says.
            let _ = tokio::time::timeout_at(deadline.into(), changed).await;
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
            let plan = Arc::clone(plan);
            while let Some((since, mut link)) = self.warm.pop_front() {
                if since.elapsed() < WARM && link.is_quiet() {
                    return Ok(Some(Carrier::Simple(plan, Some(link))));
                }
            }
            return Ok(Some(Carrier::Simple(plan, None)));
        }
        let open = self.sessions.iter().filter(|member| {
            !member.retiring.load(Ordering::Relaxed) && !member.commands.is_closed()
        });
        match open.min_by_key(|member| member.stats.streams.value()) {
            Some(member) => Ok(Some(Carrier::Session(member.commands.clone()))),
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
