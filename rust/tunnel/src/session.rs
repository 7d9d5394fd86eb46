//! A multiplexed session: one driver that owns the TLS stream and every socket at the end of its streams.
//!
//! There are no tasks, queues or wake-ups between the session and its streams. What arrives is decrypted, parsed in place
//! and written to the sockets; what a socket refuses waits in its backlog, bounded by the stream's window. A readable
//! socket is read straight into the next TLS record, in turns of at most one record a stream.

use std::collections::{HashMap, VecDeque};
use std::io::{IoSlice, IoSliceMut};
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use ech_workers_proxy::{self as proxy, Body, Target};
use ech_workers_tls::TlsStream;
use ech_workers_websocket::{self as websocket, Decoder, MessageKind, OpCode};
use ech_workers_yamux::{self as yamux, Connection, StreamId};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::Sleep;

use crate::counters::{Counter, Traffic};
use crate::endpoint::{Backlog, Endpoint, Socket};
use crate::failure::{Failure, Layer};
use crate::link::{Link, Outgoing};
use crate::local::Place;
use crate::preamble::{self, Preamble, Status};
use crate::readiness::{Readiness, SocketWaker};
use crate::reply::Reply;

const FRAME_HEADER: usize = 12;
/// Records that a bulk stream may fill with one read, while no other stream has anything to send.
const BULK_RECORDS: usize = 4;
/// With less window than this, several records would not be filled anyway.
const BULK_WINDOW_MIN: usize = 16 * 1024;
/// Below this much room a record is sealed rather than filled with another stream's bytes.
const ROOM_MIN: usize = 1024;
/// Records sent before other sessions on the thread get their turn.
const TURN_RECORDS: usize = 16;
/// Full receive buffers before they do.
const TURN_BATCHES: usize = 2;
/// How often streams are looked at for idleness: coarse, so that idle sessions cost nothing.
const SWEEP: Duration = Duration::from_secs(5);
/// How long a local program may go on sending after the server has closed both directions.
const DRAIN: Duration = Duration::from_secs(5);

/// What one session counts, read by snapshots.
#[derive(Debug, Default)]
pub struct SessionStats {
    /// Open streams.
    pub streams: Counter,
    /// Streams opened so far.
    pub streams_total: Counter,
    /// Round trip in microseconds; 0 while none was measured.
    pub rtt_us: Counter,
    /// Bytes relayed.
    pub traffic: Arc<Traffic>,
}

/// A new stream for a local program.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) socket: Socket,
    pub(crate) target: Target,
    /// Bytes for the target that have been read already.
    pub(crate) early: Vec<u8>,
    /// How far a forwarded HTTP request goes.
    pub(crate) body: Option<Box<Body>>,
    /// Its place among the limited local connections.
    pub(crate) place: Option<Place>,
    /// Until when it may wait to be opened.
    pub(crate) deadline: Instant,
    pub(crate) reply: Reply,
    /// The reply waits for the server's status, where the server gives one.
    pub(crate) confirm: bool,
}

/// What a driver can be told.
#[derive(Debug)]
pub(crate) enum Command {
    Open(Box<Open>),
    /// A target's connection has been made, or not.
    Connected(StreamId, Result<TcpStream, (Status, String)>),
    /// No new streams; end when the last one has.
    Retire,
    /// Send a ping now.
    Probe,
    /// End now, with a goodbye.
    End,
}

/// What tells the two ends of a session apart.
pub(crate) enum End {
    Client {
        /// The server understands extended preambles and half-close.
        extended: bool,
        observer: Arc<dyn ClientObserver>,
        /// The traffic of all sessions together.
        all: Arc<Traffic>,
    },
    Server {
        connector: Arc<dyn Connector>,
        commands: mpsc::Sender<Command>,
    },
}

/// What a client session tells its owner while it runs.
pub(crate) trait ClientObserver: Send + Sync {
    /// The server takes no new streams.
    fn refused(&self, failure: Failure);
    /// A stream's target could not be reached (extended servers only).
    fn target_failed(&self, reason: &str);
}

/// How a server session reaches targets.
pub(crate) trait Connector: Send + Sync {
    /// Starts a bounded attempt, whose outcome comes back as [`Command::Connected`].
    fn connect(&self, stream: StreamId, target: Target, answer: mpsc::Sender<Command>);
}

/// Limits of a session.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pub(crate) yamux: yamux::Config,
    /// A stream without a byte either way for this long is reset.
    pub(crate) idle: Duration,
    /// The same for a stream with one direction ended; a held half-close is sent then.
    pub(crate) half_closed_idle: Duration,
}

enum State {
    /// Server: the preamble is not whole yet.
    Preamble(Vec<u8>),
    /// Server: the target is being connected; what came for it waits.
    Connecting {
        waiting: Backlog,
        extended: bool,
    },
    /// Client: the server's answer is not whole yet.
    Answer {
        endpoint: Endpoint,
        reply: Option<Reply>,
        partial: Vec<u8>,
    },
    Connected(Endpoint),
    /// Client: the server has closed both ways; what the local program still sends is thrown away.
    Draining {
        endpoint: Endpoint,
        until: Instant,
    },
}

struct Stream {
    waker: SocketWaker<StreamId>,
    state: State,
    /// Bytes that go before those of the socket: a preamble with early data, or an answer.
    first: Vec<u8>,
    /// In `sendable`.
    queued: bool,
    /// Its socket filled a whole record the last time.
    bulk: bool,
    /// The socket's end has been read.
    local_ended: bool,
    /// Our FIN has gone.
    finished: bool,
    /// The peer's FIN has come.
    remote_finished: bool,
    active: Instant,
}

/// The session's driver: a future that ends with the reason why the session did.
pub(crate) struct Driver {
    tls: TlsStream,
    early: Vec<u8>,
    /// Where the contents of the records being absorbed lie.
    records: Vec<Range<usize>>,
    core: Core,
    commands: mpsc::Receiver<Command>,
    timer: Pin<Box<Sleep>>,
    timer_at: Instant,
}

struct Core {
    decoder: Decoder,
    outgoing: Outgoing,
    mux: Connection,
    end: End,
    limits: Limits,
    streams: HashMap<StreamId, Stream>,
    sendable: VecDeque<StreamId>,
    readiness: Arc<Readiness<StreamId>>,
    ready: Vec<StreamId>,
    /// Payloads of the bytes being absorbed, in order of arrival.
    deliveries: Vec<(StreamId, Range<usize>)>,
    pong: Option<websocket::ControlPayload>,
    /// A stream to be opened when the session may have another one; until then no command is taken.
    deferred: Option<Box<Open>>,
    retiring: bool,
    sweep_at: Instant,
    now: Instant,
    stats: Arc<SessionStats>,
    /// Bytes counted since the last publication: (sent to the peer, received from it).
    sent: u64,
    received: u64,
}

impl Driver {
    pub(crate) fn new(
        link: Link,
        end: End,
        limits: Limits,
        commands: mpsc::Receiver<Command>,
        stats: Arc<SessionStats>,
    ) -> Self {
        let now = Instant::now();
        let side = match end {
            End::Client { .. } => yamux::Side::Client,
            End::Server { .. } => yamux::Side::Server,
        };
        let mut mux = Connection::new(side, limits.yamux.clone(), now);
        if matches!(end, End::Client { .. }) {
            // The first ping makes the first message, which tells the server that this is yamux, and measures the round trip.
            mux.ping(now);
        }
        let timer_at = now + SWEEP;
        Self {
            tls: link.tls,
            early: link.early,
            records: Vec::new(),
            core: Core {
                decoder: link.decoder,
                outgoing: link.outgoing,
                mux,
                end,
                limits,
                streams: HashMap::new(),
                sendable: VecDeque::new(),
                readiness: Readiness::new(),
                ready: Vec::new(),
                deliveries: Vec::new(),
                pong: None,
                deferred: None,
                retiring: false,
                sweep_at: timer_at,
                now,
                stats,
                sent: 0,
                received: 0,
            },
            commands,
            timer: Box::pin(tokio::time::sleep_until(timer_at.into())),
            timer_at,
        }
    }

    /// Runs the session to its end. Returns why it ended, and the opens that it had not begun.
    pub(crate) async fn run(mut self) -> (Failure, Vec<Box<Open>>) {
        // The driver divides its own time; tokio's budget would only add polls.
        let failure = tokio::task::unconstrained(std::future::poll_fn(|cx| self.poll(cx))).await;
        // Best effort: the connection may be broken already.
        let _ = self.core.part(&mut self.tls);
        self.commands.close();
        let mut unbegun: Vec<Box<Open>> = self.core.deferred.take().into_iter().collect();
        while let Ok(command) = self.commands.try_recv() {
            if let Command::Open(open) = command {
                unbegun.push(open);
            }
        }
        let left: Vec<StreamId> = self.core.streams.keys().copied().collect();
        for id in left {
            self.core.remove(id, false);
        }
        let _ = tokio::time::timeout(
            Duration::from_secs(1),
            std::future::poll_fn(|cx| self.tls.poll_close(cx)),
        )
        .await;
        (failure, unbegun)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Failure> {
        let outcome = self.turn(cx);
        self.core.publish();
        match outcome {
            Ok(false) => Poll::Pending,
            Ok(true) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Err(failure) => Poll::Ready(failure),
        }
    }

    /// One turn: everything that can be done now, up to a limit. `Ok(true)` when there is more.
    fn turn(&mut self, cx: &mut Context<'_>) -> Result<bool, Failure> {
        let core = &mut self.core;
        core.now = Instant::now();
        core.readiness.register(cx.waker());
        if let Some(open) = core.deferred.take() {
            core.open(open);
        }
        while core.deferred.is_none()
            && let Poll::Ready(Some(command)) = self.commands.poll_recv(cx)
        {
            if matches!(command, Command::End) {
                return Err(Failure::new(
                    Layer::Local,
                    "shutdown",
                    "the session was ended on this side",
                ));
            }
            core.obey(command);
        }
        if !self.early.is_empty() {
            let mut early = std::mem::take(&mut self.early);
            let all = 0..early.len();
            core.absorb(&mut early, &[all])?;
        }
        let mut more = true;
        for _ in 0..TURN_BATCHES {
            match self.tls.poll_open_batch(cx, &mut self.records) {
                Poll::Pending => {
                    more = false;
                    break;
                }
                Poll::Ready(Ok(Some(buffer))) => core.absorb(buffer, &self.records)?,
                Poll::Ready(Ok(None)) => {
                    return Err(Failure::new(
                        Layer::Tls,
                        "closed",
                        "the other end closed the connection",
                    ));
                }
                Poll::Ready(Err(error)) => return Err(Failure::transport(&error)),
            }
        }
        core.attend_ready();
        core.keep_time(&mut self.timer, &mut self.timer_at, cx)?;
        more |= core.send(&mut self.tls, cx)?;
        if self
            .tls
            .poll_flush(cx)
            .map_err(|error| Failure::transport(&error))?
            .is_ready()
            && core.retiring
            && core.streams.is_empty()
        {
            return Err(Failure::new(
                Layer::Yamux,
                "retired",
                "the session was retired",
            ));
        }
        Ok(more)
    }
}

impl Core {
    fn obey(&mut self, command: Command) {
        match command {
            Command::Open(open) => self.open(open),
            Command::Connected(id, Ok(socket)) => self.connected(id, socket),
            Command::Connected(id, Err((status, reason))) => {
                self.not_connected(id, status, &reason);
            }
            Command::Retire => {
                self.retiring = true;
                if matches!(self.end, End::Server { .. }) {
                    self.mux.go_away(yamux::GoAwayCode::Normal);
                }
            }
            Command::Probe => self.mux.ping(self.now),
            // The driver itself heeds it.
            Command::End => {}
        }
    }

    // ------------------------------------------------------------------ streams come

    /// Opens a stream, or keeps the request while the session has as many as it may.
    fn open(&mut self, open: Box<Open>) {
        match self.mux.open() {
            Ok(id) => self.begin(id, *open),
            Err(yamux::OpenError::Backlog(_) | yamux::OpenError::TooManyStreams(_))
                if open.deadline > self.now =>
            {
                self.deferred = Some(open);
            }
            Err(error) => {
                let Open {
                    socket,
                    place,
                    reply,
                    ..
                } = *open;
                let reason = format!("the session takes no new stream: {error}");
                reply.refuse(
                    Endpoint::local(socket, None, place),
                    proxy::Failure::TunnelDown,
                    &reason,
                );
            }
        }
    }

    fn begin(&mut self, id: StreamId, open: Open) {
        let End::Client { extended, .. } = self.end else {
            return;
        };
        let Open {
            socket,
            target,
            mut early,
            body,
            place,
            reply,
            confirm,
            ..
        } = open;
        let mut endpoint = Endpoint::local(socket, body, place);
        let waker = self.readiness.waker(id);
        let mut first = if extended {
            preamble::extended(preamble::Command::Connect, &target)
        } else {
            preamble::plain(&target)
        };
        self.sent += early.len() as u64;
        first.append(&mut early);
        let reply = if confirm && extended {
            Some(reply)
        } else {
            // A socket that is gone already shows it at the first read.
            let _ = endpoint.tell(&mut Context::from_waker(waker.waker()), &reply.succeed());
            None
        };
        let state = if extended {
            State::Answer {
                endpoint,
                reply,
                partial: Vec::new(),
            }
        } else {
            State::Connected(endpoint)
        };
        self.insert(id, waker, state, first);
        self.queue(id);
    }

    fn insert(&mut self, id: StreamId, waker: SocketWaker<StreamId>, state: State, first: Vec<u8>) {
        let stream = Stream {
            waker,
            state,
            first,
            queued: false,
            bulk: false,
            local_ended: false,
            finished: false,
            remote_finished: false,
            active: self.now,
        };
        self.streams.insert(id, stream);
        self.stats.streams.add(1);
        self.stats.streams_total.add(1);
    }

    fn connected(&mut self, id: StreamId, socket: TcpStream) {
        let Some(stream) = self.streams.get_mut(&id) else {
            // The stream was reset meanwhile, and so is what was to be its other end.
            Socket::Tcp(socket).abort();
            return;
        };
        let State::Connecting { waiting, extended } = &mut stream.state else {
            return;
        };
        if *extended {
            stream.first = preamble::answer(Status::Succeeded, "");
        }
        let endpoint = Endpoint::with_backlog(Socket::Tcp(socket), std::mem::take(waiting));
        stream.state = State::Connected(endpoint);
        self.flush(id);
        self.queue(id);
    }

    fn not_connected(&mut self, id: StreamId, status: Status, reason: &str) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        let State::Connecting { extended, .. } = stream.state else {
            return;
        };
        if extended {
            stream.first = preamble::answer(status, reason);
            stream.state = State::Preamble(Vec::new());
            stream.local_ended = true;
            self.queue(id);
        } else {
            // In the deployed protocol the end of the stream is all that tells of it.
            self.remove(id, true);
        }
    }

    // ------------------------------------------------------------------ bytes come in

    /// Takes the contents of decrypted records, which lie in `bytes`: parses them in place and hands the payloads to the
    /// sockets, all of one stream in one go.
    fn absorb(&mut self, bytes: &mut [u8], records: &[Range<usize>]) -> Result<(), Failure> {
        for record in records {
            self.absorb_record(bytes, record.clone())?;
        }
        self.deliver(bytes);
        Ok(())
    }

    fn absorb_record(&mut self, bytes: &mut [u8], record: Range<usize>) -> Result<(), Failure> {
        let mut at = record.start;
        while at < record.end {
            let (used, event) =
                self.decoder
                    .decode(&mut bytes[at..record.end])
                    .map_err(|error| {
                        Failure::new(
                            Layer::WebSocket,
                            "websocket-protocol",
                            format!("the peer broke RFC 6455: {error}"),
                        )
                    })?;
            match event {
                Some(websocket::Event::Data {
                    kind: MessageKind::Binary,
                    range,
                    ..
                }) => {
                    self.absorb_frames(bytes, at + range.start..at + range.end)?;
                }
                Some(websocket::Event::Ping(payload)) => self.pong = Some(payload),
                Some(websocket::Event::Close(reason)) => {
                    self.deliver(bytes);
                    return Err(closed_by_peer(reason.as_ref()));
                }
                // Texts and pongs mean nothing in this mode.
                Some(websocket::Event::Data { .. } | websocket::Event::Pong(_)) | None => {}
            }
            at += used;
        }
        Ok(())
    }

    fn absorb_frames(&mut self, bytes: &[u8], mut range: Range<usize>) -> Result<(), Failure> {
        // Until no event comes: the end of a stream may be left to report when all bytes are taken.
        loop {
            let (used, event) = self
                .mux
                .receive(&bytes[range.clone()], self.now)
                .map_err(|error| yamux_failure(&error))?;
            match event {
                Some(yamux::Event::Data {
                    stream,
                    range: payload,
                }) => {
                    self.deliveries.push((
                        stream,
                        range.start + payload.start..range.start + payload.end,
                    ));
                }
                Some(other) => {
                    // What came before the end of a stream must reach it before the end does.
                    self.deliver(bytes);
                    self.heed(&other);
                }
                None => return Ok(()),
            }
            range.start += used;
        }
    }

    fn heed(&mut self, event: &yamux::Event) {
        match *event {
            yamux::Event::Opened(id) => {
                let waker = self.readiness.waker(id);
                self.insert(id, waker, State::Preamble(Vec::new()), Vec::new());
            }
            yamux::Event::Finished(id) => {
                if let Some(stream) = self.streams.get_mut(&id) {
                    stream.remote_finished = true;
                    stream.active = self.now;
                    self.settle(id);
                }
            }
            yamux::Event::Reset(id) => self.reset(id),
            yamux::Event::Writable(id) => self.queue(id),
            yamux::Event::Pong { round_trip } => {
                self.stats.rtt_us.set(round_trip.as_micros().max(1) as u64);
            }
            yamux::Event::GoAway(code) => {
                self.retiring = true;
                if let End::Client { observer, .. } = &self.end {
                    observer.refused(gone_away(code));
                }
            }
            yamux::Event::Data { .. } => {}
        }
    }

    fn reset(&mut self, id: StreamId) {
        match self.streams.get_mut(&id) {
            // The peer had sent everything: what waits is still delivered.
            Some(stream) if stream.remote_finished => {
                stream.finished = true;
                self.settle(id);
            }
            _ => self.remove(id, false),
        }
    }

    /// Hands the payloads gathered so far to their streams, all of one stream in one go.
    fn deliver(&mut self, bytes: &[u8]) {
        if self.deliveries.is_empty() {
            return;
        }
        let mut deliveries = std::mem::take(&mut self.deliveries);
        deliveries.sort_by_key(|(id, _)| *id);
        for group in deliveries.chunk_by(|a, b| a.0 == b.0) {
            self.deliver_to(group[0].0, group, bytes);
        }
        deliveries.clear();
        self.deliveries = deliveries;
    }

    fn deliver_to(&mut self, id: StreamId, pieces: &[(StreamId, Range<usize>)], bytes: &[u8]) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        stream.active = self.now;
        if let State::Connected(endpoint) = &mut stream.state {
            let mut written = 0;
            self.received += pieces
                .iter()
                .map(|(_, range)| range.len() as u64)
                .sum::<u64>();
            for pieces in pieces.chunks(DELIVER_PIECES) {
                let mut slices = [IoSlice::new(&[]); DELIVER_PIECES];
                for (slot, (_, range)) in slices.iter_mut().zip(pieces) {
                    *slot = IoSlice::new(&bytes[range.clone()]);
                }
                match endpoint.deliver(
                    &mut Context::from_waker(stream.waker.waker()),
                    &slices[..pieces.len()],
                ) {
                    Ok(n) => written += n,
                    Err(_) => {
                        self.remove(id, true);
                        return;
                    }
                }
            }
            self.mux.consumed(id, written, self.now);
            return;
        }
        for (_, range) in pieces {
            self.deliver_early(id, &bytes[range.clone()]);
        }
    }

    /// Bytes for a stream whose beginning is not over.
    fn deliver_early(&mut self, id: StreamId, bytes: &[u8]) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        match &mut stream.state {
            State::Preamble(_) if stream.local_ended => {
                self.mux.consumed(id, bytes.len(), self.now);
            }
            State::Preamble(partial) => {
                partial.extend_from_slice(bytes);
                match preamble::read(partial) {
                    Preamble::Partial => {}
                    Preamble::Invalid(why) => {
                        tracing::debug!("stream refused: {why}");
                        self.remove(id, true);
                    }
                    Preamble::Whole {
                        target,
                        extended,
                        used,
                    } => {
                        let mut waiting = Backlog::default();
                        waiting.push(&partial[used..]);
                        self.received += waiting.len() as u64;
                        stream.state = State::Connecting { waiting, extended };
                        self.mux.consumed(id, used, self.now);
                        if let End::Server {
                            connector,
                            commands,
                        } = &self.end
                        {
                            connector.connect(id, target, commands.clone());
                        }
                    }
                }
            }
            State::Connecting { waiting, .. } => {
                self.received += bytes.len() as u64;
                waiting.push(bytes);
            }
            State::Answer { partial, .. } => {
                partial.extend_from_slice(bytes);
                match preamble::read_answer(partial) {
                    Ok(None) => {}
                    Ok(Some((status, reason, used))) => self.answered(id, status, &reason, used),
                    Err(why) => self.answered(id, Status::General, why, 0),
                }
            }
            State::Connected(endpoint) => {
                self.received += bytes.len() as u64;
                match endpoint.deliver(
                    &mut Context::from_waker(stream.waker.waker()),
                    &[IoSlice::new(bytes)],
                ) {
                    Ok(written) => self.mux.consumed(id, written, self.now),
                    Err(_) => self.remove(id, true),
                }
            }
            State::Draining { .. } => self.mux.consumed(id, bytes.len(), self.now),
        }
    }

    fn answered(&mut self, id: StreamId, status: Status, reason: &str, used: usize) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        let draining = State::Preamble(Vec::new());
        let State::Answer {
            mut endpoint,
            reply,
            partial,
        } = std::mem::replace(&mut stream.state, draining)
        else {
            return;
        };
        self.mux.consumed(id, used, self.now);
        if status == Status::Succeeded {
            let success = reply.map(Reply::succeed).unwrap_or_default();
            let rest = &partial[used..];
            self.received += rest.len() as u64;
            let mut context = Context::from_waker(stream.waker.waker());
            let outcome = endpoint
                .tell(&mut context, &success)
                .and_then(|()| endpoint.deliver(&mut context, &[IoSlice::new(rest)]));
            stream.state = State::Connected(endpoint);
            match outcome {
                Ok(written) => self.mux.consumed(id, written, self.now),
                Err(_) => self.remove(id, true),
            }
            return;
        }
        if let End::Client { observer, .. } = &self.end {
            observer.target_failed(reason);
        }
        self.forget(id);
        self.mux.reset(id);
        match reply {
            Some(reply) => reply.refuse(endpoint, status.into(), reason),
            None => endpoint.socket.abort(),
        }
    }

    // ------------------------------------------------------------------ sockets are ready

    fn attend_ready(&mut self) {
        let mut ready = std::mem::take(&mut self.ready);
        self.readiness.take(&mut ready);
        for id in ready.drain(..) {
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.waker.unlist();
                self.flush(id);
                self.queue(id);
            }
        }
        self.ready = ready;
    }

    fn flush(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        let (State::Connected(endpoint) | State::Answer { endpoint, .. }) = &mut stream.state
        else {
            return;
        };
        if endpoint.backlog.is_empty() {
            self.settle(id);
            return;
        }
        match endpoint.flush(&mut Context::from_waker(stream.waker.waker())) {
            Ok(written) => {
                self.mux.consumed(id, written, self.now);
                self.settle(id);
            }
            Err(_) => self.remove(id, true),
        }
    }

    /// Puts a stream among those that may have something to send.
    fn queue(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if !stream.queued && !stream.finished {
            stream.queued = true;
            self.sendable.push_back(id);
        }
    }

    // ------------------------------------------------------------------ bytes go out

    /// Fills records with control frames and with what the sockets give, until there is nothing left or no room.
    fn send(&mut self, tls: &mut TlsStream, cx: &mut Context<'_>) -> Result<bool, Failure> {
        let broken = |error: std::io::Error| Failure::transport(&error);
        for _ in 0..TURN_RECORDS {
            if tls.poll_ready(cx).map_err(broken)?.is_pending() {
                return Ok(false);
            }
            if let Some(payload) = self.pong.take() {
                self.outgoing
                    .send_whole(tls, OpCode::Pong, &payload)
                    .map_err(broken)?;
                continue;
            }
            if self.fill_many(tls).map_err(broken)? {
                continue;
            }
            self.fill(tls);
            if self.outgoing.used() == 0 {
                return Ok(false);
            }
            self.outgoing.send(tls, OpCode::Binary).map_err(broken)?;
        }
        Ok(true)
    }

    /// A bulk stream that nobody waits behind fills several records in one system call. False: it is not that time.
    fn fill_many(&mut self, tls: &mut TlsStream) -> std::io::Result<bool> {
        let (Some(&id), 1) = (self.sendable.front(), self.sendable.len()) else {
            return Ok(false);
        };
        let Some(stream) = self.streams.get_mut(&id) else {
            return Ok(false);
        };
        let State::Connected(endpoint) = &stream.state else {
            return Ok(false);
        };
        let mut window = self.mux.send_window(id);
        if !stream.bulk
            || !stream.first.is_empty()
            || stream.local_ended
            || !endpoint.is_transparent()
            || window <= BULK_WINDOW_MIN
            || self.mux.has_control()
        {
            return Ok(false);
        }
        let mut spaces = Vec::with_capacity(BULK_RECORDS);
        for space in self.outgoing.spaces(tls, BULK_RECORDS) {
            let length = (space.len() - FRAME_HEADER).min(window);
            window -= length;
            spaces.push(IoSliceMut::new(
                &mut space[FRAME_HEADER..FRAME_HEADER + length],
            ));
            if window == 0 {
                break;
            }
        }
        let lengths: Vec<usize> = spaces.iter().map(|space| space.len()).collect();
        let mut context = Context::from_waker(stream.waker.waker());
        let mut rest = match endpoint.poll_read_vectored(&mut context, &mut spaces) {
            Poll::Ready(Ok(n)) => n,
            // The socket tells of its reset once: the next read would look like a clean end.
            Poll::Ready(Err(_)) => {
                self.sendable.pop_front();
                self.remove(id, true);
                return Ok(false);
            }
            Poll::Pending => 0,
        };
        stream.bulk = rest == lengths.iter().sum::<usize>();
        if rest == 0 {
            return Ok(false);
        }
        stream.active = self.now;
        self.sent += rest as u64;
        for length in lengths {
            let length = length.min(rest);
            if length == 0 {
                break;
            }
            rest -= length;
            let header = self.mux.data_header(id, length);
            self.outgoing.space(tls)[..FRAME_HEADER].copy_from_slice(&header);
            self.outgoing.add(FRAME_HEADER + length);
            self.outgoing.send(tls, OpCode::Binary)?;
        }
        Ok(true)
    }

    fn fill(&mut self, tls: &mut TlsStream) {
        loop {
            let space = self.outgoing.space(tls);
            if space.len() < ROOM_MIN && self.outgoing.used() > 0 || space.len() <= FRAME_HEADER {
                return;
            }
            if let Some(frame) = self.mux.poll_control(self.now) {
                space[..FRAME_HEADER].copy_from_slice(&frame);
                self.outgoing.add(FRAME_HEADER);
                continue;
            }
            let Some(id) = self.sendable.pop_front() else {
                return;
            };
            let Some(stream) = self.streams.get_mut(&id) else {
                continue;
            };
            stream.queued = false;
            let room = (space.len() - FRAME_HEADER).min(self.mux.send_window(id));
            if !stream.first.is_empty() {
                let n = stream.first.len().min(room);
                if n < stream.first.len() && self.outgoing.used() > 0 {
                    // A preamble goes in one frame: a record of its own has the room.
                    stream.queued = true;
                    self.sendable.push_front(id);
                    return;
                }
                if n == 0 {
                    continue;
                }
                space[FRAME_HEADER..FRAME_HEADER + n].copy_from_slice(&stream.first[..n]);
                stream.first.drain(..n);
                stream.active = self.now;
                let header = self.mux.data_header(id, n);
                space[..FRAME_HEADER].copy_from_slice(&header);
                self.outgoing.add(FRAME_HEADER + n);
                if stream.first.is_empty() {
                    // Nothing is kept of it: an idle stream holds no buffer.
                    stream.first = Vec::new();
                }
                self.queue(id);
                continue;
            }
            if stream.local_ended {
                self.end_local(id);
                continue;
            }
            let draining = matches!(stream.state, State::Draining { .. });
            if room == 0 && !draining {
                // Event::Writable brings it back.
                continue;
            }
            let (State::Connected(endpoint)
            | State::Answer { endpoint, .. }
            | State::Draining { endpoint, .. }) = &mut stream.state
            else {
                continue;
            };
            let window = if draining {
                &mut space[..]
            } else {
                &mut space[FRAME_HEADER..FRAME_HEADER + room]
            };
            let window_length = window.len();
            match endpoint.poll_read(&mut Context::from_waker(stream.waker.waker()), window) {
                Poll::Pending => {}
                Poll::Ready(Ok(0)) => {
                    stream.local_ended = true;
                    self.end_local(id);
                }
                Poll::Ready(Ok(n)) => {
                    stream.active = self.now;
                    stream.bulk = n == window_length;
                    if !draining {
                        let header = self.mux.data_header(id, n);
                        space[..FRAME_HEADER].copy_from_slice(&header);
                        self.outgoing.add(FRAME_HEADER + n);
                        self.sent += n as u64;
                    }
                    stream.queued = true;
                    self.sendable.push_back(id);
                }
                Poll::Ready(Err(_)) => self.remove(id, true),
            }
        }
    }

    // ------------------------------------------------------------------ streams end

    /// The socket gives no more: tell the peer now, or, to a server that would cut off the answer, when that has ended.
    fn end_local(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if matches!(stream.state, State::Draining { .. }) {
            self.forget(id);
            return;
        }
        let held = matches!(
            self.end,
            End::Client {
                extended: false,
                ..
            }
        ) && !stream.remote_finished;
        if !held {
            self.finish(id);
        }
    }

    fn finish(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if !stream.finished {
            stream.finished = true;
            stream.active = self.now;
            self.mux.finish(id);
        }
        self.settle(id);
    }

    /// Ends what has come to its end: called when the backlog, or either direction, may have.
    fn settle(&mut self, id: StreamId) {
        let half_close = !matches!(
            self.end,
            End::Client {
                extended: false,
                ..
            }
        );
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if !stream.remote_finished {
            return;
        }
        match &stream.state {
            State::Connected(endpoint) if !endpoint.backlog.is_empty() => return,
            State::Connected(endpoint) => endpoint.socket.finish(),
            // The peer ended before its target was known: nothing is left to do for it.
            State::Preamble(_) if !stream.local_ended => {
                self.remove(id, true);
                return;
            }
            State::Preamble(_) => {}
            // The end came instead of an answer.
            State::Answer { .. } => {
                self.answered(
                    id,
                    Status::General,
                    "the server closed the stream without an answer",
                    0,
                );
                return;
            }
            State::Connecting { .. } | State::Draining { .. } => return,
        }
        if stream.finished {
            self.forget(id);
        } else if !half_close {
            // A deployed server has closed both directions: what the local program still sends would go nowhere.
            stream.finished = true;
            self.mux.finish(id);
            if stream.local_ended {
                self.forget(id);
            } else if let State::Connected(endpoint) =
                std::mem::replace(&mut stream.state, State::Preamble(Vec::new()))
            {
                stream.state = State::Draining {
                    endpoint,
                    until: self.now + DRAIN,
                };
                self.queue(id);
            }
        }
    }

    /// Ends a stream at once: the socket is reset, so that nobody takes it for the end of the data.
    fn remove(&mut self, id: StreamId, tell_peer: bool) {
        if tell_peer {
            self.mux.reset(id);
        }
        let Some(stream) = self.streams.remove(&id) else {
            return;
        };
        self.stats.streams.sub(1);
        match stream.state {
            State::Connected(endpoint) => endpoint.socket.abort(),
            State::Answer {
                endpoint,
                reply: Some(reply),
                ..
            } => {
                reply.refuse(
                    endpoint,
                    proxy::Failure::General,
                    "the server ended the stream",
                );
            }
            State::Answer {
                endpoint,
                reply: None,
                ..
            } => endpoint.socket.abort(),
            State::Preamble(_) | State::Connecting { .. } | State::Draining { .. } => {}
        }
    }

    /// Lets go of a stream that has ended in both directions.
    fn forget(&mut self, id: StreamId) {
        if self.streams.remove(&id).is_some() {
            self.stats.streams.sub(1);
        }
    }

    /// Says goodbye when the driver ends: a go-away, as far as the peer takes it.
    fn part(&mut self, tls: &mut TlsStream) -> std::io::Result<()> {
        self.mux.go_away(yamux::GoAwayCode::Normal);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        if tls.poll_ready(&mut cx)?.is_ready() {
            while let Some(frame) = self.mux.poll_control(self.now) {
                let space = self.outgoing.space(tls);
                if space.len() < FRAME_HEADER {
                    break;
                }
                space[..FRAME_HEADER].copy_from_slice(&frame);
                self.outgoing.add(FRAME_HEADER);
            }
            if self.outgoing.used() > 0 {
                self.outgoing.send(tls, OpCode::Binary)?;
            }
            if tls.poll_ready(&mut cx)?.is_ready() {
                self.outgoing
                    .send_whole(tls, OpCode::Close, &1000_u16.to_be_bytes())?;
            }
        }
        Ok(())
    }

    // ------------------------------------------------------------------ time

    fn keep_time(
        &mut self,
        timer: &mut Pin<Box<Sleep>>,
        at: &mut Instant,
        cx: &mut Context<'_>,
    ) -> Result<(), Failure> {
        if self.mux.next_timeout().is_some_and(|due| due <= self.now) {
            self.mux
                .handle_timeout(self.now)
                .map_err(|error| yamux_failure(&error))?;
        }
        if self.sweep_at <= self.now && !self.streams.is_empty() {
            self.sweep();
            self.sweep_at = self.now + SWEEP;
        }
        let idle_session = self.now + Duration::from_secs(3600);
        let sweep = if self.streams.is_empty() {
            idle_session
        } else {
            self.sweep_at.max(self.now)
        };
        let due = self
            .mux
            .next_timeout()
            .map_or(sweep, |ping| ping.min(sweep));
        if due < *at || timer.as_mut().poll(cx).is_ready() {
            timer.as_mut().reset(due.into());
            *at = due;
            if timer.as_mut().poll(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
        }
        Ok(())
    }

    fn sweep(&mut self) {
        let (now, idle, half) = (self.now, self.limits.idle, self.limits.half_closed_idle);
        let mut late = Vec::new();
        for (id, stream) in &self.streams {
            let quiet = now.saturating_duration_since(stream.active);
            let half_closed = stream.local_ended || stream.remote_finished;
            if quiet >= idle
                || half_closed && quiet >= half
                || matches!(stream.state, State::Draining { until, .. } if until <= now)
            {
                late.push(*id);
            }
        }
        for id in late {
            let held = self
                .streams
                .get(&id)
                .is_some_and(|stream| stream.local_ended && !stream.finished);
            if held {
                self.finish(id);
            } else {
                self.remove(id, true);
            }
        }
    }

    fn publish(&mut self) {
        let (sent, received) = (
            std::mem::take(&mut self.sent),
            std::mem::take(&mut self.received),
        );
        let (up, down) = match self.end {
            End::Client { .. } => (sent, received),
            End::Server { .. } => (received, sent),
        };
        let own = Some(&*self.stats.traffic);
        let all = match &self.end {
            End::Client { all, .. } => Some(&**all),
            End::Server { .. } => None,
        };
        for traffic in own.into_iter().chain(all) {
            if up > 0 {
                traffic.up.add(up);
            }
            if down > 0 {
                traffic.down.add(down);
            }
        }
    }
}

/// The most payloads of one stream handed to its socket in one system call.
const DELIVER_PIECES: usize = 16;

fn yamux_failure(error: &yamux::Error) -> Failure {
    match error {
        yamux::Error::PingTimeout => Failure::new(
            Layer::Yamux,
            "yamux-ping-timeout",
            "the other end has not answered a ping in time",
        ),
        other => Failure::new(
            Layer::Yamux,
            "yamux-protocol",
            format!("the peer broke the yamux protocol: {other}"),
        ),
    }
}

/// A go-away: the server stops, or it has found fault with us.
fn gone_away(code: yamux::GoAwayCode) -> Failure {
    match code {
        yamux::GoAwayCode::Normal => Failure::new(
            Layer::Yamux,
            "yamux-go-away",
            "the server takes no new streams on this session",
        ),
        broken => Failure::new(
            Layer::Yamux,
            "yamux-protocol",
            format!("the server gave up the session: {broken:?}"),
        ),
    }
}

fn closed_by_peer(reason: Option<&websocket::CloseReason>) -> Failure {
    let message = match reason {
        Some(reason) => format!("the other end closed the WebSocket: {reason}"),
        None => "the other end closed the WebSocket".to_owned(),
    };
    Failure::new(Layer::WebSocket, "websocket-closed", message)
}
