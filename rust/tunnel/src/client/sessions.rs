//! The client's sessions: dialled, run, and reported.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ech_workers_session::{self as session, LocalEnd as _, Open, Returned, Session};
use ech_workers_sync::Mutex;
use ech_workers_yamux as yamux;
use tracing::Instrument;

use crate::carrier::WebSocket;
use crate::client::ClientState;
use crate::client::connections::Carried;
use crate::client::dial::{self, DialPlan, Dialed, Learned, Mode};
use crate::client::event::Event;
use crate::client::lanes::{EARLY_BULK, FAR};
use crate::client::load::Load;
use crate::client::pool::{Member, Purpose, Unavailable, WARM};
use crate::client::program::Program;
use crate::counters::Counted;
use crate::driver::{Driver, Owner, SessionStats, Side, Sums, seed};
use crate::failure::{Code, Ended, Failure, Layer};
use crate::log;
use crate::panics::caught;

/// What a connection of simple mode may hold for a program that does not take it, in bytes, where the server has no windows: above
/// that nothing more is read.
const STREAM_MEMORY: usize = 256 << 10;
/// What a connection of simple mode takes at a time, in bytes, where the server has windows: enough for 20 MB/s over 200 ms.
const SIMPLE_WINDOW: usize = 4 << 20;

impl ClientState {
    /// Dials and keeps what comes of it for the next streams.
    pub(super) async fn make_session(self: Arc<Self>, number: u64, plan: DialPlan) {
        if plan.mode == Mode::Yamux {
            self.pool.dial_began(number, plan.upstream);
        }
        let (carrier, dialed) = match self.dial(number, &plan).await {
            Ok(made) => made,
            Err(failure) => {
                return self.tell_dial_failed(number, &plan, failure);
            }
        };
        let purpose = match plan.mode {
            Mode::Yamux => Purpose::Many,
            Mode::Simple => Purpose::One(Instant::now() + WARM),
        };
        let (thread, counted) = self.threads.least_busy();
        let home = thread.number;
        thread.spawn(async move {
            let _counted = counted;
            let carrier = match carrier.into_current_runtime() {
                Ok(carrier) => carrier,
                Err(failure) => {
                    return self.tell_dial_failed(number, &plan, failure);
                }
            };
            let (running, member) = self.start_session(carrier, &dialed, &plan, purpose, home);
            let session = member.session;
            // First: who hears of the session finds it in the snapshot, and streams find it.
            self.pool.add(member);
            self.pool.dial_ended(number);
            self.events.push(Event::SessionUp {
                dial: number,
                session,
                upstream: plan.upstream,
                dialed: Box::new(dialed),
            });
            if plan.mode == Mode::Simple {
                let shared = Arc::clone(&self);
                tokio::spawn(async move {
                    tokio::time::sleep(WARM).await;
                    // Unused: it would be cut soon.
                    shared.pool.discard_unused(session);
                });
            }
            let Running { driver, observer } = running;
            let span = log::session(session, Some(observer.upstream));
            self.keep_session(session, purpose, &observer, driver.run(&observer))
                .instrument(span)
                .await;
        });
    }

    pub(super) fn tell_dial_failed(&self, dial: u64, plan: &DialPlan, failure: Failure) {
        if plan.mode == Mode::Yamux {
            self.pool.dial_failed(dial, plan.upstream);
        }
        self.events.push(Event::DialFailed {
            dial,
            upstream: plan.upstream,
            failure,
        });
    }

    /// Dials for one stream alone, whose session runs on the thread `near`, where its socket is.
    pub(super) async fn dial_for(
        self: Arc<Self>,
        mut open: Box<Open<Program>>,
        plan: Arc<DialPlan>,
        counted: Counted,
        mut failed: Vec<u32>,
        near: Option<usize>,
    ) {
        let others = [failed.as_slice(), &[plan.upstream]].concat();
        let has_other = open.end.only().is_none() && self.pool.has_other(&others);
        let plan = if has_other { plan.hurried() } else { plan };
        let made = {
            let mut dialing = std::pin::pin!(self.dial(0, &plan));
            tokio::select! {
                biased;
                made = &mut dialing => made,
                () = std::future::poll_fn(|cx| open.end.poll_abandoned(cx)) => return,
                () = tokio::time::sleep_until(open.deadline.into()) => {
                    self.refuse(*open, &Unavailable::in_time());
                    // The dial has its own limits, and its failure is news of the server.
                    if let Err(failure) = dialing.await {
                        self.tell_dial_failed(0, &plan, failure);
                    }
                    return;
                }
            }
        };
        let (carrier, dialed) = match made {
            Ok(made) => made,
            Err(failure) => {
                drop(counted);
                failed.push(plan.upstream);
                // Nothing of it was sent: another server may carry it.
                if open.end.only().is_none() && self.pool.has_other(&failed) {
                    self.place_again(open, failed, near);
                } else {
                    self.refuse(*open, &Unavailable::after(&failure));
                }
                return self.tell_dial_failed(0, &plan, failure);
            }
        };
        let (thread, on_thread) = near.map_or_else(
            || self.threads.least_busy(),
            |near| self.threads.numbered(near),
        );
        let home = thread.number;
        thread.spawn(async move {
            let _on_thread = on_thread;
            let carrier = match carrier.into_current_runtime() {
                Ok(carrier) => carrier,
                Err(failure) => {
                    return self.refuse(*open, &Unavailable::after(&failure));
                }
            };
            let (running, member) =
                self.start_session(carrier, &dialed, &plan, Purpose::Taken, home);
            open.end
                .carried_by(Carried::Session(member.session, member.upstream));
            // The queue of a session that has just begun has room.
            if let Ok(permit) = member.handle.reserve().await {
                permit.send(open);
            }
            let Running { driver, observer } = running;
            let session = member.session;
            self.pool.add(member);
            // From now on the session counts in the dial's place.
            drop(counted);
            let span = log::session(session, Some(observer.upstream));
            self.keep_session(session, Purpose::Taken, &observer, driver.run(&observer))
                .instrument(span)
                .await;
        });
    }

    pub(super) fn start_session(
        self: &Arc<Self>,
        carrier: WebSocket,
        dialed: &Dialed,
        plan: &DialPlan,
        purpose: Purpose,
        thread: usize,
    ) -> (Running, Member) {
        let mode = plan.mode;
        let limits = self.limits();
        let (session_mode, memory_share) = match mode {
            Mode::Yamux => (
                session::Mode::Yamux(self.yamux_config()),
                session::Allowance::Part(1),
            ),
            Mode::Simple => {
                let window = dialed.has_simple_window().then_some(SIMPLE_WINDOW);
                // With a window all of it may wait, so that what the server says behind it is read all the same.
                let share = window.unwrap_or(0) + STREAM_MEMORY;
                (
                    session::Mode::Simple { window },
                    session::Allowance::Bytes(share),
                )
            }
        };
        let config = session::Config {
            mode: session_mode,
            extended: dialed.extended(mode),
            limits: session::Limits {
                answer: limits.open_timeout.max(Duration::from_secs(15)),
                idle: limits.idle_timeout,
                half_closed_idle: self.config.half_closed_timeout,
            },
            ping_interval: self.config.ping_interval,
            ping_timeout: self.config.ping_timeout,
            memory: Arc::clone(&self.memory),
            memory_share,
            early_bulk: (mode == Mode::Yamux && dialed.tcp >= FAR).then_some(EARLY_BULK),
            seed: seed(),
        };
        let since = Instant::now();
        let stats = Arc::new(SessionStats::default());
        let (driver, handle) = Driver::new(
            Session::client(carrier, config, since),
            Side::Client,
            Arc::clone(&stats),
            Sums {
                traffic: Some(Arc::clone(&self.totals.of(plan.upstream).traffic)),
                ..Sums::default()
            },
        );
        let retiring = Arc::new(AtomicBool::new(false));
        let load = Arc::<Load>::default();
        let session = self.sessions_total.fetch_add(1, Ordering::Relaxed) + 1;
        let observer = Observer {
            shared: Arc::clone(self),
            session,
            upstream: plan.upstream,
            since,
            stats: Arc::clone(&stats),
            retiring: Arc::clone(&retiring),
            load: Arc::clone(&load),
            thread,
            told: Mutex::new(Told::Nothing),
        };
        let member = Member {
            session,
            upstream: plan.upstream,
            handle,
            purpose,
            doubted: None,
            stats,
            address: dialed.address,
            since,
            retiring,
            load,
            thread,
            distance: dialed.tcp,
            echoes: dialed.echoes(mode),
        };
        (Running { driver, observer }, member)
    }

    /// Keeps a session in the pool, where it is already, while it runs, and tells how it ended.
    pub(super) async fn keep_session(
        self: Arc<Self>,
        session: u64,
        purpose: Purpose,
        observer: &Observer,
        running: impl Future<Output = Ended>,
    ) {
        self.pool.wake();
        let ended = caught(running).await.unwrap_or_else(Ended::Lost);
        self.pool.remove(session);
        if purpose == Purpose::Many {
            observer.tell(ended);
        } else if let Ended::Lost(failure) = ended {
            // Whoever used it was told by its stream.
            tracing::debug!(
                layer = failure.layer.name(),
                code = failure.code.as_str(),
                "a connection in simple mode ended: {failure}"
            );
        }
    }

    /// One dial, counted, with what it learned reported.
    pub(super) async fn dial(
        &self,
        number: u64,
        plan: &DialPlan,
    ) -> Result<(WebSocket, Dialed), Failure> {
        let totals = self.totals.of(plan.upstream);
        totals.dials.add(1);
        let tls = self.tls();
        let dialing = dial::dial(plan, &tls, &self.addresses, |what| {
            if matches!(what, Learned::Ech(_)) {
                totals.ech_retries.add(1);
            }
            self.events.push(Event::Learned {
                upstream: plan.upstream,
                server_name: plan.server_name.clone(),
                what,
            });
        });
        let dialing = caught(dialing).instrument(log::dial(plan.upstream));
        let outcome = dialing.await.and_then(|outcome| outcome);
        match &outcome {
            Ok((_, dialed)) => {
                totals.connect_us.set_duration(dialed.tcp);
            }
            Err(failure) => {
                totals.dials_failed.add(1);
                tracing::debug!(
                    layer = failure.layer.name(),
                    code = failure.code.as_str(),
                    upstream = plan.upstream,
                    "dial {number}: {failure}"
                );
            }
        }
        outcome
    }

    fn yamux_config(&self) -> yamux::Config {
        yamux::Config {
            receive_window_max: self.config.receive_window_max,
            ping_interval: self.config.ping_interval,
            ping_timeout: self.config.ping_timeout,
            budget: Arc::clone(&self.windows),
            ..yamux::Config::default()
        }
    }
}

/// Hears what a session has to say while it runs, and tells the client's owner.
pub(super) struct Observer {
    shared: Arc<ClientState>,
    session: u64,
    upstream: u32,
    since: Instant,
    stats: Arc<SessionStats>,
    retiring: Arc<AtomicBool>,
    load: Arc<Load>,
    /// The number of the session's thread.
    thread: usize,
    told: Mutex<Told>,
}

/// What the client's owner knows of the end of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    /// It takes no new streams.
    NoNewStreams,
    Ended,
}

impl Observer {
    /// Tells how the session ended, once. A go-away is no end: only a loss is told after it, since it cuts streams.
    fn tell(&self, ended: Ended) {
        {
            let mut told = self.told.lock();
            let is_loss = matches!(ended, Ended::Lost(_));
            if *told == Told::Ended || *told == Told::NoNewStreams && !is_loss {
                return;
            }
            *told = match ended {
                Ended::GoneAway | Ended::Exhausted => Told::NoNewStreams,
                _ => Told::Ended,
            };
        }
        self.shared.events.push(Event::SessionLost {
            session: self.session,
            upstream: self.upstream,
            ended,
            age: self.since.elapsed(),
            received: self.stats.traffic.down.value(),
        });
    }
}

impl Owner<Program> for Observer {
    fn handle_event(&self, event: session::Event<Program>) {
        match event {
            session::Event::GoneAway(code) => {
                self.retiring.store(true, Ordering::Relaxed);
                self.tell(gone_away(code));
            }
            // Whoever waits for it hears that it is gone.
            session::Event::Unreached(open, _) | session::Event::Returned(open, _)
                if open.end.is_echo() => {}
            session::Event::TargetFailed(refusal) => self.shared.target_failed(&refusal),
            session::Event::BulkChanged(bulk) => {
                self.load.note_bulk(bulk);
                self.shared.events.push(Event::BulkChanged {
                    session: self.session,
                    upstream: self.upstream,
                    streams: bulk.transfers as u64,
                    growing: bulk.is_growing,
                });
            }
            session::Event::Unreached(open, refusal) => {
                self.shared
                    .try_elsewhere(Box::new(open), self.upstream, refusal);
            }
            session::Event::Returned(open, why) => {
                match why {
                    Returned::Full | Returned::Refused => {
                        let streams = self.load.note_full();
                        tracing::debug!(
                            "session {} has no room beyond {streams} streams",
                            self.session
                        );
                    }
                    Returned::IdsExhausted => {
                        self.shared.pool.retire(self.session);
                        self.tell(Ended::Exhausted);
                    }
                    Returned::GoingAway | Returned::Ended => {
                        self.retiring.store(true, Ordering::Relaxed);
                    }
                }
                let placing = Arc::clone(&self.shared).place(Box::new(open), Some(self.thread));
                tokio::spawn(placing);
            }
        }
    }
}

/// A go-away: the server stops, or it has found fault with us.
fn gone_away(code: yamux::GoAwayCode) -> Ended {
    match code {
        yamux::GoAwayCode::Normal => Ended::GoneAway,
        broken => Ended::Lost(Failure::new(
            Layer::Yamux,
            Code::YamuxProtocol,
            format!("the server gave up the session: {broken:?}"),
        )),
    }
}

/// A session that is about to run.
pub(super) struct Running {
    pub(super) driver: Driver<Program>,
    pub(super) observer: Observer,
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::client::Client;
    use crate::client::tests::client;
    use crate::driver::Handle;
    use crate::events::Next;

    const LIMIT: Duration = Duration::from_secs(20);

    fn member(session: u64) -> Member {
        Member {
            session,
            upstream: 0,
            handle: Handle::of_no_session(),
            purpose: Purpose::Many,
            doubted: None,
            stats: Arc::default(),
            address: "192.0.2.1:443".parse().unwrap(),
            since: Instant::now(),
            retiring: Arc::default(),
            load: Arc::default(),
            thread: 0,
            distance: Duration::ZERO,
            echoes: false,
        }
    }

    fn observer(client: &Client, session: u64) -> Observer {
        Observer {
            shared: Arc::clone(&client.shared),
            session,
            upstream: 0,
            since: Instant::now(),
            stats: Arc::default(),
            retiring: Arc::default(),
            load: Arc::default(),
            thread: 0,
            told: Mutex::new(Told::Nothing),
        }
    }

    /// The ends of sessions and the log lines that are reported until `enough` ends are there.
    fn reported(client: &Client, enough: usize) -> (Vec<Ended>, Vec<String>) {
        let (mut ends, mut lines) = (Vec::new(), Vec::new());
        let deadline = Instant::now() + LIMIT;
        while ends.len() < enough {
            let left = deadline.saturating_duration_since(Instant::now());
            match client.events().next(Some(left)) {
                Next::Event(Event::SessionLost { ended, .. }) => ends.push(ended),
                Next::Log(line) => lines.push(line.message),
                Next::Event(_) | Next::Woken => {}
                Next::TimedOut | Next::Closed => break,
            }
        }
        (ends, lines)
    }

    #[test]
    fn a_session_whose_driver_panics_leaves_the_pool_and_is_reported_with_the_reason_in_the_log() {
        let client = client();
        let observer = observer(&client, 7);
        let shared = Arc::clone(&client.shared);
        let session = client.shared.control.spawn(async move {
            let running = async {
                tokio::task::yield_now().await;
                let nothing: [u8; 0] = [];
                std::hint::black_box(nothing[std::hint::black_box(3)]);
                Ended::Retired
            };
            shared.pool.add(member(7));
            shared
                .keep_session(7, Purpose::Many, &observer, running)
                .await;
        });
        client.shared.control.block_on(session).unwrap();
        let (ends, lines) = reported(&client, 1);
        assert!(
            matches!(&ends[..], [Ended::Lost(failure)] if failure.code == Code::Internal
                && failure.message.contains("index out of bounds")),
            "{ends:?}"
        );
        assert!(
            lines
                .iter()
                .any(|line| line.contains("index out of bounds") && line.contains("sessions.rs")),
            "{lines:?}"
        );
        assert!(client.snapshot().sessions.is_empty());
    }

    #[test]
    fn a_go_away_is_told_and_a_loss_after_it_too_but_nothing_twice() {
        let client = client();
        let lost = Ended::Lost(Failure::new(Layer::Tcp, Code::TcpReset, "cut"));
        for (said, told) in [
            (vec![Ended::GoneAway, Ended::Retired], 1),
            (vec![Ended::Exhausted, Ended::Retired], 1),
            (vec![Ended::GoneAway, lost.clone(), lost.clone()], 2),
            (vec![lost.clone(), Ended::GoneAway, lost.clone()], 1),
            (vec![Ended::Retired], 1),
        ] {
            let observer = observer(&client, 1);
            for ended in &said {
                observer.tell(ended.clone());
            }
            assert_eq!(reported(&client, told).0, said[..told]);
            client.events().wake();
            assert!(matches!(client.events().next(None), Next::Woken));
        }
    }
}
