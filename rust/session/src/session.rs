//! The session: its turn, its times and its end.

use std::fmt;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use ech_workers_yamux::{self as yamux, Connection, Side};

use crate::budget::Budget;
use crate::bulk::BulkLoad;
use crate::carrier::{Carrier, CloseCode, Incoming};
use crate::config::{Config, Mode};
use crate::distance::Distance;
use crate::egress::{Egress, Sent};
use crate::end::{Abort, Connector, LocalEnd};
use crate::event::{Ended, Event, Fault, Lost};
use crate::ingress::{Arrived, Ingress, PARTS_KEPT};
use crate::ledger::Share;
use crate::liveness::{Due, Liveness};
use crate::open::{Open, Returned};
use crate::simple::Simple;
use crate::streams::{Role, Streams, Traffic};
use crate::wire::Wire;

/// Full receive buffers in one turn.
const TURN_BATCHES: usize = 2;
/// How often streams are looked at for idleness: coarse, so that idle sessions cost nothing.
const SWEEP: Duration = Duration::from_secs(5);
/// How long a session may hold all the memory that it may, without a byte moving, before the stream that holds the most
/// is cut off.
const STUCK: Duration = Duration::from_secs(5);

/// One side of a session.
pub struct Session<C: Carrier, L: LocalEnd> {
    carrier: C,
    /// What arrived with the last batch; kept for its memory.
    incoming: Vec<Incoming>,
    ingress: Ingress,
    streams: Streams<L>,
    egress: Egress,
    liveness: Liveness,
    distance: Distance,
    /// Bytes that were relayed before the last call of `take_traffic`.
    taken: u64,
    /// The peer has closed the carrier: nothing more comes, and nothing can be sent.
    closed: bool,
    shutdown: bool,
    /// What the owner knows of how much the streams move.
    bulk_told: BulkLoad,
    sweep_at: Instant,
    /// Since when nothing is read because too much is held, and nothing of that moves.
    stuck_since: Option<Instant>,
}

impl<C: Carrier, L: LocalEnd> fmt::Debug for Session<C, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("streams", &self.streams.len())
            .field("round_trip", &self.distance.latest())
            .finish_non_exhaustive()
    }
}

impl<C: Carrier, L: LocalEnd> Session<C, L> {
    /// The side that opens streams.
    pub fn client(carrier: C, config: Config, now: Instant) -> Self {
        let role = Role::Client {
            extended: config.extended,
        };
        Self::new(carrier, role, Side::Client, config, now)
    }

    /// The side that connects them to targets.
    pub fn server(
        carrier: C,
        connector: Box<dyn Connector<End = L> + Send>,
        config: Config,
        now: Instant,
    ) -> Self {
        Self::new(
            carrier,
            Role::Server { connector },
            Side::Server,
            config,
            now,
        )
    }

    fn new(carrier: C, role: Role<L>, side: Side, config: Config, now: Instant) -> Self {
        let end_to_end = matches!(config.mode, Mode::Yamux(_));
        let wire = match config.mode {
            Mode::Yamux(mut yamux) => {
                yamux.ping_interval = Duration::MAX;
                yamux.ping_timeout = config.ping_timeout;
                Wire::Yamux(Box::new(Connection::new(side, yamux, now)))
            }
            Mode::Simple { window } => {
                Wire::Simple(Simple::new(side == Side::Client, config.extended, window))
            }
        };
        let share = Share::new(config.memory, config.memory_share);
        Self {
            carrier,
            incoming: Vec::new(),
            ingress: Ingress::default(),
            streams: Streams::new(wire, role, share, config.limits, config.early_bulk, now),
            egress: Egress::default(),
            liveness: Liveness::new(
                config.seed,
                config.ping_interval,
                config.ping_timeout,
                end_to_end,
                now,
            ),
            distance: Distance::default(),
            taken: 0,
            closed: false,
            shutdown: false,
            bulk_told: BulkLoad::default(),
            sweep_at: now + SWEEP,
            stuck_since: None,
        }
    }

    // ------------------------------------------------------------------ what its owner says and asks

    /// Opens a stream. A request that cannot be begun comes back as an event. To be followed by [`poll`](Self::poll).
    pub fn open(&mut self, open: Open<L>, now: Instant) {
        // The time of the last turn may be long ago, and the stream would be taken for an idle one.
        self.streams.now = now;
        self.streams.open(open);
    }

    /// Whether [`open`](Self::open) may be called without the request coming back because too many wait already.
    pub fn has_queue_room(&self) -> bool {
        self.streams.has_queue_room()
    }

    /// Takes no new streams; the session ends when the last one has.
    pub fn retire(&mut self) {
        self.streams.retire();
    }

    /// Ends the session at the next [`poll`](Self::poll).
    pub fn shut_down(&mut self) {
        self.shutdown = true;
    }

    /// When the last question was sent that the peer has answered.
    pub fn last_answered(&self) -> Option<Instant> {
        self.distance.answered()
    }

    /// When bytes arrived from the peer last.
    pub fn last_received(&self) -> Instant {
        self.liveness.last_received()
    }

    /// Finds out now whether the peer is alive, from end to end where the mode has a way to.
    pub fn probe(&mut self, now: Instant) {
        self.liveness.probe(now);
        self.streams.wire.ask_for_proof(now);
    }

    /// What happened since the last call.
    pub fn poll_event(&mut self) -> Option<Event<L>> {
        self.streams.events.pop_front()
    }

    /// Open streams.
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// Simple mode: no stream was opened yet.
    pub fn is_unused(&self) -> bool {
        matches!(&self.streams.wire, Wire::Simple(simple) if simple.is_unused())
    }

    /// The last measured round trip.
    pub fn round_trip(&self) -> Option<Duration> {
        self.distance.latest()
    }

    /// The round trip of the path, with little of the queue that the session's own bytes make on it. Yamux alone: in simple mode
    /// each dial measures it.
    pub fn path_round_trip(&self) -> Option<Duration> {
        let is_yamux = matches!(self.streams.wire, Wire::Yamux(_));
        self.distance.path().filter(|_| is_yamux)
    }

    /// Memory that is held for the peer, in bytes.
    pub fn held(&self) -> usize {
        self.streams.share.held()
    }

    /// What was relayed since the last call.
    pub fn take_traffic(&mut self) -> Traffic {
        self.taken = self.carried();
        std::mem::take(&mut self.streams.traffic)
    }

    /// Bytes relayed so far, both ways.
    fn carried(&self) -> u64 {
        let Traffic { sent, received, .. } = self.streams.traffic;
        self.taken + sent + received
    }

    /// When [`poll`](Self::poll) must be called even if nothing else gives cause to.
    pub fn next_timeout(&self) -> Option<Instant> {
        let is_watched = !self.streams.is_empty() || self.streams.bulk.load().is_growing;
        let sweep = is_watched.then_some(self.sweep_at);
        let paused = self.stuck_since.map(|since| since + STUCK);
        let wire = if self.stuck_since.is_some() {
            // Nothing is read, so no answer to a ping is late. Streams are sent on all the same.
            self.streams.wire.next_rested()
        } else {
            self.streams.wire.next_timeout()
        };
        [
            sweep,
            paused,
            wire,
            self.streams.next_late(),
            self.liveness.next_timeout(),
            self.egress.next_send(&self.streams),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    // ------------------------------------------------------------------ the turn

    /// Does everything that can be done now, for a bounded time. Ready when the session is over; then
    /// [`say_goodbye`](Self::say_goodbye) is due. `clock` gives the time.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        clock: &dyn Fn() -> Instant,
    ) -> Poll<Ended<C::Error>> {
        let now = clock();
        self.streams.now = now;
        self.streams.readiness().register(cx.waker());
        if self.shutdown {
            return Poll::Ready(Ended::Shutdown);
        }
        match self.turn(cx, &Budget::new(clock, now)) {
            Ok(Turn::Over) => Poll::Ready(Ended::Retired),
            Ok(Turn::More) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Ok(Turn::Idle) => Poll::Pending,
            Err(lost) => Poll::Ready(Ended::Lost(lost)),
        }
    }

    fn turn(&mut self, cx: &mut Context<'_>, budget: &Budget<'_>) -> Result<Turn, Lost<C::Error>> {
        // Ends that take what waits for them come first: only then may more be received.
        self.streams.handle_ready();
        let mut more = self.receive(cx, budget)?;
        // Acknowledgements and ends that have just come make room for streams that wait.
        self.streams.open_waiting();
        self.handle_timeouts()?;
        let mut flushed = true;
        if self.closed {
            // What would be sent goes nowhere.
            self.streams.woken.clear();
        } else {
            let sent = self
                .egress
                .send(&mut self.carrier, &mut self.streams, cx, budget)
                .map_err(Lost::Carrier)?;
            more |= sent == Sent::More;
            flushed = match self.carrier.poll_flush(cx) {
                Poll::Ready(outcome) => {
                    outcome.map_err(Lost::Carrier)?;
                    true
                }
                Poll::Pending => false,
            };
        }
        self.tell_bulk();
        if let Wire::Simple(simple) = &self.streams.wire
            && !simple.is_unused()
        {
            // A connection of simple mode has one stream.
            self.streams.retiring = true;
        }
        if self.streams.is_empty() {
            self.egress.shrink();
            if flushed && !more && self.streams.retiring {
                return Ok(Turn::Over);
            }
        }
        Ok(if more { Turn::More } else { Turn::Idle })
    }

    fn tell_bulk(&mut self) {
        let bulk = self.streams.bulk.load();
        if bulk != self.bulk_told && matches!(self.streams.role, Role::Client { .. }) {
            self.bulk_told = bulk;
            self.streams.events.push_back(Event::BulkChanged(bulk));
        }
    }

    /// Takes in what arrived. True if there may be more.
    fn receive(
        &mut self,
        cx: &mut Context<'_>,
        budget: &Budget<'_>,
    ) -> Result<bool, Lost<C::Error>> {
        for batch in 0..TURN_BATCHES {
            if self.closed || !self.may_receive() {
                return Ok(false);
            }
            if batch > 0 && budget.is_spent() {
                break;
            }
            let Poll::Ready(received) = self.carrier.poll_receive(cx, &mut self.incoming) else {
                return Ok(false);
            };
            let buffer = received.map_err(Lost::Carrier)?;
            let arrived = self
                .ingress
                .receive(&self.incoming, buffer, &mut self.streams)
                .map_err(Lost::Fault)?;
            self.note_pongs();
            self.note_arrived(arrived)?;
        }
        Ok(true)
    }

    /// Whether anything may be read from the peer: not while the session holds all the memory that it may.
    fn may_receive(&mut self) -> bool {
        let now = self.streams.now;
        let exhausted = self.streams.is_exhausted();
        let moved = std::mem::take(&mut self.streams.moved);
        match (exhausted, self.stuck_since) {
            (false, None) => {}
            (false, Some(_)) => {
                self.stuck_since = None;
                self.liveness.resume(now);
                self.streams.wire.excuse_ping(now);
            }
            (true, None) => {
                self.stuck_since = Some(now);
                self.liveness.pause(now);
            }
            (true, Some(_)) if moved => self.stuck_since = Some(now),
            (true, Some(_)) => {}
        }
        !exhausted
    }

    /// Takes in the answers to pings, of which the peer may send some that nobody asked for (RFC 6455 section 5.5.3).
    fn note_pongs(&mut self) {
        let mut measured = None;
        for part in self.incoming.drain(..) {
            if let Incoming::Pong(payload) = part
                && let Some(round_trip) = self.liveness.pong(&payload, self.streams.now)
            {
                measured = Some(round_trip);
            }
        }
        if let Some(measured) = measured {
            let carried = self.carried();
            self.distance.note(measured, carried, self.streams.now);
        }
        // The peer decides how many parts there are.
        self.incoming.shrink_to(PARTS_KEPT);
    }

    fn note_arrived(&mut self, arrived: Arrived) -> Result<(), Lost<C::Error>> {
        let now = self.streams.now;
        self.liveness.received(arrived.messages, now);
        let first = || match self.distance.latest() {
            Some(_) => None,
            None => self.streams.wire.round_trip(),
        };
        if let Some(measured) = arrived.end_to_end.or_else(first) {
            let carried = self.carried();
            self.distance.note(measured, carried, now);
        }
        let Some(closed) = arrived.closed else {
            return Ok(());
        };
        if closed.goodbye && self.streams.retiring && self.streams.is_empty() {
            // It took no new streams, and the last one has ended: nothing is lost with it.
            self.closed = true;
            return Ok(());
        }
        let untaken = self.streams.has_untaken();
        let Wire::Simple(simple) = &mut self.streams.wire else {
            return Err(Lost::Closed(closed));
        };
        if simple.is_unused() {
            return Err(Lost::Closed(closed));
        }
        if closed.code == Some(CloseCode::GoingAway as u16) && untaken {
            // It stopped before it had looked at the request.
            return Err(Lost::Closed(closed));
        }
        // The end of the connection is the end of its stream, which may still have to take what came before.
        self.closed = true;
        self.liveness.stop();
        if let Some(event) = simple.closed() {
            self.streams.handle_event(event);
        }
        self.streams.carrier_closed();
        Ok(())
    }

    fn handle_timeouts(&mut self) -> Result<(), Lost<C::Error>> {
        let now = self.streams.now;
        self.streams.release();
        while let Some(id) = self.streams.wire.poll_rested(now) {
            self.streams.wake(id);
        }
        if let Some(since) = self.stuck_since {
            // A single stream holds up nobody but itself.
            if since + STUCK <= now {
                self.stuck_since = Some(now);
                if self.streams.len() > 1 {
                    self.streams.cut_largest();
                }
            }
        } else if self.streams.wire.next_timeout().is_some_and(|at| at <= now) {
            self.streams
                .wire
                .handle_timeout(now)
                .map_err(|error| match error {
                    yamux::Error::PingTimeout => Lost::PingTimeout,
                    other => Lost::Fault(Fault::Yamux(other)),
                })?;
        }
        while let Some(due) = self.liveness.poll(now) {
            match due {
                Due::Ping(payload) => {
                    let carried = self.carried();
                    self.distance.ask(carried);
                    self.carrier.ping(&payload);
                }
                Due::Proof => self.streams.wire.ask_for_proof(now),
                Due::Dead => return Err(Lost::PingTimeout),
            }
        }
        if self.sweep_at <= now {
            self.streams.sweep();
            self.sweep_at = now + SWEEP;
        }
        Ok(())
    }

    // ------------------------------------------------------------------ the end

    /// Cuts off what is left, gives back as events what was not begun, and tells the peer, as far as it takes it.
    /// [`poll_close`](Self::poll_close) sends that.
    pub fn say_goodbye(&mut self, ended: &Ended<C::Error>) {
        self.streams.return_waiting(Returned::Ended);
        self.streams.return_unannounced();
        if let Ended::Lost(Lost::Closed(closed)) = ended
            && closed.code == Some(CloseCode::GoingAway as u16)
        {
            self.streams.return_untaken();
        }
        self.streams.cut_all(Abort::SessionLost);
        let code = match ended {
            Ended::Retired => CloseCode::Normal,
            Ended::Shutdown => CloseCode::GoingAway,
            Ended::Lost(Lost::Fault(Fault::Text(_))) => CloseCode::TooBig,
            Ended::Lost(Lost::Fault(Fault::Yamux(_))) => CloseCode::ProtocolError,
            Ended::Lost(Lost::PingTimeout) => CloseCode::GoingAway,
            // The carrier knows better.
            Ended::Lost(Lost::Carrier(_) | Lost::Closed(_)) => CloseCode::Normal,
        };
        self.streams.wire.say_goodbye();
        while let Some(text) = self.streams.wire.poll_text() {
            self.carrier.text(text);
        }
        let mut cx = Context::from_waker(Waker::noop());
        while let Poll::Ready(Ok(())) = self.carrier.poll_ready(&mut cx) {
            let space = self.carrier.space();
            let Some(length) = self.streams.wire.poll_control(space, self.streams.now) else {
                break;
            };
            self.carrier.add(length);
            if self.carrier.commit(0).is_err() {
                break;
            }
        }
        self.carrier.close(code);
    }

    /// Sends the goodbye and ends the carrier.
    ///
    /// # Errors
    /// The carrier broke.
    pub fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), C::Error>> {
        self.carrier.poll_close(cx)
    }
}

/// What a turn came to.
enum Turn {
    /// Nothing more can be done now.
    Idle,
    /// There is more to do.
    More,
    /// The session is over.
    Over,
}
