//! The server: a web server with a certificate and ECH keys, behind whose one path, for those with a token, are targets.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ech_workers_proxy::Target;
use ech_workers_tls::ech::EchKey;
use ech_workers_tls::{ServerContext, TlsStream};
use ech_workers_websocket::handshake::validate_upgrade;
use ech_workers_websocket::{self as websocket, Decoder, MessageKind, Role};
use ech_workers_yamux as yamux;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use subtle::{Choice, ConstantTimeEq};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::level_filters::LevelFilter;

use crate::client::{bind, runtime};
use crate::counters::{ByConfigId, Counter};
use crate::events::Events;
use crate::failure::{Failure, Layer};
use crate::link::{Link, unpace_loopback};
use crate::local;
use crate::log;
use crate::preamble;
use crate::session::{self, Command, Connector, End, SessionStats};
use crate::simple;
use crate::target::{self, Policy};

/// From the TCP connection to the end of the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// For the head of a request, and between two of them.
const REQUEST: Duration = Duration::from_secs(15);
/// From the 101 to the first message.
const FIRST_MESSAGE: Duration = Duration::from_secs(30);
/// What may come before the first byte of the first message.
const FIRST_MESSAGE_MAX: usize = 4096;
const COMMANDS: usize = 256;
/// How long the end of the server waits for its sessions' goodbyes.
const GOODBYE: Duration = Duration::from_millis(500);
/// What the receive windows of all sessions may promise together beyond their first 256 KiB each, in bytes.
const WINDOWS: usize = 256 << 20;

/// The page that everybody sees who has no token.
const DECOY: &str = "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>Welcome</title></head>\n\
    <body><h1>Welcome</h1><p>This site is being set up. Please come back later.</p></body>\n</html>\n";

/// What the server is made with.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Those who may pass. Each is a Sec-WebSocket-Protocol.
    pub tokens: Vec<String>,
    /// Where the WebSocket is; `/` means every path.
    pub path: String,
    /// The page for everybody else.
    pub decoy: Option<Vec<u8>>,
    /// Also connect to targets that are not of the public Internet.
    pub allow_private_targets: bool,
    /// Connections at a time.
    pub max_sessions: usize,
    /// Streams of one session at a time.
    pub max_streams: usize,
    /// To reach a target.
    pub connect_timeout: Duration,
    /// Without a byte either way for this long, a stream ends.
    pub idle_timeout: Duration,
    /// Worker threads.
    pub workers: usize,
    /// What is worth a log line.
    pub log_level: LevelFilter,
}

/// The server's counters.
#[derive(Debug, Default)]
pub struct ServerStats {
    /// Authenticated WebSockets now.
    pub sessions: Arc<Counter>,
    /// And so far.
    pub sessions_total: Counter,
    /// Streams that could not be connected.
    pub streams_failed: Counter,
    /// TLS handshakes that failed.
    pub handshakes_failed: Counter,
    /// Handshakes whose ECH was accepted.
    pub ech_accepted: Counter,
    /// Handshakes that offered ECH and had to be rejected: stale keys.
    pub ech_rejected: Counter,
    /// Handshakes without ECH.
    pub ech_absent: Counter,
    /// Handshakes that offered ECH, by the configuration id they offered.
    pub ech_offered: ByConfigId,
    /// Upgrades with a wrong token.
    pub tokens_rejected: Counter,
    /// Streams and bytes, of all sessions together.
    pub streams: Arc<SessionStats>,
}

/// The server end of the tunnel. Owns its threads, which end with it.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    address: SocketAddr,
    runtime: Mutex<Option<Runtime>>,
    stopping: watch::Sender<Stopping>,
    accepting: Mutex<JoinSet<()>>,
    started: Instant,
}

/// How far the end of the server has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stopping {
    No,
    /// No new streams; sessions end with their last one.
    Draining,
    /// Sessions end.
    Now,
}

struct Shared {
    config: ServerConfig,
    tls: ServerContext,
    policy: Policy,
    windows: Arc<yamux::WindowBudget>,
    places: Arc<Semaphore>,
    stats: ServerStats,
    events: Arc<Events<Infallible>>,
    stopping: watch::Receiver<Stopping>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Server {
    /// Starts listening.
    ///
    /// # Errors
    /// The address cannot be had, or the system cannot start a thread.
    pub fn new(
        host: &str,
        port: u16,
        config: ServerConfig,
        tls: ServerContext,
    ) -> io::Result<Self> {
        let events = Arc::<Events<Infallible>>::default();
        let runtime = runtime(
            config.workers,
            "ech-server",
            log::dispatch(Arc::clone(&events), config.log_level),
        )?;
        let (stopping, stop) = watch::channel(Stopping::No);
        let policy = Policy {
            allow_private: config.allow_private_targets,
            timeout: config.connect_timeout,
        };
        let places = Arc::new(Semaphore::new(
            config.max_sessions.min(Semaphore::MAX_PERMITS),
        ));
        let shared = Arc::new(Shared {
            config,
            tls,
            policy,
            windows: Arc::new(yamux::WindowBudget::new(WINDOWS)),
            places,
            stats: ServerStats::default(),
            events,
            stopping: stop,
        });
        let mut accepting = JoinSet::new();
        let address = {
            let _context = runtime.enter();
            let listener = bind(host, port)?;
            let address = listener.local_addr()?;
            let shared = Arc::clone(&shared);
            accepting.spawn(local::accept(listener, move |tcp| {
                match Arc::clone(&shared.places).try_acquire_owned() {
                    Ok(place) => {
                        let shared = Arc::clone(&shared);
                        tokio::spawn(async move {
                            shared.serve(tcp).await;
                            drop(place);
                        });
                    }
                    Err(_) => tracing::warn!(
                        "a connection over the limit of {} was closed",
                        shared.config.max_sessions
                    ),
                }
            }));
            address
        };
        Ok(Self {
            shared,
            address,
            runtime: Mutex::new(Some(runtime)),
            stopping,
            accepting: Mutex::new(accepting),
            started: Instant::now(),
        })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Swaps the ECH keys; running connections keep theirs.
    ///
    /// # Errors
    /// None of them is a retry key, or two have the same id.
    pub fn set_ech_keys(&self, keys: &[EchKey]) -> Result<(), ech_workers_tls::ServerError> {
        self.shared.tls.set_ech_keys(keys)
    }

    /// The server's log lines.
    pub fn events(&self) -> &Arc<Events<Infallible>> {
        &self.shared.events
    }

    /// The counters.
    pub fn stats(&self) -> &ServerStats {
        &self.shared.stats
    }

    /// Since when it is there.
    pub const fn started(&self) -> Instant {
        self.started
    }

    /// Stops accepting, tells sessions to take no new streams, and ends everything when it is idle or after `grace`.
    pub fn close(&self, grace: Duration) {
        self.accepting.lock().abort_all();
        let Some(runtime) = self.runtime.lock().take() else {
            return;
        };
        // Sessions of the last moment may not have looked yet: the value stays for them.
        let _ = self.stopping.send(Stopping::Draining);
        self.wait_for_sessions(grace);
        let _ = self.stopping.send(Stopping::Now);
        self.wait_for_sessions(GOODBYE);
        self.shared.events.close();
        runtime.shutdown_timeout(Duration::from_secs(1));
    }
}

impl Server {
    fn wait_for_sessions(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        while self.shared.stats.sessions.value() > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.close(Duration::ZERO);
    }
}

impl Shared {
    async fn serve(self: Arc<Self>, tcp: TcpStream) {
        let Ok(peer) = tcp.peer_addr() else {
            // It is gone already.
            self.stats.handshakes_failed.add(1);
            return;
        };
        unpace_loopback(&tcp, peer);
        let tls = match timeout(HANDSHAKE, ech_workers_tls::accept(tcp, &self.tls)).await {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => {
                self.stats.handshakes_failed.add(1);
                tracing::debug!("handshake with {peer}: {error}");
                return;
            }
            Err(_) => {
                self.stats.handshakes_failed.add(1);
                tracing::debug!(
                    "handshake with {peer}: no end within {} s",
                    HANDSHAKE.as_secs()
                );
                return;
            }
        };
        let info = tls.info();
        let counter = match (info.ech_accepted, info.ech_config_id.is_some()) {
            (true, _) => &self.stats.ech_accepted,
            (false, true) => &self.stats.ech_rejected,
            (false, false) => &self.stats.ech_absent,
        };
        counter.add(1);
        if let Some(id) = info.ech_config_id {
            self.stats.ech_offered.add(id);
        }
        let upgraded: Arc<Mutex<Option<OnUpgrade>>> = Arc::default();
        let service = {
            let (shared, upgraded) = (Arc::clone(&self), Arc::clone(&upgraded));
            service_fn(move |request| {
                let response = shared.respond(request, &upgraded);
                async move { Ok::<_, Infallible>(response) }
            })
        };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(REQUEST)
            .max_buf_size(32 * 1024)
            .title_case_headers(true)
            .serve_connection(TokioIo::new(tls), service)
            .with_upgrades();
        if let Err(error) = connection.await {
            tracing::debug!("a request of {peer}: {error}");
            return;
        }
        let Some(upgrade) = upgraded.lock().take() else {
            return;
        };
        let Ok(parts) = upgrade
            .await
            .map(hyper::upgrade::Upgraded::downcast::<TokioIo<TlsStream>>)
        else {
            return;
        };
        let Ok(parts) = parts else { return };
        self.stats.sessions.add(1);
        self.stats.sessions_total.add(1);
        let ended = self.session(parts.io.into_inner(), &parts.read_buf).await;
        self.stats.sessions.sub(1);
        if let Err(failure) = ended {
            tracing::debug!("the session of {peer} ended: {failure}");
        }
    }

    // ------------------------------------------------------------------ the web face

    fn respond(
        &self,
        mut request: Request<Incoming>,
        upgraded: &Mutex<Option<OnUpgrade>>,
    ) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        if self.config.path == "/" || self.config.path == path {
            let headers = request
                .headers()
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_bytes()));
            if let Ok(upgrade) = validate_upgrade(
                request.method().as_str(),
                request.version() == Version::HTTP_11,
                headers,
            ) {
                if let Some(response) = self.switch(&upgrade) {
                    *upgraded.lock() = Some(hyper::upgrade::on(&mut request));
                    return response;
                }
                self.stats.tokens_rejected.add(1);
            }
        }
        match (request.method(), request.uri().path()) {
            (&Method::GET | &Method::HEAD, "/healthz") => {
                page(StatusCode::OK, "text/plain; charset=utf-8", "ok\n")
            }
            (&Method::GET | &Method::HEAD, _) => {
                let decoy = self
                    .config
                    .decoy
                    .clone()
                    .map_or(Bytes::from_static(DECOY.as_bytes()), Bytes::from);
                page(StatusCode::OK, "text/html; charset=utf-8", decoy)
            }
            _ => page(
                StatusCode::METHOD_NOT_ALLOWED,
                "text/plain; charset=utf-8",
                "Method Not Allowed\n",
            ),
        }
    }

    /// The 101 for one who knows a token.
    fn switch(&self, upgrade: &websocket::handshake::Upgrade<'_>) -> Option<Response<Full<Bytes>>> {
        let offered = upgrade.protocol?;
        // Every token is compared, each in constant time: the time tells nothing but how many there are.
        let known = self
            .config
            .tokens
            .iter()
            .fold(Choice::from(0), |known, token| {
                known | token.as_bytes().ct_eq(offered)
            });
        if !bool::from(known) {
            return None;
        }
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        for (name, value) in upgrade.response_headers() {
            headers.insert(name, HeaderValue::from_str(value).ok()?);
        }
        headers.insert(
            header::SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_bytes(offered).ok()?,
        );
        headers.insert(
            preamble::ANNOUNCEMENT,
            HeaderValue::from_static(preamble::ANNOUNCED),
        );
        Some(response)
    }

    // ------------------------------------------------------------------ behind it

    async fn session(self: &Arc<Self>, mut tls: TlsStream, early: &[u8]) -> Result<(), Failure> {
        let first = timeout(FIRST_MESSAGE, first_message(&mut tls, early))
            .await
            .map_err(|_| {
                Failure::new(
                    Layer::WebSocket,
                    "websocket-timeout",
                    "nothing came behind the upgrade",
                )
            })??;
        let link = Link::new(tls, Role::Server, first.bytes);
        match first.kind {
            MessageKind::Binary => self.multiplexed(link).await,
            MessageKind::Text => self.simple(link).await,
        }
        Ok(())
    }

    async fn multiplexed(self: &Arc<Self>, link: Link) {
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let limits = session::Limits {
            yamux: yamux::Config {
                max_streams: self.config.max_streams,
                budget: Arc::clone(&self.windows),
                // Deployed clients and ours ping for themselves; a server that pings as well finds the dead ones.
                ping_interval: Duration::from_secs(45),
                ..yamux::Config::default()
            },
            idle: self.config.idle_timeout,
            half_closed_idle: self.config.idle_timeout.min(Duration::from_secs(120)),
        };
        let end = End::Server {
            connector: Arc::new(Targets(Arc::clone(self))),
            commands: commands.clone(),
        };
        let driver =
            session::Driver::new(link, end, limits, receiver, Arc::clone(&self.stats.streams));
        let mut stopping = self.stopping.clone();
        let running = driver.run();
        tokio::pin!(running);
        for (stage, command) in [
            (Stopping::Draining, Command::Retire),
            (Stopping::Now, Command::End),
        ] {
            tokio::select! {
                _ = &mut running => return,
                _ = stopping.wait_for(|&now| now >= stage) => {}
            }
            // A full queue means a session that is beyond words; the end of the threads ends it.
            let _ = commands.try_send(command);
        }
        running.await;
    }

    async fn simple(self: &Arc<Self>, link: Link) {
        let shared = Arc::clone(self);
        let connect = Arc::new(move |target: Target| {
            let (answer, connecting) = oneshot::channel();
            let shared = Arc::clone(&shared);
            tokio::spawn(async move {
                // The client may have gone meanwhile.
                let _ = answer.send(shared.reach(&target).await);
            });
            connecting
        });
        let limits = simple::Limits {
            answer: self.config.connect_timeout + Duration::from_secs(5),
            idle: self.config.idle_timeout,
            half_closed_idle: self.config.idle_timeout.min(Duration::from_secs(120)),
        };
        let mut stopping = self.stopping.clone();
        let streams = &self.stats.streams;
        streams.streams.add(1);
        streams.streams_total.add(1);
        let driver = simple::Driver::server(link, connect, limits, Arc::clone(&streams.traffic));
        driver
            .run(stopping.wait_for(|&now| now == Stopping::Now), |failure| {
                tracing::debug!("a connection in simple mode ended: {failure}");
            })
            .await;
        streams.streams.sub(1);
    }

    async fn reach(&self, target: &Target) -> Result<TcpStream, (preamble::Status, String)> {
        let outcome = target::connect(target, &self.policy).await;
        if let Err((_, reason)) = &outcome {
            self.stats.streams_failed.add(1);
            tracing::debug!("{reason}");
        }
        outcome
    }
}

/// How a session reaches targets.
struct Targets(Arc<Shared>);

impl Connector for Targets {
    fn connect(&self, stream: yamux::StreamId, target: Target, answer: mpsc::Sender<Command>) {
        let shared = Arc::clone(&self.0);
        tokio::spawn(async move {
            let outcome = shared.reach(&target).await;
            // The session may have ended meanwhile.
            let _ = answer.send(Command::Connected(stream, outcome)).await;
        });
    }
}

/// What came first behind the upgrade, as far as it decides the protocol.
struct First {
    kind: MessageKind,
    /// All bytes so far, undecoded.
    bytes: Vec<u8>,
}

/// Reads until the first message shows what it is: a binary one that begins with yamux's version, or a text.
async fn first_message(tls: &mut TlsStream, early: &[u8]) -> Result<First, Failure> {
    let mut bytes = early.to_vec();
    let mut buffer = [0; 2048];
    loop {
        match peek(&bytes)? {
            Some((MessageKind::Binary, first)) if first != 0 => {
                return Err(Failure::new(
                    Layer::WebSocket,
                    "websocket-protocol",
                    "the first message is neither yamux nor CONNECT",
                ));
            }
            Some((kind, _)) => return Ok(First { kind, bytes }),
            None if bytes.len() > FIRST_MESSAGE_MAX => {
                return Err(Failure::new(
                    Layer::WebSocket,
                    "websocket-protocol",
                    "there is no first message",
                ));
            }
            None => {}
        }
        match tls.read(&mut buffer).await {
            Ok(0) => {
                return Err(Failure::new(
                    Layer::WebSocket,
                    "closed",
                    "the client left before its first message",
                ));
            }
            Ok(n) => bytes.extend_from_slice(&buffer[..n]),
            Err(error) => return Err(Failure::transport(&error)),
        }
    }
}

/// The kind and the first byte of the first message in `bytes`, if they are there.
fn peek(bytes: &[u8]) -> Result<Option<(MessageKind, u8)>, Failure> {
    let mut copy = bytes.to_vec();
    let mut decoder = Decoder::new(Role::Server);
    let mut at = 0;
    while at < copy.len() {
        let (used, event) = decoder.decode(&mut copy[at..]).map_err(|error| {
            Failure::new(
                Layer::WebSocket,
                "websocket-protocol",
                format!("the client broke RFC 6455: {error}"),
            )
        })?;
        match event {
            Some(websocket::Event::Data { kind, range, .. }) if !range.is_empty() => {
                return Ok(Some((kind, copy[at + range.start])));
            }
            Some(websocket::Event::Close(_)) => {
                return Err(Failure::new(
                    Layer::WebSocket,
                    "closed",
                    "the client left before its first message",
                ));
            }
            _ => at += used,
        }
    }
    Ok(None)
}

fn page(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
