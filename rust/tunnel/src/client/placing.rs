//! What carries a stream: the rules' way, a session or a dial of its own, and another server if the first cannot reach its target.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ech_workers_proxy::{self as proxy, Target};
use ech_workers_rules::Way;
use ech_workers_session::{Abort, LocalEnd as _, Open, Refusal};
use futures_util::FutureExt;

use crate::client::ClientState;
use crate::client::connections::Carried;
use crate::client::direct;
use crate::client::event::Event;
use crate::client::pool::{Carrier, Prospect, Unavailable};
use crate::client::program::Program;
use crate::panics::caught;

/// How long a stream whose server cannot reach its target waits for a server that stands by without a session.
const STANDBY_WAIT: Duration = Duration::from_secs(5);

impl ClientState {
    /// Sends a connection the way that the rules say. `near`: the thread where its socket is.
    pub(super) async fn send(
        self: Arc<Self>,
        mut open: Open<Program>,
        target: &Target,
        near: Option<usize>,
    ) {
        match self.ways.decide(target) {
            Way::Tunnel => self.place(Box::new(open), near).await,
            Way::Server(server) => {
                open.end.restrict(server);
                self.place(Box::new(open), near).await;
            }
            Way::Direct => self.go_directly(open, target.clone(), near),
            Way::Block => open.end.fail(proxy::Failure::Blocked, "", ""),
        }
    }

    /// Connects to a target and relays, in a task of its own.
    fn go_directly(self: Arc<Self>, open: Open<Program>, target: Target, near: Option<usize>) {
        open.end.carried_by(Carried::Direct);
        let limits = direct::DirectLimits {
            idle: self.limits().idle_timeout,
            half_closed: self.config.half_closed_timeout,
        };
        let (thread, _) = near.map_or_else(
            || self.threads.least_busy(),
            |near| self.threads.numbered(near),
        );
        thread.spawn(async move {
            let wanted = |name| self.events.push(Event::NameWanted(name));
            let attempt = self.ways.reach(&target, wanted);
            let relay = direct::run(open.end, open.early, attempt, open.deadline, limits);
            if let Ok(Err(refusal)) = caught(relay).await {
                self.target_failed(&refusal);
            }
        });
    }

    /// Finds a session for a stream, waiting for one if need be. Gives up when nobody waits for the stream any more. `near`: the
    /// thread where its socket is.
    pub(super) async fn place(self: Arc<Self>, open: Box<Open<Program>>, near: Option<usize>) {
        self.place_beside(open, Vec::new(), near).await;
    }

    /// The same, with the servers that could not take it put behind the others.
    async fn place_beside(
        self: Arc<Self>,
        mut open: Box<Open<Program>>,
        failed: Vec<u32>,
        near: Option<usize>,
    ) {
        let deadline = open.deadline;
        let failed = [failed.as_slice(), open.end.tried()].concat();
        let avoided = self.unreached.of(&open.authority, Instant::now());
        loop {
            let carrier = tokio::select! {
                biased;
                carrier = self.pool.carrier(deadline, &failed, &avoided, near, open.end.only()) => carrier,
                () = std::future::poll_fn(|cx| open.end.poll_abandoned(cx)) => return,
            };
            match carrier {
                Ok(Carrier::Session(handle, ticket)) => {
                    open.end.hold(ticket);
                    let reserved = tokio::select! {
                        biased;
                        reserved = tokio::time::timeout_at(deadline.into(), handle.reserve()) => reserved,
                        () = std::future::poll_fn(|cx| open.end.poll_abandoned(cx)) => return,
                    };
                    let Ok(permit) = reserved else {
                        let why = Unavailable {
                            reason: "the session is too busy".to_owned(),
                            cause: "the session is too busy",
                        };
                        return self.refuse(*open, &why);
                    };
                    match permit {
                        Ok(permit) => return permit.send(open),
                        // That session has just ended: another one, or the wait for it.
                        Err(_) => tokio::task::yield_now().await,
                    }
                }
                Ok(Carrier::Dial(plan, counted)) => {
                    let control = self.control.clone();
                    control.spawn(self.dial_for(open, plan, counted, failed, near));
                    return;
                }
                Err(why) => return self.refuse(*open, &why),
            }
        }
    }

    /// As `place_beside`, in a task of its own.
    pub(super) fn place_again(
        self: &Arc<Self>,
        open: Box<Open<Program>>,
        failed: Vec<u32>,
        near: Option<usize>,
    ) {
        let placing = Arc::clone(self).place_beside(open, failed, near);
        self.control.spawn(placing.boxed());
    }

    /// Nothing carries the stream. If a server has answered for its target, that is what the program is told.
    pub(super) fn refuse(&self, mut open: Open<Program>, why: &Unavailable) {
        if let Some(refusal) = open.end.take_refusal() {
            return self.tell_unreached(open, &refusal);
        }
        self.connections_failed.add(1);
        open.end
            .fail(proxy::Failure::TunnelDown, why.cause, &why.reason);
    }

    /// A server cannot reach the stream's target, and nothing of the program has got to that: another server is asked, or the
    /// program is told when there is none left.
    pub(super) fn try_elsewhere(
        self: &Arc<Self>,
        mut open: Box<Open<Program>>,
        upstream: u32,
        refusal: Refusal,
    ) {
        let now = Instant::now();
        let is_new = open.end.note_unreached(upstream, refusal.clone());
        let tried = open.end.tried().to_vec();
        // A rule may name the only server.
        let other = match open.end.only() {
            Some(_) => Prospect::None,
            None => self.pool.prospect(&tried),
        };
        if !is_new || open.deadline <= now || other == Prospect::None {
            return self.tell_unreached(*open, &refusal);
        }
        self.unreached
            .note(&open.authority, upstream, refusal.status, now);
        self.events.push(Event::Unreached {
            upstream,
            kind: refusal.status.word(),
            reason: refusal.reason.clone(),
            tried: tried.clone(),
        });
        if other == Prospect::Now {
            return self.place_again(open, Vec::new(), None);
        }
        let shared = Arc::clone(self);
        let waiting = async move {
            let deadline = open.deadline.min(now + STANDBY_WAIT);
            let has_other = tokio::select! {
                biased;
                has_other = shared.pool.wait_for_other(&tried, deadline) => has_other,
                () = std::future::poll_fn(|cx| open.end.poll_abandoned(cx)) => return,
            };
            if has_other {
                shared.place_beside(open, Vec::new(), None).await;
            } else {
                shared.tell_unreached(*open, &refusal);
            }
        };
        self.control.spawn(waiting.boxed());
    }

    /// No server reaches the stream's target.
    fn tell_unreached(&self, open: Open<Program>, refusal: &Refusal) {
        self.target_failed(refusal);
        if open.told {
            open.end.abort(Abort::Reset);
        } else {
            open.end.refuse(refusal);
        }
    }
}
