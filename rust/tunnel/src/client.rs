//! The client: local ports, sessions, and who goes where. It dials when told and reports what happens; what to do about it
//! is decided by its owner.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ech_workers_proxy::{self as proxy, Credentials, Target};
use ech_workers_tls::ClientContext;
use ech_workers_yamux as yamux;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixStream};
use tokio::runtime::Runtime;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tracing::Dispatch;
use tracing::level_filters::LevelFilter;

use crate::counters::{Counter, Traffic};
use crate::dial::{self, DialPlan, Dialed, Learned, Mode};
use crate::endpoint::{Endpoint, Socket};
use crate::events::Events;
use crate::failure::{Failure, Layer};
use crate::fetch::{self, FetchPlan, Fetched};
use crate::link::Link;
use crate::local::{self, Place};
use crate::log;
use crate::reply::Reply;
use crate::session::{self, ClientObserver, Command, End, Open, SessionStats};
use crate::simple;

/// Opens that wait for one session's driver to take them.
const COMMANDS: usize = 256;
/// How long a warm connection of simple mode may wait for its first use; idle cuts of CDNs begin at 30 s.
const WARM: Duration = Duration::from_secs(15);
const BACKLOG: u32 = 1024;
/// How long the end of the client waits for its sessions' goodbyes.
const GOODBYE: Duration = Duration::from_millis(500);

/// What the client is made with.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Local connections at a time.
    pub max_connections: usize,
    /// How long a local program may take to say where it wants to go.
    pub local_handshake_timeout: Duration,
    /// How long a local connection waits for a session.
    pub open_timeout: Duration,
    /// Without a byte either way for this long, a stream ends.
    pub idle_timeout: Duration,
    /// The same for a stream with one direction ended.
    pub half_closed_timeout: Duration,
    /// Between keep-alive pings.
    pub ping_interval: Duration,
    /// How long an answer to one may take.
    pub ping_timeout: Duration,
    /// The largest receive window of a stream, in bytes.
    pub receive_window_max: u32,
    /// The most memory that receive windows may promise, in bytes.
    pub memory_limit: usize,
    /// The local reply waits for the server's status.
    pub confirmed: bool,
    /// Worker threads.
    pub workers: usize,
    /// What is worth a log line.
    pub log_level: LevelFilter,
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
        /// How it was made.
        dialed: Box<Dialed>,
    },
    /// A session takes no new streams any more.
    SessionLost {
        /// Its number.
        session: u64,
        /// Why.
        failure: Failure,
        /// How long it was there.
        age: Duration,
    },
    /// A dial failed; 0 is one made for a connection in simple mode.
    DialFailed {
        /// The dial's number.
        dial: u64,
        /// Why.
        failure: Failure,
    },
    /// A dial to this server learned something worth keeping.
    Learned {
        /// The server.
        server_name: String,
        /// What.
        what: Learned,
    },
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

/// One session at one moment.
#[derive(Debug, Clone)]
pub struct SessionSnapshot {
    /// Its number.
    pub session: u64,
    /// The server's address.
    pub address: SocketAddr,
    /// It takes no new streams.
    pub retiring: bool,
    /// Open streams.
    pub streams: u64,
    /// Streams so far.
    pub streams_total: u64,
    /// How long it is there.
    pub age: Duration,
    /// The last measured round trip.
    pub rtt: Option<Duration>,
    /// Bytes to targets.
    pub bytes_up: u64,
    /// Bytes from targets.
    pub bytes_down: u64,
}

/// The client's counters at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// How long the client is there.
    pub uptime: Duration,
    /// Local connections now.
    pub connections: u64,
    /// Local connections so far.
    pub connections_total: u64,
    /// Requests that could not be served.
    pub connections_failed: u64,
    /// Those of them whose target the server could not reach.
    pub targets_failed: u64,
    /// The last such target, and why.
    pub last_target_failure: Option<String>,
    /// Local connections waiting for a session.
    pub connections_waiting: u64,
    /// Bytes to targets.
    pub bytes_up: u64,
    /// Bytes from targets.
    pub bytes_down: u64,
    /// Dials so far.
    pub dials_total: u64,
    /// Dials that failed.
    pub dials_failed: u64,
    /// ECH rejections met with retry configurations.
    pub ech_retries: u64,
    /// The sessions.
    pub sessions: Vec<SessionSnapshot>,
}

/// The client end of the tunnel. Owns its threads, which end with it.
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
    /// Taken when the client is closed.
    runtime: Mutex<Option<Runtime>>,
    handle: tokio::runtime::Handle,
    listeners: Mutex<JoinSet<()>>,
}

struct Shared {
    config: ClientConfig,
    tls: ClientContext,
    windows: Arc<yamux::WindowBudget>,
    events: Arc<Events<Event>>,
    pool: Mutex<Pool>,
    /// The pool, the plan or the availability changed.
    changed: Notify,
    /// Connections in simple mode are to end.
    ending: watch::Sender<bool>,
    next: AtomicU64,
    sessions_total: AtomicU64,
    started: Instant,
    places: Arc<Semaphore>,
    connections: Arc<Counter>,
    connections_total: Counter,
    connections_failed: Counter,
    targets_failed: Counter,
    last_target_failure: Mutex<Option<String>>,
    waiting: Counter,
    dials_total: Counter,
    dials_failed: Counter,
    ech_retries: Counter,
    traffic: Arc<Traffic>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Pool {
    sessions: Vec<Member>,
    /// Connections of simple mode that wait for their first use.
    warm: VecDeque<(Instant, Box<Link>)>,
    /// By which simple mode dials for each connection.
    plan: Option<Arc<DialPlan>>,
    unavailable: Option<String>,
}

struct Member {
    session: u64,
    commands: mpsc::Sender<Command>,
    stats: Arc<SessionStats>,
    address: SocketAddr,
    since: Instant,
    retiring: Arc<AtomicBool>,
}

enum Carrier {
    Session(mpsc::Sender<Command>),
    Simple(Arc<DialPlan>, Option<Box<Link>>),
}

impl Client {
    /// Starts the threads; nothing is listened on or dialled yet.
    ///
    /// # Errors
    /// The system cannot start a thread.
    pub fn new(config: ClientConfig, tls: ClientContext) -> io::Result<Self> {
        let events = Arc::<Events<Event>>::default();
        let runtime = runtime(
            config.workers,
            "ech-client",
            log::dispatch(Arc::clone(&events), config.log_level),
        )?;
        let handle = runtime.handle().clone();
        let windows = Arc::new(yamux::WindowBudget::new(config.memory_limit));
        let places = Arc::new(Semaphore::new(
            config.max_connections.min(Semaphore::MAX_PERMITS),
        ));
        let shared = Arc::new(Shared {
            config,
            tls,
            windows,
            events,
            pool: Mutex::default(),
            changed: Notify::new(),
            ending: watch::Sender::new(false),
            next: AtomicU64::new(1),
            sessions_total: AtomicU64::new(0),
            started: Instant::now(),
            places,
            connections: Arc::default(),
            connections_total: Counter::default(),
            connections_failed: Counter::default(),
            targets_failed: Counter::default(),
            last_target_failure: Mutex::default(),
            waiting: Counter::default(),
            dials_total: Counter::default(),
            dials_failed: Counter::default(),
            ech_retries: Counter::default(),
            traffic: Arc::default(),
        });
        Ok(Self {
            shared,
            runtime: Mutex::new(Some(runtime)),
            handle,
            listeners: Mutex::default(),
        })
    }

    /// The client's reports.
    pub fn events(&self) -> &Arc<Events<Event>> {
        &self.shared.events
    }

    /// Opens a SOCKS5/HTTP port. Returns its address, which tells the port where 0 was asked for.
    ///
    /// # Errors
    /// The address cannot be had.
    pub fn listen(
        &self,
        host: &str,
        port: u16,
        credentials: Option<Credentials>,
    ) -> io::Result<SocketAddr> {
        let _context = self.handle.enter();
        let listener = bind(host, port)?;
        let address = listener.local_addr()?;
        let shared = Arc::clone(&self.shared);
        let accepting = local::accept(listener, move |tcp| {
            shared.connections_total.add(1);
            match Place::take(&shared.places, &shared.connections) {
                Some(place) => {
                    tokio::spawn(Arc::clone(&shared).serve(tcp, place, credentials.clone()));
                }
                None => {
                    shared.connections_failed.add(1);
                    tracing::debug!("a local connection over the limit was closed");
                }
            }
        });
        self.listeners.lock().spawn_on(accepting, &self.handle);
        Ok(address)
    }

    /// The plan by which simple mode dials for each connection.
    pub fn set_plan(&self, plan: Option<DialPlan>) {
        self.shared.pool.lock().plan = plan.map(Arc::new);
        self.shared.changed.notify_waiters();
    }

    /// Starts a dial; its outcome is reported with the number returned.
    pub fn dial(&self, plan: DialPlan) -> u64 {
        let number = self.shared.number();
        self.handle
            .spawn(Arc::clone(&self.shared).make_session(number, plan));
        number
    }

    /// No new streams on this session; it ends with its last one.
    pub fn retire(&self, session: u64) {
        let pool = self.shared.pool.lock();
        if let Some(member) = pool
            .sessions
            .iter()
            .find(|member| member.session == session)
        {
            member.retiring.store(true, Ordering::Relaxed);
            // A full queue means that the driver is at work: it is told when there is room.
            let commands = member.commands.clone();
            self.handle.spawn(async move {
                let _ = commands.send(Command::Retire).await;
            });
        }
    }

    /// Has every session measure its round trip now; one that does not answer in time is lost.
    pub fn probe(&self) {
        for member in &self.shared.pool.lock().sessions {
            let _ = member.commands.try_send(Command::Probe);
        }
    }

    /// With a reason: connections that find no session fail at once. Without: they wait.
    pub fn set_unavailable(&self, reason: Option<String>) {
        self.shared.pool.lock().unavailable = reason;
        self.shared.changed.notify_waiters();
    }

    /// Starts an exchange; its outcome is reported with the number returned.
    pub fn fetch(&self, plan: FetchPlan) -> u64 {
        let fetch = self.shared.number();
        let shared = Arc::clone(&self.shared);
        self.handle.spawn(async move {
            let event = match fetch::fetch(&plan, &shared.tls).await {
                Ok(fetched) => Event::Fetched { fetch, fetched },
                Err(failure) => Event::FetchFailed { fetch, failure },
            };
            shared.events.push(event);
        });
        fetch
    }

    /// Opens a stream to `target` and returns a socket that is its other end. To be called outside of the client's threads.
    ///
    /// # Errors
    /// No session, or the target cannot be had (as far as the server tells).
    pub fn open(&self, target: Target, limit: Option<Duration>) -> Result<OwnedFd, Failure> {
        let (answer, answered) = oneshot::channel();
        let limit = limit
            .unwrap_or(self.shared.config.open_timeout)
            .min(Duration::from_secs(86400));
        let deadline = Instant::now() + limit;
        let broken = |error: io::Error| {
            Failure::new(
                Layer::Local,
                "local",
                format!("the stream's socket: {error}"),
            )
        };
        let place = Place::take(&self.shared.places, &self.shared.connections)
            .ok_or_else(|| Failure::new(Layer::Local, "local", "there are too many connections"))?;
        self.shared.connections_total.add(1);
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(broken)?;
        ours.set_nonblocking(true).map_err(broken)?;
        let socket = {
            let _context = self.handle.enter();
            UnixStream::from_std(ours).map_err(broken)?
        };
        let open = Open {
            socket: Socket::Unix(socket),
            target,
            early: Vec::new(),
            body: None,
            place: Some(place),
            deadline,
            reply: Reply::Api(answer),
            confirm: true,
        };
        self.handle
            .spawn(Arc::clone(&self.shared).place(Box::new(open)));
        // The server's own limit on connecting comes on top.
        let patience = limit + Duration::from_secs(20);
        self.handle.block_on(async {
            match tokio::time::timeout(patience, answered).await {
                Ok(Ok(outcome)) => outcome.map(|()| theirs.into()),
                Ok(Err(_)) => Err(Failure::new(
                    Layer::Yamux,
                    "shutdown",
                    "the session ended before the stream was open",
                )),
                Err(_) => Err(Failure::new(
                    Layer::Target,
                    "target-timeout",
                    "no answer in time",
                )),
            }
        })
    }

    /// The counters now.
    pub fn snapshot(&self) -> Snapshot {
        let shared = &self.shared;
        let sessions = shared
            .pool
            .lock()
            .sessions
            .iter()
            .map(Member::snapshot)
            .collect();
        Snapshot {
            uptime: shared.started.elapsed(),
            connections: shared.connections.value(),
            connections_total: shared.connections_total.value(),
            connections_failed: shared.connections_failed.value(),
            targets_failed: shared.targets_failed.value(),
            last_target_failure: shared.last_target_failure.lock().clone(),
            connections_waiting: shared.waiting.value(),
            bytes_up: shared.traffic.up.value(),
            bytes_down: shared.traffic.down.value(),
            dials_total: shared.dials_total.value(),
            dials_failed: shared.dials_failed.value(),
            ech_retries: shared.ech_retries.value(),
            sessions,
        }
    }

    /// Has every session say goodbye, as far as its server takes it.
    fn part(&self) {
        for member in &self.shared.pool.lock().sessions {
            let _ = member.commands.try_send(Command::End);
        }
        self.shared.ending.send_replace(true);
        let deadline = Instant::now() + GOODBYE;
        let busy =
            || !self.shared.pool.lock().sessions.is_empty() || self.shared.connections.value() > 0;
        while busy() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends listeners at once, and everything else when it is idle, or after `grace`.
    pub fn close(&self, grace: Duration) {
        self.listeners.lock().abort_all();
        let Some(runtime) = self.runtime.lock().take() else {
            return;
        };
        let deadline = Instant::now() + grace;
        while self.shared.connections.value() > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.part();
        self.shared.events.close();
        runtime.shutdown_timeout(Duration::from_secs(1));
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.close(Duration::ZERO);
    }
}

impl Shared {
    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// One local connection, up to the point where a driver owns its socket.
    async fn serve(
        self: Arc<Self>,
        mut tcp: TcpStream,
        place: Place,
        credentials: Option<Credentials>,
    ) {
        let Some(mut request) =
            local::negotiate(&mut tcp, credentials, self.config.local_handshake_timeout).await
        else {
            return;
        };
        let deadline = Instant::now() + self.config.open_timeout;
        let open = Open {
            socket: Socket::Tcp(tcp),
            target: request.target.clone(),
            early: std::mem::take(&mut request.early),
            body: request.body.take().map(Box::new),
            place: Some(place),
            deadline,
            reply: Reply::Local(request),
            confirm: self.config.confirmed,
        };
        self.place(Box::new(open)).await;
    }

    /// Finds a session for a stream, waiting for one if need be.
    async fn place(self: Arc<Self>, open: Box<Open>) {
        let deadline = open.deadline;
        loop {
            match self.carrier(deadline).await {
                Ok(Carrier::Session(commands)) => {
                    let Ok(permit) =
                        tokio::time::timeout_at(deadline.into(), commands.reserve()).await
                    else {
                        return self.refuse(*open, "the session is too busy");
                    };
                    match permit {
                        Ok(permit) => return permit.send(Command::Open(open)),
                        // That session has just ended: another one, or the wait for it.
                        Err(_) => tokio::task::yield_now().await,
                    }
                }
                Ok(Carrier::Simple(plan, warm)) => {
                    return self.carry_simple(open, plan, warm).await;
                }
                Err(reason) => return self.refuse(*open, &reason),
            }
        }
    }

    /// What carries the next stream, waiting for it until `deadline`. An error: nothing will.
    async fn carrier(&self, deadline: Instant) -> Result<Carrier, String> {
        while Instant::now() < deadline {
            if let Some(carrier) = self.pool.lock().choose()? {
                return Ok(carrier);
            }
            let mut changed = std::pin::pin!(self.changed.notified());
            // From here on no change is missed; one may have come since the look.
            changed.as_mut().enable();
            if let Some(carrier) = self.pool.lock().choose()? {
                return Ok(carrier);
            }
            self.waiting.add(1);
            // Whether it came in time, the clock says.
            let _ = tokio::time::timeout_at(deadline.into(), changed).await;
            self.waiting.sub(1);
        }
        Err("no session came up in time".to_owned())
    }

    fn refuse(&self, open: Open, reason: &str) {
        self.connections_failed.add(1);
        let endpoint = Endpoint::local(open.socket, None, open.place);
        open.reply
            .refuse(endpoint, proxy::Failure::TunnelDown, reason);
    }

    async fn make_session(self: Arc<Self>, number: u64, plan: DialPlan) {
        let (link, dialed) = match self.dial(number, &plan).await {
            Ok(made) => made,
            Err(failure) => {
                self.events.push(Event::DialFailed {
                    dial: number,
                    failure,
                });
                return;
            }
        };
        let session = self.sessions_total.fetch_add(1, Ordering::Relaxed) + 1;
        let up = Event::SessionUp {
            dial: number,
            session,
            dialed: Box::new(dialed.clone()),
        };
        if plan.mode == Mode::Simple {
            self.pool
                .lock()
                .warm
                .push_back((Instant::now(), Box::new(link)));
            self.changed.notify_waiters();
            self.events.push(up);
            tokio::time::sleep(WARM).await;
            // Unused: it would be cut soon.
            self.pool
                .lock()
                .warm
                .retain(|(since, _)| since.elapsed() < WARM);
            return;
        }
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let stats = Arc::new(SessionStats::default());
        let retiring = Arc::new(AtomicBool::new(false));
        let since = Instant::now();
        let observer = Arc::new(Observer {
            shared: Arc::clone(&self),
            session,
            since,
            retiring: Arc::clone(&retiring),
        });
        let end = End::Client {
            extended: dialed.extended(),
            observer,
            all: Arc::clone(&self.traffic),
        };
        let limits = session::Limits {
            yamux: self.yamux_config(),
            idle: self.config.idle_timeout,
            half_closed_idle: self.config.half_closed_timeout,
        };
        let driver = session::Driver::new(link, end, limits, receiver, Arc::clone(&stats));
        self.pool.lock().sessions.push(Member {
            session,
            commands,
            stats,
            address: dialed.address,
            since,
            retiring: Arc::clone(&retiring),
        });
        self.events.push(up);
        self.changed.notify_waiters();
        let (failure, unbegun) = driver.run().await;
        self.pool
            .lock()
            .sessions
            .retain(|member| member.session != session);
        self.report_lost(session, failure, since, &retiring, true);
        for open in unbegun {
            tokio::spawn(Arc::clone(&self).place(open));
        }
    }

    fn report_lost(
        &self,
        session: u64,
        failure: Failure,
        since: Instant,
        retiring: &AtomicBool,
        ended: bool,
    ) {
        // A session that refused new streams was reported then.
        let reported = retiring.swap(true, Ordering::Relaxed) && failure.code != "retired";
        if !(ended && reported) {
            self.events.push(Event::SessionLost {
                session,
                failure,
                age: since.elapsed(),
            });
        }
    }

    /// One dial, counted, with what it learned reported.
    async fn dial(&self, number: u64, plan: &DialPlan) -> Result<(Link, Dialed), Failure> {
        self.dials_total.add(1);
        let outcome = dial::dial(plan, &self.tls, |what| {
            if matches!(what, Learned::Ech(_)) {
                self.ech_retries.add(1);
            }
            self.events.push(Event::Learned {
                server_name: plan.server_name.clone(),
                what,
            });
        })
        .await;
        if let Err(failure) = &outcome {
            self.dials_failed.add(1);
            tracing::debug!("dial {number}: {failure}");
        }
        outcome
    }

    async fn carry_simple(
        self: Arc<Self>,
        open: Box<Open>,
        plan: Arc<DialPlan>,
        warm: Option<Box<Link>>,
    ) {
        let link = match warm {
            Some(link) => *link,
            None => match self.dial(0, &plan).await {
                Ok((link, _)) => link,
                Err(failure) => {
                    self.refuse(*open, &failure.message);
                    self.events.push(Event::DialFailed { dial: 0, failure });
                    return;
                }
            },
        };
        let limits = simple::Limits {
            answer: self.config.open_timeout.max(Duration::from_secs(15)),
            idle: self.config.idle_timeout,
            half_closed_idle: self.config.half_closed_timeout,
        };
        let mut ending = self.ending.subscribe();
        let driver = simple::Driver::client(link, *open, limits, Arc::clone(&self.traffic));
        driver
            .run(ending.wait_for(|&ending| ending), |failure| {
                if failure.layer == Layer::Target {
                    self.target_failed(&failure.message);
                } else {
                    tracing::debug!("a connection in simple mode ended: {failure}");
                }
            })
            .await;
    }

    /// The server could not reach a target: counted, and kept for the status, since an optimistic reply told nobody.
    fn target_failed(&self, reason: &str) {
        self.connections_failed.add(1);
        self.targets_failed.add(1);
        *self.last_target_failure.lock() = Some(reason.to_owned());
        tracing::debug!("a target could not be reached: {reason}");
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

impl Pool {
    /// The least loaded session, or how simple mode goes. `Ok(None)`: wait. An error: do not.
    fn choose(&mut self) -> Result<Option<Carrier>, String> {
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

/// Hears what a session has to say while it runs.
struct Observer {
    shared: Arc<Shared>,
    session: u64,
    since: Instant,
    retiring: Arc<AtomicBool>,
}

impl ClientObserver for Observer {
    fn refused(&self, failure: Failure) {
        self.shared
            .report_lost(self.session, failure, self.since, &self.retiring, false);
    }

    fn target_failed(&self, reason: &str) {
        self.shared.target_failed(reason);
    }
}

/// A runtime whose threads carry `name`.
pub(crate) fn runtime(workers: usize, name: &str, log: Dispatch) -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers.max(1))
        // A driver under load is always ready, and tokio looks at the sockets only every so many polls (61 unless told):
        // everybody else would wait for dozens of its turns.
        .event_interval(1)
        .on_thread_start(move || log::adopt_thread(&log))
        // Name look-ups of the server end, which wait for the system's resolver.
        .max_blocking_threads(16)
        .thread_name(name)
        .enable_all()
        .build()
}

/// A listening socket, on the first address of `host` that can be had.
#[expect(
    clippy::disallowed_methods,
    reason = "an address to listen on, given by the user: `localhost` is the name in use"
)]
pub(crate) fn bind(host: &str, port: u16) -> io::Result<TcpListener> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let mut last = io::Error::new(io::ErrorKind::AddrNotAvailable, "the host has no address");
    for address in (host, port).to_socket_addrs()? {
        match bind_one(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn bind_one(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }?;
    // A port whose connections linger from the last run can be had again (not one that is in use).
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
