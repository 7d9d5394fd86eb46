//! A multiplexed session: one driver that owns the TLS stream and every socket at the end of its streams.
//!
//! There are no tasks, queues or wake-ups between the session and its streams. What arrives is decrypted, parsed in place
//! and written to the sockets; what a socket refuses waits in its backlog, bounded by the stream's window. A readable
//! socket is read straight into the next TLS records: streams with little to send first, then those with much in turns.

mod ending;
mod incoming;
mod outgoing;

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use ech_workers_proxy::{self as proxy, Exchange, Target};
use ech_workers_tls::TlsStream;
use ech_workers_websocket::{self as websocket, Decoder};
use ech_workers_yamux::{self as yamux, Connection, StreamId};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::Sleep;

use crate::counters::{Counter, Traffic};
use crate::endpoint::{Backlog, Endpoint, Socket};
use crate::failure::{Code, Ended, Failure, Layer};
use crate::link::{Link, Outgoing};
use crate::local::Place;
use crate::panics::{self, caught};
use crate::preamble::{self, Status};
use crate::readiness::{Readiness, SocketWaker};
use crate::reply::Reply;
use crate::stream::StreamEnded;

const FRAME_HEADER: usize = 12;
/// Full receive buffers before they do.
const TURN_BATCHES: usize = 2;
/// How often streams are looked at for idleness: coarse, so that idle sessions cost nothing.
const SWEEP: Duration = Duration::from_secs(5);

/// What one session counts, read by snapshots.
#[derive(Debug, Default)]
pub struct SessionStats {
    /// Open streams.
    pub streams: Arc<Counter>,
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
    /// A forwarded HTTP request, which decides what passes.
    pub(crate) exchange: Option<Box<Exchange>>,
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
    fn refused(&self, ended: Ended);
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
    /// In `sendable` or `prompt`.
    queued: bool,
    /// Its socket filled a whole record the last time.
    bulk: bool,
    /// The socket's end has been read.
    local_ended: bool,
    /// Our FIN has gone.
    finished: bool,
    /// The peer's FIN has come.
    remote_finished: bool,
    /// And the socket has been told of it.
    end_told: bool,
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
    /// Streams that had much to send the last time, and may have more.
    sendable: VecDeque<StreamId>,
    /// The others that may have something to send: they go first.
    prompt: VecDeque<StreamId>,
    /// Turns that these had in a row.
    prompt_turns: u32,
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
                prompt: VecDeque::new(),
                prompt_turns: 0,
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
    pub(crate) async fn run(mut self) -> (Ended, Vec<Box<Open>>) {
        // The driver divides its own time; tokio's budget would only add polls.
        let ended =
            tokio::task::unconstrained(caught(std::future::poll_fn(|cx| self.poll(cx)))).await;
        if ended.is_ok() {
            // Best effort: the connection may be broken already.
            let _ = self.core.part(&mut self.tls);
        }
        self.commands.close();
        let mut unbegun: Vec<Box<Open>> = self.core.deferred.take().into_iter().collect();
        while let Ok(command) = self.commands.try_recv() {
            if let Command::Open(open) = command {
                unbegun.push(open);
            }
        }
        let left: Vec<StreamId> = self.core.streams.keys().copied().collect();
        for id in left {
            // After a panic another one may follow: it is in the log, and the other streams are reset all the same.
            let _ = panics::catch(|| self.core.remove(id, false, StreamEnded::SessionLost));
        }
        let _ = tokio::time::timeout(
            Duration::from_secs(1),
            std::future::poll_fn(|cx| self.tls.poll_close(cx)),
        )
        .await;
        (ended.unwrap_or_else(Ended::Lost), unbegun)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        let outcome = self.turn(cx);
        self.core.publish();
        match outcome {
            Ok(false) => Poll::Pending,
            Ok(true) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Err(ended) => Poll::Ready(ended),
        }
    }

    /// One turn: everything that can be done now, up to a limit. `Ok(true)` when there is more.
    fn turn(&mut self, cx: &mut Context<'_>) -> Result<bool, Ended> {
        let core = &mut self.core;
        core.now = Instant::now();
        core.readiness.register(cx.waker());
        if let Some(mut open) = core.deferred.take()
            && open.socket.poll_abandoned(cx).is_pending()
        {
            core.open(open);
        }
        while core.deferred.is_none()
            && let Poll::Ready(Some(command)) = self.commands.poll_recv(cx)
        {
            if matches!(command, Command::End) {
                return Err(Ended::Shutdown);
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
                        Code::Closed,
                        "the other end closed the connection",
                    )
                    .into());
                }
                Poll::Ready(Err(error)) => return Err(Failure::transport(&error).into()),
            }
        }
        core.attend_ready();
        core.heed_time()?;
        more |= core.send(&mut self.tls, cx)?;
        core.set_timer(&mut self.timer, &mut self.timer_at, cx);
        if self
            .tls
            .poll_flush(cx)
            .map_err(|error| Failure::transport(&error))?
            .is_ready()
            && core.retiring
            && core.streams.is_empty()
        {
            return Err(Ended::Retired);
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
                    "the session takes no new stream",
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
            exchange,
            place,
            reply,
            confirm,
            ..
        } = open;
        let mut endpoint = Endpoint::local(socket, exchange, place);
        endpoint.socket.begin();
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
            let _ = reply.succeed(&mut endpoint, &mut Context::from_waker(waker.waker()));
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
            end_told: false,
            active: self.now,
        };
        self.streams.insert(id, stream);
        self.stats.streams.add(1);
        self.stats.streams_total.add(1);
    }

    fn connected(&mut self, id: StreamId, socket: TcpStream) {
        let Some(stream) = self.streams.get_mut(&id) else {
            // The stream was reset meanwhile, and so is what was to be its other end.
            Socket::Tcp(socket).abort(StreamEnded::Reset);
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
            self.remove(id, true, StreamEnded::Reset);
        }
    }

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
            Err(_) => self.remove(id, true, StreamEnded::Reset),
        }
    }

    /// Puts a stream among those that may have something to send.
    fn queue(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if !stream.queued && !stream.finished {
            stream.queued = true;
            if stream.bulk {
                self.sendable.push_back(id);
            } else {
                self.prompt.push_back(id);
            }
        }
    }

    fn heed_time(&mut self) -> Result<(), Failure> {
        if self.mux.next_timeout().is_some_and(|due| due <= self.now) {
            self.mux
                .handle_timeout(self.now)
                .map_err(|error| yamux_failure(&error))?;
            while let Some(id) = self.mux.poll_rested(self.now) {
                self.queue(id);
            }
        }
        if self.sweep_at <= self.now && !self.streams.is_empty() {
            self.sweep();
            self.sweep_at = self.now + SWEEP;
        }
        Ok(())
    }

    fn set_timer(&self, timer: &mut Pin<Box<Sleep>>, at: &mut Instant, cx: &mut Context<'_>) {
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
                self.remove(id, true, StreamEnded::Idle);
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

fn yamux_failure(error: &yamux::Error) -> Failure {
    match error {
        yamux::Error::PingTimeout => Failure::new(
            Layer::Yamux,
            Code::YamuxPingTimeout,
            "the other end has not answered a ping in time",
        ),
        other => Failure::new(
            Layer::Yamux,
            Code::YamuxProtocol,
            format!("the peer broke the yamux protocol: {other}"),
        ),
    }
}
