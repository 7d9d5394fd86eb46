//! The client: local ports, sessions, and who goes where. It dials when told and reports what happens; what to do about it
//! is decided by its owner.

mod addresses;
mod cause;
mod connect;
mod connections;
mod desk;
mod dial;
mod direct;
mod echo;
mod event;
mod fetch;
mod lanes;
mod load;
mod local;
mod names;
mod opening;
mod pending;
mod placing;
mod pool;
mod program;
mod refusal;
mod reply;
mod sessions;
mod snapshot;
mod totals;
mod turns;
mod unreached;
mod ways;
mod welcome;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ech_workers_proxy::{Credentials, Target};
use ech_workers_rules::Rules;
use ech_workers_session::{Ledger, Open, Refusal};
use ech_workers_sync::{Mutex, RwLock};
use ech_workers_tls::ClientContext;
use ech_workers_yamux as yamux;
use tokio::sync::{oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};
use tracing::level_filters::LevelFilter;

use crate::counters::Counter;
use crate::driver::Handle;
use crate::events::Events;
use crate::failure::{Code, Failure, Layer};
use crate::listen::{accept, bind};
use crate::log;
use crate::panics::caught;
use crate::runtime::{self, Numbers, Threads};
use crate::socket::Socket;
use crate::stream::LocalStream;

use self::addresses::Addresses;
use self::connections::Connections;
use self::desk::Desk;
use self::local::{LocalPlace, Places};
use self::pending::pending;
use self::pool::{Pool, Unavailable};
use self::program::Program;
use self::reply::Reply;
use self::totals::Totals;
use self::unreached::Unreached;
use self::ways::Ways;

pub use self::connections::{Carried, ConnectionSnapshot};
pub use self::dial::{DialPlan, Dialed, Learned, Mode};
pub use self::event::{Echo, Event};
pub use self::fetch::{FetchPlan, Fetched};
pub use self::names::Resolved;
pub use self::pending::{Done, Pending};
pub use self::snapshot::{SessionSnapshot, Snapshot, UpstreamSnapshot};

/// Local connections that wait for the thread that they were given to.
const DESK_MAX: usize = 1 << 16;
/// How long the end of the client waits for its sessions' goodbyes.
const GOODBYE: Duration = Duration::from_millis(500);

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
    totals: Totals,
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
            totals: Totals::default(),
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

    /// The plan by which simple mode dials for each connection. One of yamux mode is as none: its streams share the sessions that
    /// were dialled.
    pub fn set_plan(&self, upstream: u32, plan: Option<DialPlan>) {
        let plan = plan.filter(|plan| plan.mode == Mode::Simple);
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

    /// Has a session, or every session, measure its round trip now; one that does not answer in time is lost. Every session: any of
    /// them may be dead, so each takes new streams again when its server has answered.
    pub fn probe(&self, session: Option<u64>) {
        match session {
            Some(session) => self.shared.pool.tell(session, Handle::probe),
            None => {
                self.shared.pool.doubt_all();
                self.shared.pool.tell_all(Handle::probe);
            }
        }
    }

    /// Has the server of a session, by its number, send back 64 KiB, to see whether so much gets through; the outcome is reported with the number
    /// returned. Nothing is sent to a server that has not announced it.
    pub fn echo(&self, session: u64, upstream: u32) -> u64 {
        let number = self.shared.number();
        self.shared
            .control
            .spawn(Arc::clone(&self.shared).echo(number, session, upstream));
        number
    }

    /// The same on a connection of its own, as simple mode has it.
    pub fn echo_alone(&self, plan: DialPlan) -> u64 {
        let number = self.shared.number();
        self.shared
            .control
            .spawn(Arc::clone(&self.shared).echo_alone(number, plan));
        number
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
        let (all, upstreams) = shared.totals.snapshot();
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
            bytes_up: all.bytes_up,
            bytes_down: all.bytes_down,
            dials_total: all.dials_total,
            dials_failed: all.dials_failed,
            ech_retries: all.ech_retries,
            upstreams,
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

    /// The server could not reach a target: counted, and kept for the status, since an optimistic reply told nobody.
    fn target_failed(&self, refusal: &Refusal) {
        self.connections_failed.add(1);
        self.targets_failed.add(1);
        *self.last_target_failure.lock() = Some(refusal.reason.clone());
        log::say_target_failed(refusal);
    }
}

#[cfg(test)]
mod tests {
    use ech_workers_tls::Trust;
    use ech_workers_tls::authority::CertificateAuthority;

    use super::*;
    use crate::failure::Code;

    const LIMIT: Duration = Duration::from_secs(20);

    /// A client without a server.
    pub(super) fn client() -> Client {
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
}
