//! The client: local ports, sessions, and who goes where. It dials when told and reports what happens; what to do about it
//! is decided by its owner.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ech_workers_proxy::{self as proxy, Credentials, RequestKind, Target};
use ech_workers_rules::{Rules, Way};
use ech_workers_session::{
    self as session, Abort, Ledger, LocalEnd as _, Open, Refusal, Returned, Session,
};
use ech_workers_sync::{Mutex, RwLock};
use ech_workers_tls::ClientContext;
use ech_workers_yamux as yamux;
use futures_util::FutureExt;
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};
use tracing::level_filters::LevelFilter;

use crate::addresses::Addresses;
use crate::carrier::WebSocket;
use crate::cause;
use crate::connections::{Carried, ConnectionSnapshot, Connections};
use crate::counters::{Counter, Traffic};
use crate::desk::Desk;
use crate::dial::{self, DialPlan, Dialed, Learned, Mode};
use crate::direct;
use crate::driver::{Driver, Handle, Owner, SessionStats, Side, Sums};
use crate::events::Events;
use crate::failure::{Code, Ended, Failure, Layer};
use crate::fetch::{self, FetchPlan, Fetched};
use crate::lanes::{EARLY_BULK, FAR};
use crate::listen::{accept, bind};
use crate::local::{self, LocalPlace, Places};
use crate::log;
use crate::names::Resolved;
use crate::panics::caught;
use crate::pending::{Done, Pending, pending};
use crate::pool::{Carrier, Load, Member, Pool, Prospect, Purpose, Unavailable, WARM};
use crate::program::Program;
use crate::reply::Reply;
use crate::runtime::{self, Numbers, Threads};
use crate::sessions::seed;
use crate::snapshot::Snapshot;
use crate::socket::Socket;
use crate::stream::LocalStream;
use crate::unreached::Unreached;
use crate::ways::Ways;

/// What a connection of simple mode may hold for a program that does not take it, in bytes.
const STREAM_MEMORY: usize = 256 << 10;
/// Local connections that wait for the thread that they were given to.
const DESK_MAX: usize = 1 << 16;
/// How long the end of the client waits for its sessions' goodbyes.
const GOODBYE: Duration = Duration::from_millis(500);
/// How long a stream whose server cannot reach its target waits for a server that stands by without a session.
const STANDBY_WAIT: Duration = Duration::from_secs(5);

/// What the client is made with.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// What may be changed while it runs.
    pub limits: ClientLimits,
    /// How long a local program may take to say where it wants to go.
    pub local_handshake_timeout: Duration,
    /// The idle timeout of a stream with one direction ended.
    pub half_closed_timeout: Duration,
    /// Between keep-alive pings.
    pub ping_interval: Duration,
    /// How long an answer to one may take.
    pub ping_timeout: Duration,
    /// The largest receive window of a stream, in bytes.
    pub receive_window_max: u32,
    /// Threads that carry traffic; no more than the process has cores.
    pub workers: usize,
    /// What is worth a log line.
    pub log_level: LevelFilter,
}

/// What may be changed while a client runs: what is open keeps what it began with, but for the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientLimits {
    /// Local connections at a time.
    pub max_connections: usize,
    /// How long a local connection waits for a session.
    pub open_timeout: Duration,
    /// Without a byte either way for this long, a stream ends.
    pub idle_timeout: Duration,
    /// The most memory that receive windows may promise, in bytes.
    pub memory_limit: usize,
    /// The local reply waits for the server's status.
    pub confirmed: bool,
}

/// Everything that may be changed while a client runs.
pub struct ClientSettings {
    /// How much there may be of what.
    pub limits: ClientLimits,
    /// Whom it believes. `None`: whom it believed before, with the session tickets of that.
    pub tls: Option<ClientContext>,
    /// Which way connections go.
    pub rules: Rules,
}

/// What the client reports.
#[derive(Debug)]
pub enum Event {
    /// A dial succeeded.
    SessionUp {
        /// The dial's number.
        dial: u64,
        /// The session's number.
        session: u64,
        /// The number of its server.
        upstream: u32,
        /// How it was made.
        dialed: Box<Dialed>,
    },
    /// A session takes no new streams any more.
    SessionLost {
        /// Its number.
        session: u64,
        /// The number of its server.
        upstream: u32,
        /// How it ended, or that the server takes no new streams on it.
        ended: Ended,
        /// How long it was there.
        age: Duration,
        /// Bytes of payload that came over it.
        received: u64,
    },
    /// A stream would have gone to this server, and each of its sessions has as many streams as the server allows. Told again
    /// once a second while that is so.
    SessionsFull {
        /// The number of the server.
        upstream: u32,
    },
    /// A dial failed; 0 is one made for a connection in simple mode.
    DialFailed {
        /// The dial's number.
        dial: u64,
        /// The number of the server.
        upstream: u32,
        /// Why.
        failure: Failure,
    },
    /// A dial to this server learned something worth keeping.
    Learned {
        /// The number of the server.
        upstream: u32,
        /// Its name.
        server_name: String,
        /// What.
        what: Learned,
    },
    /// A session has another number of bulk transfers.
    BulkChanged {
        /// Its number.
        session: u64,
        /// The number of its server.
        upstream: u32,
        /// How many.
        streams: u64,
        /// A stream moves so much that it may become one. Never on a short path.
        growing: bool,
    },
    /// A server cannot reach a target, and the stream goes to another one.
    Unreached {
        /// The number of the server.
        upstream: u32,
        /// The kind of failure, as a word.
        kind: &'static str,
        /// The server's words, which name the target.
        reason: String,
        /// Every server that has said so of this target, to this stream.
        tried: Vec<u32>,
    },
    /// The addresses of this name are wanted, for connections that go straight to it. In lower case, without a final dot.
    NameWanted(String),
    /// An exchange succeeded.
    Fetched {
        /// Its number.
        fetch: u64,
        /// The answer.
        fetched: Fetched,
    },
    /// An exchange failed.
    FetchFailed {
        /// Its number.
        fetch: u64,
        /// Why.
        failure: Failure,
    },
}

/// An open local port.
#[derive(Debug)]
pub struct Listener {
    address: SocketAddr,
    accepting: AbortHandle,
}

impl Listener {
    /// Where it listens, which tells the port where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes the port. Connections that were accepted go on.
    pub fn close(&self) {
        self.accepting.abort();
        let deadline = Instant::now() + GOODBYE;
        while !self.accepting.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The client end of the tunnel. Owns its threads, which end with it.
#[derive(Debug)]
pub struct Client {
    shared: Arc<ClientState>,
    /// Taken when the client is closed.
    threads: Mutex<Option<Threads>>,
    listeners: Mutex<JoinSet<()>>,
}

struct ClientState {
    config: ClientConfig,
    limits: RwLock<ClientLimits>,
    tls: RwLock<ClientContext>,
    windows: Arc<yamux::WindowBudget>,
    addresses: Addresses,
    events: Arc<Events<Event>>,
    pool: Pool,
    /// Nothing new is to be opened.
    closing: watch::Sender<bool>,
    /// What sessions hold for programs that do not take it.
    memory: Arc<Ledger>,
    next: AtomicU64,
    sessions_total: AtomicU64,
    started: Instant,
    places: Arc<Places>,
    connections: Arc<Counter>,
    connections_total: Counter,
    connections_failed: Counter,
    targets_failed: Counter,
    last_target_failure: Mutex<Option<String>>,
    unreached: Unreached,
    dials_total: Counter,
    dials_failed: Counter,
    ech_retries: Counter,
    traffic: Arc<Traffic>,
    /// Where dials run.
    control: tokio::runtime::Handle,
    /// Where sessions run.
    threads: runtime::TrafficThreads,
    /// Where conversations with local programs run: one for each of these threads.
    desks: Vec<Desk>,
    /// Those that are open, for the user.
    list: Arc<Connections>,
    ways: Ways,
}

impl std::fmt::Debug for ClientState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientState").finish_non_exhaustive()
    }
}

impl Client {
    /// Starts the threads; nothing is listened on or dialled yet.
    ///
    /// # Errors
    /// The system cannot start a thread.
    pub fn new(config: ClientConfig, tls: ClientContext) -> io::Result<Self> {
        let events = Arc::<Events<Event>>::default();
        let numbers = Numbers {
            control: 1,
            traffic: config.workers.min(runtime::cores()),
        };
        let log = log::dispatch(Arc::clone(&events), config.log_level);
        let threads = Threads::start("ech-client", numbers, &log)?;
        let desk = |thread| Desk::open(thread, DESK_MAX);
        let desks = threads.traffic().iter().map(desk).collect();
        let limits = config.limits;
        let windows = Arc::new(yamux::WindowBudget::new(limits.memory_limit));
        let memory = Arc::new(Ledger::new(limits.memory_limit));
        let places = Arc::new(Places::new(limits.max_connections));
        let shared = Arc::new(ClientState {
            config,
            limits: RwLock::new(limits),
            tls: RwLock::new(tls),
            windows,
            addresses: Addresses::default(),
            pool: Pool::new(Arc::clone(&events)),
            events,
            closing: watch::Sender::new(false),
            memory,
            next: AtomicU64::new(1),
            sessions_total: AtomicU64::new(0),
            started: Instant::now(),
            places,
            connections: Arc::default(),
            connections_total: Counter::default(),
            connections_failed: Counter::default(),
            targets_failed: Counter::default(),
            last_target_failure: Mutex::default(),
            unreached: Unreached::default(),
            dials_total: Counter::default(),
            dials_failed: Counter::default(),
            ech_retries: Counter::default(),
            traffic: Arc::default(),
            control: threads.control().clone(),
            threads: threads.traffic(),
            desks,
            list: Arc::default(),
            ways: Ways::default(),
        });
        Ok(Self {
            shared,
            threads: Mutex::new(Some(threads)),
            listeners: Mutex::default(),
        })
    }

    /// The client's reports.
    pub fn events(&self) -> &Arc<Events<Event>> {
        &self.shared.events
    }

    /// Other settings, for what begins from now on: connections, sessions, dials, exchanges. The limit of the memory counts at once.
    pub fn apply(&self, settings: ClientSettings) {
        let ClientSettings { limits, tls, rules } = settings;
        let shared = &self.shared;
        *shared.limits.write() = limits;
        shared.places.set_limit(limits.max_connections);
        shared.windows.set_limit(limits.memory_limit);
        shared.memory.set_limit(limits.memory_limit);
        if let Some(tls) = tls {
            *shared.tls.write() = tls;
        }
        shared.ways.set_rules(rules);
    }

    /// Opens a SOCKS5/HTTP port, until the listener is closed or the client is.
    ///
    /// # Errors
    /// The address cannot be had.
    pub fn listen(
        &self,
        host: &str,
        port: u16,
        credentials: Option<Credentials>,
    ) -> io::Result<Listener> {
        let mut listeners = self.listeners.lock();
        // Those that were closed.
        while listeners.try_join_next().is_some() {}
        let threads: Vec<_> = self.shared.threads.iter().collect();
        let thread = threads[listeners.len() % threads.len()];
        let listener = {
            let _context = thread.handle().enter();
            bind(host, port)?
        };
        let address = listener.local_addr()?;
        let shared = Arc::clone(&self.shared);
        let here = thread.number;
        let accepting = accept(listener, move |tcp| {
            shared.connections_total.add(1);
            let welcomed = LocalPlace::take(&shared.places, &shared.connections)
                .is_some_and(|place| shared.welcome(here, tcp, place, credentials.clone()));
            if !welcomed {
                shared.connections_failed.add(1);
                tracing::debug!("a local connection over the limit was closed");
            }
        });
        let accepting = listeners.spawn_on(accepting, thread.handle());
        Ok(Listener { address, accepting })
    }

    /// The plan by which simple mode dials for each connection.
    pub fn set_plan(&self, upstream: u32, plan: Option<DialPlan>) {
        self.shared.pool.set_plan(upstream, plan);
    }

    /// Which servers new streams go to: their numbers and weights. The first tier that can take a stream does. Servers that are
    /// not named take none.
    pub fn route(&self, tiers: Vec<Vec<(u32, u32)>>) {
        self.shared.pool.route(tiers);
    }

    /// Starts a dial; its outcome is reported with the number returned.
    pub fn dial(&self, plan: DialPlan) -> u64 {
        let number = self.shared.number();
        self.shared
            .control
            .spawn(Arc::clone(&self.shared).make_session(number, plan));
        number
    }

    /// No new streams on this session; it ends with its last one.
    pub fn retire(&self, session: u64) {
        self.shared.pool.retire(session);
    }

    /// Has a session, or every session, measure its round trip now; one that does not answer in time is lost.
    pub fn probe(&self, session: Option<u64>) {
        match session {
            Some(session) => self.shared.pool.tell(session, Handle::probe),
            None => self.shared.pool.tell_all(Handle::probe),
        }
    }

    /// With a reason: connections that find no session fail at once. Without: they wait. The reason is for the API's user;
    /// local programs hear what `code` stands for, which names nobody.
    pub fn set_unavailable(&self, reason: Option<String>, code: &str) {
        let why = reason.map(|reason| Unavailable {
            reason,
            cause: cause::of(code),
        });
        self.shared.pool.set_unavailable(why);
    }

    /// Starts an exchange; its outcome is reported with the number returned.
    pub fn fetch(&self, plan: FetchPlan) -> u64 {
        let fetch = self.shared.number();
        let shared = Arc::clone(&self.shared);
        self.shared.control.spawn(async move {
            let tls = shared.tls();
            let fetched = caught(fetch::fetch(&plan, &tls, &shared.addresses)).await;
            let event = match fetched.and_then(|fetched| fetched) {
                Ok(fetched) => Event::Fetched { fetch, fetched },
                Err(failure) => Event::FetchFailed { fetch, failure },
            };
            shared.events.push(event);
        });
        fetch
    }

    /// Begins to open a stream to `target`. `limit` is for all of it: the wait for a session, and the server's answer.
    pub fn open(&self, target: &Target, limit: Option<Duration>, done: Option<Done>) -> Pending {
        let (pending, mut opening) = pending(done);
        let shared = &self.shared;
        let limit = limit
            .unwrap_or(shared.limits().open_timeout)
            .min(Duration::from_secs(86400));
        let deadline = Instant::now() + limit;
        shared.connections_total.add(1);
        let Some(place) = LocalPlace::take(&shared.places, &shared.connections) else {
            shared.connections_failed.add(1);
            opening.end(Err(Failure::new(
                Layer::Local,
                Code::TooManyConnections,
                "there are too many connections",
            )));
            return pending;
        };
        let (answer, answered) = oneshot::channel();
        let stream = LocalStream::Pending {
            answer,
            begun: Arc::clone(&opening.begun),
        };
        let mut end = Program::new(Socket::from(stream), Reply::Api, None, Some(place));
        end.list(shared.list.list(target.authority(), "api"));
        // The one who waits keeps the time, and says so by going away.
        let late = deadline + Duration::from_secs(1);
        let mut open = Open::new(end, target.authority().into_bytes(), late);
        open.confirm = true;
        shared
            .control
            .spawn(opening.run(answered, deadline, shared.closing.subscribe()));
        let (shared, target) = (Arc::clone(shared), target.clone());
        let control = shared.control.clone();
        control.spawn(async move { shared.send(open, &target, None).await });
        pending
    }

    /// Nothing that was found out about names holds any more: addresses are reached in another way now.
    pub fn forget_names(&self) {
        self.shared.ways.names.forget();
    }

    /// What was found out about a name that was wanted, which holds for `ttl`.
    pub fn resolved(&self, name: &str, answer: Resolved, ttl: Duration) {
        self.shared.ways.names.resolved(name, answer, ttl);
    }

    /// The local connections, and the streams of the API, that are open; the oldest first.
    pub fn connections(&self) -> Vec<ConnectionSnapshot> {
        self.shared.list.snapshot()
    }

    /// Ends a connection, which both of its sides see as a reset. False: there is none of this number.
    pub fn cut(&self, connection: u64) -> bool {
        self.shared.list.cut(connection)
    }

    /// The counters now.
    pub fn snapshot(&self) -> Snapshot {
        let shared = &self.shared;
        Snapshot {
            uptime: shared.started.elapsed(),
            connections: shared.connections.value(),
            connections_total: shared.connections_total.value(),
            connections_failed: shared.connections_failed.value(),
            targets_failed: shared.targets_failed.value(),
            last_target_failure: shared.last_target_failure.lock().clone(),
            connections_waiting: shared.pool.waiting(),
            direct_total: shared.ways.direct.value(),
            blocked_total: shared.ways.blocked.value(),
            bytes_up: shared.traffic.up.value(),
            bytes_down: shared.traffic.down.value(),
            dials_total: shared.dials_total.value(),
            dials_failed: shared.dials_failed.value(),
            ech_retries: shared.ech_retries.value(),
            sessions: shared.pool.snapshot(),
        }
    }

    /// Has every session say goodbye, as far as its server takes it.
    fn part(&self) {
        self.shared.pool.tell_all(Handle::end);
        self.shared.list.cut_direct();
        let deadline = Instant::now() + GOODBYE;
        let busy = || !self.shared.pool.is_empty() || self.shared.connections.value() > 0;
        while busy() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the listeners and what is being opened. Streams that are open go on.
    pub fn stop(&self) {
        self.listeners.lock().abort_all();
        self.shared.closing.send_replace(true);
    }

    /// Whether no local connection and no stream is open.
    pub fn is_idle(&self) -> bool {
        self.shared.connections.value() == 0
    }

    /// Ends listeners at once, and everything else when it is idle, or after `grace`.
    pub fn close(&self, grace: Duration) {
        self.stop();
        let Some(threads) = self.threads.lock().take() else {
            return;
        };
        let deadline = Instant::now() + grace;
        while !self.is_idle() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.part();
        self.shared.events.close();
        threads.shutdown(Duration::from_secs(1));
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.close(Duration::ZERO);
    }
}

impl ClientState {
    fn limits(&self) -> ClientLimits {
        *self.limits.read()
    }

    fn tls(&self) -> ClientContext {
        self.tls.read().clone()
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Gives a connection that was accepted on the thread `here` to the desk of a thread: of those with sessions, as far as there are
    /// any, the one with the fewest connections. `false`: there is no room.
    fn welcome(
        self: &Arc<Self>,
        here: usize,
        tcp: TcpStream,
        place: LocalPlace,
        credentials: Option<Credentials>,
    ) -> bool {
        let is_here = |desk: &Desk| desk.thread.number == here;
        let fewest = self.desks.iter().min_by_key(|desk| {
            let is_idle = desk.thread.sessions() == 0;
            (is_idle, desk.connections.value(), !is_here(desk))
        });
        let Some(desk) = fewest else {
            return false;
        };
        let place = place.on_thread(&desk.connections);
        let thread = desk.thread.number;
        let shared = Arc::clone(self);
        if is_here(desk) {
            return desk.take(shared.serve(tcp, place, credentials, thread).boxed());
        }
        // It is registered where it is used.
        let Ok(tcp) = tcp.into_std() else {
            return false;
        };
        let served = async move {
            match TcpStream::from_std(tcp) {
                Ok(tcp) => shared.serve(tcp, place, credentials, thread).await,
                Err(error) => tracing::debug!("a local connection was closed: {error}"),
            }
        };
        desk.take(served.boxed())
    }

    /// One local connection, up to the point where a driver owns its socket.
    async fn serve(
        self: Arc<Self>,
        mut tcp: TcpStream,
        place: LocalPlace,
        credentials: Option<Credentials>,
        thread: usize,
    ) {
        let Some(mut request) =
            local::negotiate(&mut tcp, credentials, self.config.local_handshake_timeout).await
        else {
            return;
        };
        let limits = self.limits();
        let deadline = Instant::now() + limits.open_timeout;
        let target = request.target.clone();
        let authority = target.authority();
        let protocol = request.kind.name();
        let early = std::mem::take(&mut request.early);
        let exchange = request.exchange.take();
        // A forwarded request has no reply of its own that could be early: a failure can be told.
        let confirm = limits.confirmed || request.kind == RequestKind::HttpForward;
        let mut end = Program::new(
            Socket::from(tcp),
            Reply::Local(request),
            exchange,
            Some(place),
        );
        end.list(self.list.list(authority.clone(), protocol));
        let mut open = Open::new(end, authority.into_bytes(), deadline);
        open.early = early;
        open.confirm = confirm;
        self.send(open, &target, Some(thread)).await;
    }

    /// Sends a connection the way that the rules say. `near`: the thread where its socket is.
    async fn send(self: Arc<Self>, mut open: Open<Program>, target: &Target, near: Option<usize>) {
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
                self.target_failed(&refusal.reason);
            }
        });
    }

    /// Finds a session for a stream, waiting for one if need be. Gives up when nobody waits for the stream any more. `near`: the
    /// thread where its socket is.
    async fn place(self: Arc<Self>, open: Box<Open<Program>>, near: Option<usize>) {
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
                Ok(Carrier::Dial(plan)) => {
                    let control = self.control.clone();
                    control.spawn(self.dial_for(open, plan, failed, near));
                    return;
                }
                Err(why) => return self.refuse(*open, &why),
            }
        }
    }

    /// As `place_beside`, in a task of its own.
    fn place_again(
        self: &Arc<Self>,
        open: Box<Open<Program>>,
        failed: Vec<u32>,
        near: Option<usize>,
    ) {
        let placing = Arc::clone(self).place_beside(open, failed, near);
        self.control.spawn(placing.boxed());
    }

    /// Nothing carries the stream. If a server has answered for its target, that is what the program is told.
    fn refuse(&self, mut open: Open<Program>, why: &Unavailable) {
        if let Some(refusal) = open.end.take_refusal() {
            return self.tell_unreached(open, &refusal);
        }
        self.connections_failed.add(1);
        open.end
            .fail(proxy::Failure::TunnelDown, why.cause, &why.reason);
    }

    /// A server cannot reach the stream's target, and nothing of the program has got to that: another server is asked, or the
    /// program is told when there is none left.
    fn try_elsewhere(
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
        self.target_failed(&refusal.reason);
        if open.told {
            open.end.abort(Abort::Reset);
        } else {
            open.end.refuse(refusal);
        }
    }

    /// Dials and keeps what comes of it for the next streams.
    async fn make_session(self: Arc<Self>, number: u64, plan: DialPlan) {
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
            self.pool.add(member);
            self.pool.dial_ended(number);
            self.keep_session(session, purpose, &observer, driver.run(&observer))
                .await;
        });
    }

    fn tell_dial_failed(&self, dial: u64, plan: &DialPlan, failure: Failure) {
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
    async fn dial_for(
        self: Arc<Self>,
        mut open: Box<Open<Program>>,
        plan: Arc<DialPlan>,
        mut failed: Vec<u32>,
        near: Option<usize>,
    ) {
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
        let (thread, counted) = near.map_or_else(
            || self.threads.least_busy(),
            |near| self.threads.numbered(near),
        );
        let home = thread.number;
        thread.spawn(async move {
            let _counted = counted;
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
            self.keep_session(session, Purpose::Taken, &observer, driver.run(&observer))
                .await;
        });
    }

    fn start_session(
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
            Mode::Simple => (
                session::Mode::Simple,
                session::Allowance::Bytes(STREAM_MEMORY),
            ),
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
                traffic: Some(Arc::clone(&self.traffic)),
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
            stats,
            address: dialed.address,
            since,
            retiring,
            load,
            thread,
            distance: dialed.tcp,
        };
        (Running { driver, observer }, member)
    }

    /// Keeps a session in the pool, where it is already, while it runs, and tells how it ended.
    async fn keep_session(
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
            tracing::debug!("a connection in simple mode ended: {failure}");
        }
    }

    /// One dial, counted, with what it learned reported.
    async fn dial(&self, number: u64, plan: &DialPlan) -> Result<(WebSocket, Dialed), Failure> {
        self.dials_total.add(1);
        let tls = self.tls();
        let dialing = dial::dial(plan, &tls, &self.addresses, |what| {
            if matches!(what, Learned::Ech(_)) {
                self.ech_retries.add(1);
            }
            self.events.push(Event::Learned {
                upstream: plan.upstream,
                server_name: plan.server_name.clone(),
                what,
            });
        });
        let outcome = caught(dialing).await.and_then(|outcome| outcome);
        if let Err(failure) = &outcome {
            self.dials_failed.add(1);
            tracing::debug!("dial {number}: {failure}");
        }
        outcome
    }

    /// The server could not reach a target: counted, and kept for the status, since an optimistic reply told nobody.
    fn target_failed(&self, reason: &str) {
        self.connections_failed.add(1);
        self.targets_failed.add(1);
        *self.last_target_failure.lock() = Some(reason.to_owned());
        tracing::debug!(target: log::TARGETS, "a target could not be reached: {reason}");
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
struct Observer {
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
            session::Event::TargetFailed(refusal) => self.shared.target_failed(&refusal.reason),
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
struct Running {
    driver: Driver<Program>,
    observer: Observer,
}

#[cfg(test)]
mod tests {
    use ech_workers_tls::Trust;
    use ech_workers_tls::authority::CertificateAuthority;

    use super::*;
    use crate::events::Next;

    const LIMIT: Duration = Duration::from_secs(20);

    fn client() -> Client {
        let config = ClientConfig {
            limits: ClientLimits {
                max_connections: 16,
                open_timeout: LIMIT,
                idle_timeout: LIMIT,
                memory_limit: 1 << 20,
                confirmed: false,
            },
            local_handshake_timeout: LIMIT,
            half_closed_timeout: LIMIT,
            ping_interval: LIMIT,
            ping_timeout: LIMIT,
            receive_window_max: 1 << 20,
            workers: 1,
            log_level: LevelFilter::DEBUG,
        };
        let trust = Trust {
            system: false,
            extra_pem: vec![CertificateAuthority::new().unwrap().root_pem().unwrap()],
        };
        Client::new(config, ClientContext::new(&trust).unwrap()).unwrap()
    }

    fn member(session: u64) -> Member {
        Member {
            session,
            upstream: 0,
            handle: Handle::of_no_session(),
            purpose: Purpose::Many,
            stats: Arc::default(),
            address: "192.0.2.1:443".parse().unwrap(),
            since: Instant::now(),
            retiring: Arc::default(),
            load: Arc::default(),
            thread: 0,
            distance: Duration::ZERO,
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
                .any(|line| line.contains("index out of bounds") && line.contains("client.rs")),
            "{lines:?}"
        );
        assert!(client.snapshot().sessions.is_empty());
    }

    fn failed(opening: &Pending) -> Code {
        assert!(opening.wait(LIMIT));
        opening.take().unwrap().map(|_| ()).unwrap_err().code
    }

    #[test]
    fn other_limits_count_for_what_comes_next() {
        let client = client();
        let shared = &client.shared;
        let limits = ClientLimits {
            max_connections: 1,
            open_timeout: Duration::from_millis(1),
            memory_limit: 5 << 20,
            ..shared.limits()
        };
        client.apply(ClientSettings {
            limits,
            tls: None,
            rules: Rules::new(Vec::new()),
        });
        assert_eq!(shared.limits(), limits);
        assert_eq!(
            (shared.windows.limit(), shared.memory.limit()),
            (5 << 20, 5 << 20)
        );
        let target: Target = "target.example:80".parse().unwrap();
        let waiting = client.open(&target, Some(LIMIT), None);
        let refused = client.open(&target, None, None);
        assert_eq!(failed(&refused), Code::TooManyConnections);
        drop(waiting);
        let deadline = Instant::now() + LIMIT;
        while !client.is_idle() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        // There is no session, and the new timeout is short.
        let late = client.open(&target, None, None);
        assert_eq!(failed(&late), Code::SessionTimeout);
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
