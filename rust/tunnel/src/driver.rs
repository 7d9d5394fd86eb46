//! Runs a session on the runtime: its task, its timer, and the requests that reach it.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use ech_workers_session::{self as session, Ended as SessionEnded, LocalEnd, Lost, Open, Session};
use ech_workers_sync::Mutex;
use tokio::sync::mpsc;
use tokio::time::Sleep;

use crate::carrier::WebSocket;
use crate::counters::{Counter, Stamp, Traffic};
use crate::failure::{Code, Ended, Failure, Layer};
use crate::panics::catch;

/// Requests that wait for one driver to take them.
const OPENS: usize = 256;
/// Requests taken in one turn.
const TURN_OPENS: usize = 32;
/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// What one session counts, read by snapshots.
#[derive(Debug, Default)]
pub struct SessionStats {
    /// Open streams.
    pub streams: Arc<Counter>,
    /// Streams opened so far.
    pub streams_total: Counter,
    /// Round trip in microseconds; 0 while none was measured.
    pub rtt_us: Counter,
    /// That of the path, with little of the queue that the session's own bytes make on it, in microseconds; 0 while none was
    /// measured.
    pub path_us: Counter,
    /// Bytes relayed.
    pub traffic: Arc<Traffic>,
    /// When something came from the peer last.
    pub heard: Stamp,
    /// When the last question was sent that the peer has answered.
    pub answered: Stamp,
    /// When the peer was asked for a sign of life. While it owes one, a later question changes nothing.
    pub probed: Stamp,
}

/// What is read so soon after a question may have waited in the socket since before it, as when the machine slept.
const LEFT_OVER: Duration = Duration::from_millis(100);

impl SessionStats {
    /// Whether the peer was alive after `moment`: it has answered a later question, or sent what cannot have been here by then.
    pub(crate) fn is_heard_since(&self, moment: Instant) -> bool {
        // A stamp has microseconds.
        let is_after = |stamp: &Stamp, least| {
            let found = stamp.moment();
            found.is_some_and(|found| found + Duration::from_micros(1) > least)
        };
        is_after(&self.answered, moment) || is_after(&self.heard, moment + LEFT_OVER)
    }

    /// When the peer was asked for a sign of life that it owes.
    pub(crate) fn unanswered(&self) -> Option<Instant> {
        let probed = self.probed.moment()?;
        (!self.is_heard_since(probed)).then_some(probed)
    }
}

/// Which side of a session a driver runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
}

/// A seed for what must not look regular, such as a session's pings.
pub(crate) fn seed() -> u64 {
    let mut seed = [0; 8];
    // Without random numbers pings look regular, which is no reason to fail.
    let _ = getrandom::fill(&mut seed);
    u64::from_ne_bytes(seed)
}

/// What a driver's owner is told while the session runs.
pub(crate) trait Owner<L> {
    fn handle_event(&self, event: session::Event<L>);
}

/// What a session was told beside the streams to open. It never waits behind these.
#[derive(Debug, Default)]
struct Signals {
    state: Mutex<Wanted>,
}

#[derive(Debug, Default)]
struct Wanted {
    retire: bool,
    probe: bool,
    end: bool,
    driver: Option<Waker>,
}

impl Signals {
    fn give(&self, set: impl FnOnce(&mut Wanted)) {
        let driver = {
            let mut wanted = self.state.lock();
            set(&mut wanted);
            wanted.driver.clone()
        };
        if let Some(driver) = driver {
            driver.wake();
        }
    }

    fn take(&self, driver: &Waker) -> Wanted {
        let mut wanted = self.state.lock();
        if !wanted
            .driver
            .as_ref()
            .is_some_and(|old| old.will_wake(driver))
        {
            wanted.driver = Some(driver.clone());
        }
        Wanted {
            retire: std::mem::take(&mut wanted.retire),
            probe: std::mem::take(&mut wanted.probe),
            end: std::mem::take(&mut wanted.end),
            driver: None,
        }
    }
}

/// How others reach a running session.
#[derive(Debug)]
pub(crate) struct Handle<L> {
    opens: mpsc::Sender<Box<Open<L>>>,
    signals: Arc<Signals>,
}

impl<L> Clone for Handle<L> {
    fn clone(&self) -> Self {
        Self {
            opens: self.opens.clone(),
            signals: Arc::clone(&self.signals),
        }
    }
}

impl<L> Handle<L> {
    /// One that reaches nobody.
    #[cfg(test)]
    pub(crate) fn of_no_session() -> Self {
        Self {
            opens: mpsc::channel(1).0,
            signals: Arc::default(),
        }
    }

    /// One whose session does nothing with its queue.
    #[cfg(test)]
    pub(crate) fn with_queue() -> (Self, mpsc::Receiver<Box<Open<L>>>) {
        let (opens, queue) = mpsc::channel(OPENS);
        let signals = Arc::default();
        (Self { opens, signals }, queue)
    }

    /// Waits for a place in the session's queue; an error: the session has ended. The place is to be used at once: the end of the
    /// session waits for that.
    pub(crate) async fn reserve(
        &self,
    ) -> Result<mpsc::Permit<'_, Box<Open<L>>>, mpsc::error::SendError<()>> {
        self.opens.reserve().await
    }

    /// The session has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.opens.is_closed()
    }

    /// No new streams; the session ends when its last one has.
    pub(crate) fn retire(&self) {
        self.signals.give(|wanted| wanted.retire = true);
    }

    /// Finds out whether the peer is alive.
    pub(crate) fn probe(&self) {
        self.signals.give(|wanted| wanted.probe = true);
    }

    /// Ends the session.
    pub(crate) fn end(&self) {
        self.signals.give(|wanted| wanted.end = true);
    }
}

/// Where a session is counted beside its own numbers.
#[derive(Debug, Default)]
pub(crate) struct Sums {
    /// All sessions together.
    pub(crate) all: Option<Arc<SessionStats>>,
    /// The traffic of those that it is one of.
    pub(crate) traffic: Option<Arc<Traffic>>,
}

/// A session with what it needs to run.
pub(crate) struct Driver<L: LocalEnd> {
    session: Session<WebSocket, L>,
    side: Side,
    opens: mpsc::Receiver<Box<Open<L>>>,
    signals: Arc<Signals>,
    stats: Arc<SessionStats>,
    /// Where else it is counted.
    sums: Sums,
    /// Open streams as they were counted last.
    counted: u64,
    timer: std::pin::Pin<Box<Sleep>>,
    timer_at: Instant,
}

impl<L: LocalEnd> Driver<L> {
    pub(crate) fn new(
        session: Session<WebSocket, L>,
        side: Side,
        stats: Arc<SessionStats>,
        sums: Sums,
    ) -> (Self, Handle<L>) {
        let (sender, opens) = mpsc::channel(OPENS);
        let signals = Arc::<Signals>::default();
        let handle = Handle {
            opens: sender,
            signals: Arc::clone(&signals),
        };
        let timer_at = Instant::now() + Duration::from_secs(3600);
        let driver = Self {
            session,
            side,
            opens,
            signals,
            stats,
            sums,
            counted: 0,
            timer: Box::pin(tokio::time::sleep_until(timer_at.into())),
            timer_at,
        };
        (driver, handle)
    }

    /// Runs the session to its end. Requests that it had not begun are given back to the owner. A panic is an end like a
    /// loss.
    pub(crate) async fn run(mut self, owner: &impl Owner<L>) -> Ended {
        // The session divides its own time; tokio's budget would only add polls.
        let ended = tokio::task::unconstrained(std::future::poll_fn(|cx| {
            match catch(|| self.poll(cx, owner)) {
                Ok(poll) => poll.map(Ok),
                Err(failure) => Poll::Ready(Err(failure)),
            }
        }))
        .await;
        self.opens.close();
        let (outcome, has_said_goodbye) = match ended {
            Ok(ended) => {
                // What is said after a panic may panic again.
                let goodbye = catch(|| self.session.say_goodbye(&ended));
                self.hand_over(owner);
                (outcome(ended), goodbye.is_ok())
            }
            Err(failure) => (Ended::Lost(failure), false),
        };
        // Before the goodbye, for which they need not wait. Whoever has a place in the queue already is about to use it.
        while let Some(open) = self.opens.recv().await {
            owner.handle_event(session::Event::Returned(*open, session::Returned::Ended));
        }
        if has_said_goodbye {
            // The connection may be broken already.
            let _ = tokio::time::timeout(
                GOODBYE,
                std::future::poll_fn(|cx| self.session.poll_close(cx)),
            )
            .await;
        }
        outcome
    }

    fn poll(&mut self, cx: &mut Context<'_>, owner: &impl Owner<L>) -> Poll<SessionEnded<Failure>> {
        let wanted = self.signals.take(cx.waker());
        if wanted.end {
            self.session.shut_down();
        }
        if wanted.retire {
            self.session.retire();
        }
        if wanted.probe {
            let now = Instant::now();
            self.session.probe(now);
            if self.stats.unanswered().is_none() {
                self.stats.probed.set(now);
            }
        }
        let mut taken = 0;
        // A burst waits in the channel: only a limit of the server's may count as a full session. What waits there at the end of
        // the session comes back.
        while taken < TURN_OPENS
            && !wanted.end
            && self.session.has_queue_room()
            && let Poll::Ready(Some(open)) = self.opens.poll_recv(cx)
        {
            self.session.open(*open, Instant::now());
            taken += 1;
        }
        if taken == TURN_OPENS {
            cx.waker().wake_by_ref();
        }
        let held_back = !self.session.has_queue_room();
        let ended = self.session.poll(cx, &Instant::now);
        if held_back && self.session.has_queue_room() {
            cx.waker().wake_by_ref();
        }
        self.hand_over(owner);
        self.publish();
        if ended.is_pending() {
            self.set_timer(cx);
        }
        ended
    }

    fn hand_over(&mut self, owner: &impl Owner<L>) {
        while let Some(event) = self.session.poll_event() {
            owner.handle_event(event);
        }
    }

    fn set_timer(&mut self, cx: &mut Context<'_>) {
        let Some(due) = self.session.next_timeout() else {
            return;
        };
        // A timer that is due too early costs a turn; to move it at each turn would cost more.
        if due < self.timer_at || self.timer.as_mut().poll(cx).is_ready() {
            self.timer.as_mut().reset(due.into());
            self.timer_at = due;
            if self.timer.as_mut().poll(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
        }
    }

    fn publish(&mut self) {
        let open = self.session.streams() as u64;
        let all = self.sums.all.as_ref();
        if open != self.counted {
            for stats in [Some(&self.stats), all].into_iter().flatten() {
                // Added and taken away, not set: these may be the streams of several sessions.
                stats.streams.add(open.saturating_sub(self.counted));
                stats.streams.sub(self.counted.saturating_sub(open));
            }
            self.counted = open;
        }
        let traffic = self.session.take_traffic();
        if traffic.opened > 0 {
            for stats in [Some(&self.stats), all].into_iter().flatten() {
                stats.streams_total.add(traffic.opened);
            }
        }
        let (up, down) = match self.side {
            Side::Client => (traffic.sent, traffic.received),
            Side::Server => (traffic.received, traffic.sent),
        };
        let counters = [
            Some(&self.stats.traffic),
            all.map(|all| &all.traffic),
            self.sums.traffic.as_ref(),
        ];
        for counters in counters.into_iter().flatten() {
            if up > 0 {
                counters.up.add(up);
            }
            if down > 0 {
                counters.down.add(down);
            }
        }
        self.stats.heard.set(self.session.last_received());
        if let Some(answered) = self.session.last_answered() {
            self.stats.answered.set(answered);
        }
        for (counter, round_trip) in [
            (&self.stats.rtt_us, self.session.round_trip()),
            (&self.stats.path_us, self.session.path_round_trip()),
        ] {
            if let Some(round_trip) = round_trip {
                counter.set_duration(round_trip);
            }
        }
    }
}

impl<L: LocalEnd> Drop for Driver<L> {
    fn drop(&mut self) {
        for stats in [Some(&self.stats), self.sums.all.as_ref()]
            .into_iter()
            .flatten()
        {
            stats.streams.sub(self.counted);
        }
    }
}

/// The end of a session in the terms of the tunnel.
fn outcome(ended: SessionEnded<Failure>) -> Ended {
    match ended {
        SessionEnded::Retired => Ended::Retired,
        SessionEnded::Shutdown => Ended::Shutdown,
        SessionEnded::Lost(lost) => Ended::Lost(failure(lost)),
    }
}

fn failure(lost: Lost<Failure>) -> Failure {
    match lost {
        Lost::Carrier(failure) => failure,
        Lost::Closed(closed) if closed.goodbye => {
            let mut message = "the other end closed the WebSocket".to_owned();
            if !closed.description.is_empty() {
                message = format!("{message}: {}", closed.description);
            }
            Failure::new(Layer::WebSocket, Code::WebSocketClosed, message)
        }
        Lost::Closed(_) => Failure::new(
            Layer::Tls,
            Code::Closed,
            "the other end closed the connection",
        ),
        Lost::Fault(session::Fault::Yamux(error)) => Failure::new(
            Layer::Yamux,
            Code::YamuxProtocol,
            format!("the peer broke the yamux protocol: {error}"),
        ),
        Lost::Fault(session::Fault::Text(why)) => {
            Failure::new(Layer::WebSocket, Code::WebSocketProtocol, why)
        }
        Lost::PingTimeout => Failure::new(
            Layer::Yamux,
            Code::YamuxPingTimeout,
            "the other end has not answered a ping in time",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, IoSlice, IoSliceMut};

    use ech_workers_session::{
        Abort, Allowance, Carrier as _, Config, Ledger, Limits, Mode, Refusal, Returned,
    };
    use ech_workers_yamux as yamux;
    use futures_util::FutureExt as _;

    use super::*;
    use crate::carrier::tests::pair;

    /// A program that says nothing and takes nothing.
    #[derive(Debug)]
    struct Silent;

    impl LocalEnd for Silent {
        fn poll_read(
            &mut self,
            _: &mut Context<'_>,
            _: &mut [IoSliceMut<'_>],
        ) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn poll_write(
            &mut self,
            _: &mut Context<'_>,
            _: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn finish(&mut self) {}

        fn close(self) {}

        fn abort(self, _: Abort) {}

        fn refuse(self, _: &Refusal) {}
    }

    /// Keeps why requests came back.
    #[derive(Default)]
    struct Keeper(Mutex<Vec<Returned>>);

    impl Owner<Silent> for Keeper {
        fn handle_event(&self, event: session::Event<Silent>) {
            if let session::Event::Returned(_, why) = event {
                self.0.lock().push(why);
            }
        }
    }

    fn driver(carrier: WebSocket) -> (Driver<Silent>, Handle<Silent>) {
        let config = Config {
            mode: Mode::Yamux(yamux::Config::default()),
            extended: true,
            limits: Limits {
                answer: Duration::from_secs(30),
                idle: Duration::from_secs(600),
                half_closed_idle: Duration::from_secs(120),
            },
            ping_interval: Duration::from_secs(28),
            ping_timeout: Duration::from_secs(15),
            memory: Arc::new(Ledger::new(1 << 20)),
            memory_share: Allowance::Bytes(1 << 20),
            early_bulk: None,
            seed: 1,
        };
        let session = Session::client(carrier, config, Instant::now());
        Driver::new(session, Side::Client, Arc::default(), Sums::default())
    }

    fn open() -> Box<Open<Silent>> {
        let deadline = Instant::now() + Duration::from_secs(8);
        Box::new(Open::new(Silent, b"a.test:1".to_vec(), deadline))
    }

    #[tokio::test]
    async fn a_request_whose_place_was_taken_before_the_session_ended_comes_back() {
        let (carrier, _peer) = pair().await;
        let (driver, handle) = driver(carrier);
        let owner = Keeper::default();
        let late = async {
            let permit = handle.reserve().await.unwrap();
            handle.end();
            while !handle.is_closed() {
                tokio::task::yield_now().await;
            }
            // The driver does all that it can meanwhile.
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            permit.send(open());
        };
        let (ended, ()) = tokio::join!(driver.run(&owner), late);
        assert!(matches!(ended, Ended::Shutdown));
        assert_eq!(*owner.0.lock(), [Returned::Ended]);
    }

    #[tokio::test]
    async fn a_request_does_not_wait_for_the_goodbye_of_the_session_that_it_was_for() {
        let (mut carrier, _peer) = pair().await;
        // The peer reads nothing, so nothing of the goodbye goes out.
        tokio::task::unconstrained(async {
            while let Some(ready) = std::future::poll_fn(|cx| carrier.poll_ready(cx)).now_or_never()
            {
                ready.unwrap();
                let length = carrier.space().len();
                carrier.add(length);
                carrier.commit(0).unwrap();
            }
        })
        .await;
        let (driver, handle) = driver(carrier);
        let owner = Keeper::default();
        handle.reserve().await.unwrap().send(open());
        handle.end();
        let mut running = std::pin::pin!(driver.run(&owner));
        while owner.0.lock().is_empty() {
            assert!(running.as_mut().now_or_never().is_none(), "it has ended");
            tokio::task::yield_now().await;
        }
        assert!(matches!(running.await, Ended::Shutdown));
        assert_eq!(*owner.0.lock(), [Returned::Ended]);
    }
}
