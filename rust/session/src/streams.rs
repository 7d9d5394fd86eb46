//! All streams of a session: what the peer's events and the local ends' readiness do to them.

use std::collections::{HashMap, VecDeque};
use std::io::IoSlice;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use ech_workers_yamux::{self as yamux, GoAwayCode, IdHash, StreamId};

use crate::bulk::{Bulk, Pace};
use crate::config::Limits;
use crate::end::{Abort, Connector, LocalEnd, Refusal, Status};
use crate::event::Event;
use crate::ledger::Share;
use crate::open::{Open, Returned};
use crate::preamble::{self, Extended, Preamble};
use crate::readiness::Readiness;
use crate::stream::{
    BEFORE_ANSWER_MAX, ClientState, Inbound, Outbound, Request, ServerState, Settled, State, Stream,
};
use crate::wire::Wire;
use crate::wire_event::WireEvent;

/// How long a stream's preamble waits for the local program's first bytes: programs that speak first do so at once, and the
/// rest wait for their server's first bytes a whole round trip anyway.
const PREAMBLE_HOLD: Duration = Duration::from_millis(2);
/// How long a status waits for the target's first bytes, where the client allows it.
const STATUS_HOLD: Duration = Duration::from_millis(250);
/// A client that has sent so much waits for the status before it sends much more.
const STATUS_HOLD_MAX: usize = BEFORE_ANSWER_MAX / 2;
/// How long a local program may go on sending after the server has closed both directions.
const DRAIN: Duration = Duration::from_secs(5);
/// What the streams of a session whose targets are still being connected may hold together.
const CONNECTING_MAX: usize = 4 << 20;
/// Requests that wait for room in the session.
const WAITING_MAX: usize = 256;
/// Pieces of one stream's payload gathered for one delivery.
const PIECES: usize = 16;

/// What tells the two sides of a session apart.
pub(crate) enum Role<L> {
    Client {
        /// The server understands the extended forms, and half-close.
        extended: bool,
    },
    Server {
        connector: Box<dyn Connector<End = L> + Send>,
    },
}

/// What was relayed and opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Payload bytes from local ends to the peer.
    pub sent: u64,
    /// Payload bytes from the peer to local ends.
    pub received: u64,
    /// Streams opened.
    pub opened: u64,
}

pub(crate) struct Streams<L> {
    pub(crate) wire: Wire,
    pub(crate) role: Role<L>,
    map: HashMap<StreamId, Stream<L>, IdHash>,
    readiness: Arc<Readiness<StreamId>>,
    ready: Vec<StreamId>,
    /// Streams that may have something to send since the last time somebody asked.
    pub(crate) woken: Vec<StreamId>,
    /// Streams whose first bytes wait for others, by the time when they stop waiting.
    holding: VecDeque<(Instant, StreamId)>,
    /// Requests that wait for the peer to acknowledge earlier ones.
    waiting: VecDeque<Open<L>>,
    pub(crate) share: Share,
    /// What of that streams hold whose target is being connected.
    connecting: usize,
    pub(crate) events: VecDeque<Event<L>>,
    pub(crate) limits: Limits,
    pub(crate) now: Instant,
    pub(crate) traffic: Traffic,
    /// Streams that are bulk transfers, or may become such.
    pub(crate) bulk: Bulk,
    /// Bytes have moved to local ends since the last time somebody asked.
    pub(crate) moved: bool,
    /// No new streams; the session ends with the last one.
    pub(crate) retiring: bool,
}

impl<L: LocalEnd> Streams<L> {
    pub(crate) fn new(
        wire: Wire,
        role: Role<L>,
        share: Share,
        limits: Limits,
        early: Option<u64>,
        now: Instant,
    ) -> Self {
        Self {
            wire,
            role,
            map: HashMap::default(),
            readiness: Readiness::new(),
            ready: Vec::new(),
            woken: Vec::new(),
            holding: VecDeque::new(),
            waiting: VecDeque::new(),
            share,
            connecting: 0,
            events: VecDeque::new(),
            limits,
            now,
            traffic: Traffic::default(),
            bulk: Bulk::new(early),
            moved: false,
            retiring: false,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.map.is_empty() && self.waiting.is_empty()
    }

    pub(crate) fn get_mut(&mut self, id: StreamId) -> Option<&mut Stream<L>> {
        self.map.get_mut(&id)
    }

    /// The parts that the scheduler needs at the same time.
    pub(crate) fn split(&mut self, id: StreamId) -> Option<(&mut Stream<L>, &mut Wire)> {
        self.map.get_mut(&id).map(|stream| (stream, &mut self.wire))
    }

    pub(crate) fn readiness(&self) -> &Readiness<StreamId> {
        &self.readiness
    }

    /// Nothing more is to be read from the peer.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.share.is_exhausted() || self.connecting > CONNECTING_MAX
    }

    /// The peer ends one direction of a stream without the other.
    fn half_close(&self) -> bool {
        !matches!(self.role, Role::Client { extended: false })
    }

    // ------------------------------------------------------------------ opening

    /// Opens a stream for a local program, now or when there is room, or gives the request back as an event.
    pub(crate) fn open(&mut self, open: Open<L>) {
        let why = if self.retiring {
            Returned::GoingAway
        } else if self.waiting.len() >= WAITING_MAX {
            Returned::Full
        } else {
            self.waiting.push_back(open);
            self.open_waiting();
            return;
        };
        self.events.push_back(Event::Returned(open, why));
    }

    /// Whether one more request may wait. Who asks only then has none come back for want of room in the queue.
    pub(crate) fn has_queue_room(&self) -> bool {
        self.waiting.len() < WAITING_MAX
    }

    /// Opens what waits, as far as there is room.
    pub(crate) fn open_waiting(&mut self) {
        while let Some(next) = self.waiting.front_mut() {
            if next
                .end
                .poll_abandoned(&mut Context::from_waker(Waker::noop()))
                .is_ready()
            {
                self.waiting.pop_front();
                continue;
            }
            let why = match self.wire.open(&next.authority) {
                Ok(id) => {
                    if let Some(open) = self.waiting.pop_front() {
                        self.begin(id, open);
                    }
                    continue;
                }
                // The peer acknowledges some within a round trip.
                Err(yamux::OpenError::Backlog(_)) => return self.return_late(),
                Err(yamux::OpenError::TooManyStreams(_)) => Returned::Full,
                Err(yamux::OpenError::IdsExhausted) => Returned::IdsExhausted,
                Err(yamux::OpenError::GoingAway) => Returned::GoingAway,
                Err(yamux::OpenError::Failed(_)) => Returned::Ended,
            };
            self.return_one(why);
        }
    }

    /// Gives back what has waited as long as it may.
    fn return_late(&mut self) {
        let now = self.now;
        while let Some(late) = self.waiting.iter().position(|open| open.deadline <= now)
            && let Some(open) = self.waiting.remove(late)
        {
            self.events.push_back(Event::Returned(open, Returned::Full));
        }
    }

    /// When the first of the requests that wait has waited as long as it may.
    pub(crate) fn next_late(&self) -> Option<Instant> {
        self.waiting.iter().map(|open| open.deadline).min()
    }

    fn return_one(&mut self, why: Returned) {
        if let Some(open) = self.waiting.pop_front() {
            self.events.push_back(Event::Returned(open, why));
        }
    }

    /// Gives back everything that has not been begun.
    pub(crate) fn return_waiting(&mut self, why: Returned) {
        while !self.waiting.is_empty() {
            self.return_one(why);
        }
    }

    fn begin(&mut self, id: StreamId, open: Open<L>) {
        let Role::Client { extended } = self.role else {
            return;
        };
        let Open {
            mut end,
            authority,
            mut early,
            confirm,
            deadline,
            told,
            ended,
        } = open;
        let simple = self.wire.is_simple();
        let answered = extended || simple;
        // In the deployed simple mode nothing can be sent before the answer, so there is nothing to gain by telling early.
        let confirm = confirm || simple && !extended;
        let tell_now = !(told || confirm && answered);
        let mut first = match (simple, extended) {
            (true, _) => Vec::new(),
            (false, true) => preamble::extended(
                &authority,
                Extended {
                    status_with_data: !confirm,
                },
            ),
            (false, false) => preamble::plain(&authority),
        };
        let request = Box::new(Request {
            authority,
            preamble: first.len(),
            sent: Vec::new(),
            answer: Vec::new(),
            told: told || tell_now,
            deadline,
        });
        self.traffic.sent += early.len() as u64;
        let alone = early.is_empty();
        first.append(&mut early);
        end.begun();
        let reply = if tell_now { end.opened() } else { Vec::new() };
        let state = if answered {
            ClientState::Unanswered(request)
        } else {
            ClientState::Unacknowledged(request)
        };
        let waker = self.readiness.waker(id);
        let may_be_bulk = end.may_be_bulk();
        let mut stream = Stream::new(waker, State::Client(state), Some(end), first, self.now);
        if !may_be_bulk {
            stream.pace = Pace::exempt();
        }
        if ended {
            stream.outbound = Outbound::Ended;
        }
        if alone && !ended && !simple && (told || tell_now) {
            let until = self.now + PREAMBLE_HOLD;
            stream.hold_until = Some(until);
            self.holding.push_back((until, id));
        }
        self.insert(id, stream);
        if !reply.is_empty() {
            self.tell(id, &reply);
        }
        if !self.cut_if_abandoned(id) {
            self.wake(id);
        }
    }

    /// Ends a stream that nobody waits for. From the first call on the stream is ready when that changes.
    fn cut_if_abandoned(&mut self, id: StreamId) -> bool {
        let abandoned = self.map.get_mut(&id).is_some_and(Stream::is_abandoned);
        if abandoned {
            self.cut(id, Abort::Local);
        }
        abandoned
    }

    /// Puts bytes of our own before everything that comes for an end.
    fn tell(&mut self, id: StreamId, bytes: &[u8]) {
        if let Some(stream) = self.map.get_mut(&id) {
            let before = stream.held();
            stream.tell(bytes);
            let after = stream.held();
            self.share.adjust(before, after);
            self.flush(id);
        }
    }

    fn insert(&mut self, id: StreamId, stream: Stream<L>) {
        self.map.insert(id, stream);
        self.traffic.opened += 1;
    }

    // ------------------------------------------------------------------ the peer's events

    pub(crate) fn handle_event(&mut self, event: WireEvent) {
        match event {
            WireEvent::Opened(id) => {
                let waker = self.readiness.waker(id);
                let state = State::Server(ServerState::Preamble(Vec::new()));
                self.insert(id, Stream::new(waker, state, None, Vec::new(), self.now));
            }
            WireEvent::Requested(id, authority, behind) => {
                let waker = self.readiness.waker(id);
                let state = State::Server(ServerState::Connecting(None));
                self.insert(id, Stream::new(waker, state, None, Vec::new(), self.now));
                self.connect(id, &authority, None, &behind);
            }
            WireEvent::Answered(id, refusal) => self.answered(id, &refusal, &[]),
            WireEvent::Finished(id) => {
                if let Some(stream) = self.map.get_mut(&id) {
                    if stream.inbound == Inbound::Open {
                        stream.inbound = Inbound::Finished;
                    }
                    stream.active = self.now;
                    self.settle(id);
                }
            }
            WireEvent::Reset(id) => self.reset_by_peer(id),
            WireEvent::Refused(id) => self.return_begun(id, Returned::Refused, Abort::Reset),
            WireEvent::Writable(id) => self.wake(id),
            WireEvent::GoAway(code) => {
                self.retiring = true;
                self.events.push_back(Event::GoneAway(code));
                self.return_waiting(Returned::GoingAway);
            }
        }
    }

    /// Payload of one stream, in order, at these places of `input`.
    pub(crate) fn receive(
        &mut self,
        id: StreamId,
        pieces: &[(StreamId, Range<usize>)],
        input: &[u8],
    ) {
        let Some(stream) = self.map.get_mut(&id) else {
            return;
        };
        stream.active = self.now;
        if !stream.is_relaying() {
            for (_, range) in pieces {
                self.receive_early(id, input.get(range.clone()).unwrap_or_default());
            }
            return;
        }
        let total = pieces.iter().map(|(_, range)| range.len()).sum();
        self.bulk.note(stream.pace.note(total));
        for pieces in pieces.chunks(PIECES) {
            let mut slices = [IoSlice::new(&[]); PIECES];
            let mut total = 0;
            for (slot, (_, range)) in slices.iter_mut().zip(pieces) {
                let piece = input.get(range.clone()).unwrap_or_default();
                total += piece.len();
                *slot = IoSlice::new(piece);
            }
            self.traffic.received += total as u64;
            self.note_received(id, total);
            if !self.deliver(id, slices.get(..pieces.len()).unwrap_or_default()) {
                return;
            }
        }
    }

    /// A status that waits for the target's first bytes goes when the client has more to send than it may before that.
    fn note_received(&mut self, id: StreamId, bytes: usize) {
        if let Some(stream) = self.map.get_mut(&id)
            && stream.hold_until.is_some()
        {
            stream.received_meanwhile += bytes;
            if stream.received_meanwhile + stream.backlog.len() >= STATUS_HOLD_MAX {
                stream.hold_until = None;
                self.wake(id);
            }
        }
    }

    /// Hands payload to the end. False if the stream is gone.
    fn deliver(&mut self, id: StreamId, pieces: &[IoSlice<'_>]) -> bool {
        let Some(stream) = self.map.get_mut(&id) else {
            return false;
        };
        let before = stream.held();
        let outcome = stream.deliver(pieces);
        let after = stream.held();
        self.share.adjust(before, after);
        match outcome {
            Ok(done) => {
                self.moved |= done > 0;
                self.wire.consumed(id, done, self.now);
                true
            }
            Err(_) => {
                self.cut(id, Abort::Local);
                false
            }
        }
    }

    /// Payload of a stream that is not relaying yet, or not any more.
    fn receive_early(&mut self, id: StreamId, bytes: &[u8]) {
        let Some(stream) = self.map.get_mut(&id) else {
            return;
        };
        match &mut stream.state {
            State::Client(ClientState::Unanswered(request)) if !self.wire.is_simple() => {
                request.answer.extend_from_slice(bytes);
                match preamble::read_answer(&request.answer) {
                    Ok(None) => {}
                    Ok(Some((refusal, used))) => {
                        let rest = request.answer.split_off(used);
                        self.wire.consumed(id, used, self.now);
                        self.answered(id, &refusal, &rest);
                    }
                    Err(why) => {
                        self.answered(id, &Refusal::new(Status::NoAnswer, why), &[]);
                    }
                }
            }
            State::Client(ClientState::Unacknowledged(_)) => {
                stream.state = State::Client(ClientState::Relaying);
                self.traffic.received += bytes.len() as u64;
                self.deliver(id, &[IoSlice::new(bytes)]);
            }
            State::Client(ClientState::Relaying) | State::Server(ServerState::Relaying) => {
                self.traffic.received += bytes.len() as u64;
                self.deliver(id, &[IoSlice::new(bytes)]);
            }
            State::Client(ClientState::Unanswered(_) | ClientState::Draining(_))
            | State::Server(ServerState::Refusing) => {
                self.wire.consumed(id, bytes.len(), self.now);
            }
            State::Server(ServerState::Preamble(_)) => self.receive_preamble(id, bytes),
            State::Server(ServerState::Connecting(_)) => {
                self.traffic.received += bytes.len() as u64;
                self.hold_for_target(id, bytes);
            }
        }
    }

    fn receive_preamble(&mut self, id: StreamId, bytes: &[u8]) {
        let Some(stream) = self.map.get_mut(&id) else {
            return;
        };
        let before = stream.held();
        let State::Server(ServerState::Preamble(partial)) = &mut stream.state else {
            return;
        };
        partial.extend_from_slice(bytes);
        match preamble::read(partial) {
            Preamble::Partial => {
                let after = stream.held();
                self.share.adjust(before, after);
            }
            Preamble::Invalid(why) => {
                tracing::debug!("a stream was refused: {why}");
                self.cut(id, Abort::Reset);
            }
            Preamble::Whole {
                authority,
                extended,
                used,
            } => {
                let partial = std::mem::take(partial);
                stream.state = State::Server(ServerState::Connecting(extended));
                self.share.adjust(before, 0);
                self.wire.consumed(id, used, self.now);
                let authority = partial.get(authority).unwrap_or_default();
                let rest = partial.get(used..).unwrap_or_default();
                self.traffic.received += rest.len() as u64;
                self.connect(id, authority, extended, rest);
            }
        }
    }

    // ------------------------------------------------------------------ the server's targets

    fn connect(&mut self, id: StreamId, authority: &[u8], extended: Option<Extended>, rest: &[u8]) {
        let Role::Server { connector } = &mut self.role else {
            return;
        };
        match connector.connect(authority) {
            Ok(end) => {
                if let Some(stream) = self.map.get_mut(&id) {
                    stream.end = Some(end);
                    stream.state = State::Server(ServerState::Connecting(extended));
                    self.hold_for_target(id, rest);
                    self.poll_connect(id);
                }
            }
            Err(refusal) => self.not_connected(id, &refusal),
        }
    }

    fn hold_for_target(&mut self, id: StreamId, bytes: &[u8]) {
        if let Some(stream) = self.map.get_mut(&id) {
            let before = stream.held();
            stream.backlog.push(bytes);
            let after = stream.held();
            self.share.adjust(before, after);
            self.connecting += after - before;
        }
    }

    fn poll_connect(&mut self, id: StreamId) {
        let Some(stream) = self.map.get_mut(&id) else {
            return;
        };
        let State::Server(ServerState::Connecting(extended)) = stream.state else {
            return;
        };
        let Some(end) = &mut stream.end else { return };
        let mut cx = Context::from_waker(stream.waker.waker());
        match end.poll_connect(&mut cx) {
            Poll::Pending => {}
            Poll::Ready(Ok(())) => self.connected(id, extended),
            Poll::Ready(Err(refusal)) => self.not_connected(id, &refusal),
        }
    }

    fn connected(&mut self, id: StreamId, extended: Option<Extended>) {
        let Some(stream) = self.map.get_mut(&id) else {
            return;
        };
        let succeeded = Refusal::new(Status::Succeeded, "");
        self.connecting -= stream.held().min(self.connecting);
        stream.state = State::Server(ServerState::Relaying);
        stream.active = self.now;
        if let Some(form) = extended {
            stream.first = preamble::answer(&succeeded);
            // A client that has more to send than it may before the answer waits for that.
            if form.status_with_data && stream.backlog.len() < STATUS_HOLD_MAX {
                let until = self.now + STATUS_HOLD;
                stream.hold_until = Some(until);
                self.holding.push_back((until, id));
            }
        } else if let Wire::Simple(simple) = &mut self.wire {
            simple.answer(&succeeded);
        }
        self.flush(id);
        self.wake(id);
    }

    fn not_connected(&mut self, id: StreamId, refusal: &Refusal) {
        let Some(stream) = self.map.get_mut(&id) else {
            return;
        };
        let State::Server(ServerState::Connecting(extended)) = stream.state else {
            return;
        };
        self.events.push_back(Event::TargetFailed(refusal.clone()));
        let held = stream.held();
        self.connecting -= held.min(self.connecting);
        let dropped = stream.backlog.len();
        stream.backlog = crate::backlog::Backlog::default();
        self.share.adjust(held, stream.held());
        stream.end = None;
        if let Wire::Simple(simple) = &mut self.wire {
            simple.answer(refusal);
            self.forget(id);
        } else if extended.is_some() {
            stream.first = preamble::answer(refusal);
            stream.state = State::Server(ServerState::Refusing);
            stream.outbound = Outbound::Ended;
            self.wire.consumed(id, dropped, self.now);
            self.wake(id);
        } else {
            // In the deployed protocol the end of the stream is all that tells of it.
            self.cut(id, Abort::Reset);
        }
    }

    // ------------------------------------------------------------------ the client's answers

    /// What became of a request, and bytes that came behind the answer.
    fn answered(&mut self, id: StreamId, refusal: &Refusal, rest: &[u8]) {
        let Some(stream) = self.map.get_mut(&id) else {
            return;
        };
        let State::Client(ClientState::Unanswered(request)) = &mut stream.state else {
            return;
        };
        let told = request.told;
        if refusal.status == Status::Succeeded {
            stream.state = State::Client(ClientState::Relaying);
            stream.active = self.now;
            if !told && let Some(end) = &mut stream.end {
                let reply = end.opened();
                self.tell(id, &reply);
            }
            self.traffic.received += rest.len() as u64;
            if self.deliver(id, &[IoSlice::new(rest)]) {
                self.settle(id);
                self.wake(id);
            }
            return;
        }
        self.wire.reset(id);
        let Some(mut stream) = self.take(id) else {
            return;
        };
        if refusal.status.may_differ_elsewhere()
            && let Some(open) = stream.take_open()
        {
            self.forget_sent(&open);
            self.events
                .push_back(Event::Unreached(open, refusal.clone()));
            return;
        }
        self.events.push_back(Event::TargetFailed(refusal.clone()));
        if let Some(end) = stream.end.take() {
            if told {
                end.abort(Abort::Reset);
            } else {
                end.refuse(refusal);
            }
        }
    }

    /// What was sent of a stream that goes elsewhere counts where it is placed.
    fn forget_sent(&mut self, open: &Open<L>) {
        self.traffic.sent -= (open.early.len() as u64).min(self.traffic.sent);
    }

    /// Gives back a stream that was begun, to be placed elsewhere, or cuts it off if that cannot be.
    fn return_begun(&mut self, id: StreamId, why: Returned, otherwise: Abort) {
        let Some(mut stream) = self.take(id) else {
            return;
        };
        match stream.take_open() {
            Some(open) => {
                self.forget_sent(&open);
                self.events.push_back(Event::Returned(open, why));
            }
            None => stream.abort(otherwise),
        }
    }

    /// Whether the peer has done nothing for a stream yet, as far as its end in good order means that.
    fn is_untaken(&self, id: StreamId, stream: &Stream<L>) -> bool {
        match &self.wire {
            Wire::Yamux(yamux) => !yamux.is_acknowledged(id),
            // What was sent may have reached the target, although no answer has come.
            Wire::Simple(_) => stream.is_unsent(),
        }
    }

    /// Whether there is a stream that could be begun anew elsewhere.
    pub(crate) fn has_untaken(&self) -> bool {
        let mut streams = self.map.iter();
        streams.any(|(&id, stream)| self.is_untaken(id, stream))
    }

    /// Gives back the streams that the peer has not taken, because it has ended the session in good order.
    pub(crate) fn return_untaken(&mut self) {
        self.return_those(Self::is_untaken);
    }

    /// Gives back the streams of which nothing was sent, however the session ended.
    pub(crate) fn return_unannounced(&mut self) {
        self.return_those(|streams, id, _| match &streams.wire {
            Wire::Yamux(yamux) => !yamux.is_announced(id),
            // The connection was made for this one.
            Wire::Simple(_) => false,
        });
    }

    fn return_those(&mut self, are: impl Fn(&Self, StreamId, &Stream<L>) -> bool) {
        let streams = self.map.iter();
        let those: Vec<StreamId> = streams
            .filter(|&(&id, stream)| are(self, id, stream))
            .map(|(&id, _)| id)
            .collect();
        for id in those {
            self.return_begun(id, Returned::Ended, Abort::SessionLost);
        }
    }

    // ------------------------------------------------------------------ the local ends

    /// Looks after the ends whose readiness changed.
    pub(crate) fn handle_ready(&mut self) {
        let mut ready = std::mem::take(&mut self.ready);
        self.readiness.take(&mut ready);
        for id in ready.drain(..) {
            let Some(stream) = self.map.get_mut(&id) else {
                continue;
            };
            stream.waker.unlist();
            if stream.is_connecting() {
                self.poll_connect(id);
            } else if stream.end.as_ref().is_some_and(L::is_cut) {
                self.cut(id, Abort::Local);
            } else if !self.cut_if_abandoned(id) {
                self.flush(id);
                self.wake(id);
            }
        }
        self.ready = ready;
    }

    fn flush(&mut self, id: StreamId) {
        let Some(stream) = self.map.get_mut(&id) else {
            return;
        };
        let before = stream.held();
        match stream.flush() {
            Ok(done) => {
                let after = stream.held();
                self.share.adjust(before, after);
                if done > 0 {
                    self.moved = true;
                    stream.active = self.now;
                    self.wire.consumed(id, done, self.now);
                }
                self.settle(id);
            }
            Err(_) => self.cut(id, Abort::Local),
        }
    }

    /// The stream may have something to send.
    pub(crate) fn wake(&mut self, id: StreamId) {
        if let Some(stream) = self.map.get_mut(&id)
            && !stream.queued
            && (stream.outbound != Outbound::Finished
                || matches!(stream.state, State::Client(ClientState::Draining(_))))
        {
            stream.queued = true;
            self.woken.push(id);
        }
    }

    /// The end gives no more: tells the peer now, or, where that would cut off the answer, when this has ended.
    pub(crate) fn end_outbound(&mut self, id: StreamId) {
        let half_close = self.half_close();
        let Some(stream) = self.map.get_mut(&id) else {
            return;
        };
        if stream.outbound == Outbound::Open {
            stream.outbound = Outbound::Ended;
        }
        let complete = stream.end.as_ref().is_some_and(L::is_complete);
        if matches!(stream.state, State::Client(ClientState::Draining(_))) {
            self.close(id);
        } else if half_close || complete || stream.inbound != Inbound::Open {
            self.finish(id);
        }
    }

    /// Tells the peer that nothing more comes.
    fn finish(&mut self, id: StreamId) {
        if let Some(stream) = self.map.get_mut(&id) {
            if stream.outbound != Outbound::Finished {
                stream.outbound = Outbound::Finished;
                stream.active = self.now;
                self.wire.finish(id);
            }
            // In the deployed simple mode that ends the other direction, too.
            if let Wire::Simple(simple) = &self.wire
                && simple.is_over()
                && let Some(stream) = self.map.get_mut(&id)
                && stream.inbound == Inbound::Open
            {
                stream.inbound = Inbound::Finished;
            }
            self.settle(id);
        }
    }

    /// Ends what has come to its end: called whenever either direction, or what waits, may have.
    fn settle(&mut self, id: StreamId) {
        let half_close = self.half_close();
        let Some(stream) = self.map.get_mut(&id) else {
            return;
        };
        match stream.settle(half_close) {
            Settled::Waits => {}
            Settled::Over => self.close(id),
            Settled::Cut => self.cut(id, Abort::Reset),
            Settled::NoAnswer => {
                let refusal = Refusal::new(
                    Status::NoAnswer,
                    "the server closed the stream without an answer",
                );
                self.answered(id, &refusal, &[]);
            }
            Settled::Drain => {
                let ended = stream.outbound != Outbound::Open;
                stream.outbound = Outbound::Finished;
                stream.state = State::Client(ClientState::Draining(self.now + DRAIN));
                self.wire.finish(id);
                if ended {
                    self.close(id);
                } else {
                    self.wake(id);
                }
            }
        }
    }

    fn reset_by_peer(&mut self, id: StreamId) {
        match self.map.get_mut(&id) {
            // The peer had sent everything: what waits is still delivered, if there is somebody to take it.
            Some(stream) if stream.inbound != Inbound::Open && !stream.is_connecting() => {
                stream.outbound = Outbound::Finished;
                self.settle(id);
            }
            Some(_) => {
                if let Some(stream) = self.take(id) {
                    stream.abort(Abort::Reset);
                }
            }
            None => {}
        }
    }

    /// Nothing can be sent to the peer any more. What it sent is still delivered, but nobody waits for a target that is not
    /// connected yet.
    pub(crate) fn carrier_closed(&mut self) {
        let ids: Vec<StreamId> = self.map.keys().copied().collect();
        for id in ids {
            let Some(stream) = self.map.get_mut(&id) else {
                continue;
            };
            if stream.is_relaying() {
                stream.outbound = Outbound::Finished;
                self.settle(id);
            } else if stream.is_connecting() {
                self.cut(id, Abort::Reset);
            }
        }
    }

    // ------------------------------------------------------------------ the end of a stream

    /// Cuts a stream off on both sides.
    pub(crate) fn cut(&mut self, id: StreamId, why: Abort) {
        self.wire.reset(id);
        if let Some(stream) = self.take(id) {
            stream.abort(why);
        }
    }

    /// Lets go of a stream that has ended in both directions.
    fn close(&mut self, id: StreamId) {
        if let Some(mut stream) = self.take(id)
            && let Some(end) = stream.end.take()
        {
            end.close();
        }
    }

    fn forget(&mut self, id: StreamId) {
        self.take(id);
    }

    fn take(&mut self, id: StreamId) -> Option<Stream<L>> {
        let stream = self.map.remove(&id)?;
        let held = stream.held();
        self.share.adjust(held, 0);
        self.bulk.forget(stream.pace);
        if stream.is_connecting() {
            self.connecting -= held.min(self.connecting);
        }
        if self.map.is_empty() {
            // An idle session keeps no memory of a busy one.
            self.map.shrink_to(16);
            self.woken.shrink_to(16);
            self.holding = VecDeque::new();
        }
        Some(stream)
    }

    /// Cuts all streams off, because the session is over.
    pub(crate) fn cut_all(&mut self, why: Abort) {
        let all: Vec<StreamId> = self.map.keys().copied().collect();
        for id in all {
            if let Some(stream) = self.take(id) {
                stream.abort(why);
            }
        }
    }

    // ------------------------------------------------------------------ time

    /// When the first of the streams that hold their first bytes back stops waiting.
    pub(crate) fn next_release(&self) -> Option<Instant> {
        self.holding.front().map(|(until, _)| *until)
    }

    /// Lets those go on that have waited long enough.
    pub(crate) fn release(&mut self) {
        // The two kinds wait for different times: what is behind a longer wait is found when that is over, which is early
        // enough for a preamble, since no session holds both.
        while let Some(&(until, id)) = self.holding.front()
            && until <= self.now
        {
            self.holding.pop_front();
            if let Some(stream) = self.map.get_mut(&id)
                && stream.hold_until.take().is_some()
            {
                self.wake(id);
            }
        }
    }

    /// Ends streams on which nothing has happened for too long.
    pub(crate) fn sweep(&mut self) {
        let paces = self.map.values_mut().map(|stream| &mut stream.pace);
        self.bulk.look(paces);
        let (now, limits) = (self.now, &self.limits);
        let late: Vec<StreamId> = self
            .map
            .iter()
            .filter(|(_, stream)| {
                let quiet = now.saturating_duration_since(stream.active);
                let half_closed =
                    stream.outbound != Outbound::Open || stream.inbound != Inbound::Open;
                let limit = match &stream.state {
                    State::Client(ClientState::Unanswered(_)) => limits.answer,
                    State::Client(ClientState::Draining(until)) => return *until <= now,
                    _ if half_closed => limits.half_closed_idle,
                    _ => limits.idle,
                };
                quiet >= limit
            })
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            match self.map.get_mut(&id) {
                // The end that was held back is sent now.
                Some(stream) if stream.outbound == Outbound::Ended && stream.is_relaying() => {
                    self.finish(id);
                }
                _ => self.cut(id, Abort::Idle),
            }
        }
    }

    /// Cuts off the stream that holds the most.
    pub(crate) fn cut_largest(&mut self) {
        let largest = self.map.iter().max_by_key(|(_, stream)| stream.held());
        if let Some((&id, _)) = largest {
            self.cut(id, Abort::Memory);
        }
    }

    /// Reports a go-away of our own to the peer and takes no new streams.
    pub(crate) fn retire(&mut self) {
        self.retiring = true;
        if matches!(self.role, Role::Server { .. }) {
            self.wire.go_away(GoAwayCode::Normal);
        }
        self.return_waiting(Returned::GoingAway);
    }
}
