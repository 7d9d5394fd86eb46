//! The server: a web server with a certificate and ECH keys, behind whose one path, for those with a token, are targets.

mod accept;
mod admission;
mod patience;
mod permits;
mod resolve;
mod served;
mod sessions;
mod sniff;
mod target;
mod target_end;
mod tokens;
mod web;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ech_workers_session::Ledger;
use ech_workers_sync::{Mutex, RwLock};
use ech_workers_tls::ech::EchKey;
use ech_workers_tls::{Identity, ReplaceError, ServerContext};
use ech_workers_yamux as yamux;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::level_filters::LevelFilter;

use crate::counters::{ByConfigId, Counter};
use crate::descriptors::{self, Budget};
use crate::driver::SessionStats;
use crate::events::Events;
use crate::failure::{Code, Layer};
use crate::listen;
use crate::log;
use crate::runtime::{self, Numbers, Threads};

use self::admission::Rooms;
use self::target::{Paths, Policy};
use self::tokens::Tokens;
use self::web::Face;

pub use self::served::ServedSession;
pub use self::web::FaceConfig;

/// How long the end of the server waits for its sessions' goodbyes.
const GOODBYE: Duration = Duration::from_millis(500);
/// What the receive windows of all sessions may promise together beyond their first 256 KiB each, in bytes.
const WINDOWS: usize = 256 << 20;

/// What the server is made with.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// What visitors see, and who may pass.
    pub face: FaceConfig,
    /// What may be changed while it runs.
    pub limits: ServerLimits,
    /// Threads that carry traffic, and as many that make handshakes; 0: as many as there are cores.
    pub workers: usize,
    /// What is worth a log line.
    pub log_level: LevelFilter,
}

/// What may be changed while a server runs: sessions that are there keep what they began with, but for the targets and the
/// memory of all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerLimits {
    /// Sessions at a time: connections whose client has shown a token.
    pub max_sessions: usize,
    /// What all sessions together may hold for targets that do not take it, in bytes. One session may hold a sixth of it.
    pub memory_limit: usize,
    /// Streams of one session at a time.
    pub max_streams: usize,
    /// Also connect to targets that are not of the public Internet.
    pub allow_private_targets: bool,
    /// To reach a target.
    pub connect_timeout: Duration,
    /// Without a byte either way for this long, a stream ends.
    pub idle_timeout: Duration,
}

/// Everything that may be changed while a server runs.
pub struct ServerSettings {
    /// The certificates, the default one first.
    pub identities: Vec<Identity>,
    /// Those that clients may use; empty only where there were none before.
    pub ech_keys: Vec<EchKey>,
    /// What visitors see, and who may pass.
    pub face: FaceConfig,
    /// How much there may be of what.
    pub limits: ServerLimits,
}

/// Which of the settings was refused, and why.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A certificate or an ECH key.
    #[error(transparent)]
    Tls(#[from] ReplaceError),
    /// A token.
    #[error(transparent)]
    Tokens(io::Error),
}

/// What one token carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenStats {
    /// What the operator calls it.
    pub label: String,
    /// Sessions now.
    pub sessions: u64,
    /// Sessions so far.
    pub sessions_total: u64,
    /// Bytes to targets.
    pub bytes_up: u64,
    /// Bytes from targets.
    pub bytes_down: u64,
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
    /// Streams to the reserved target, which sends back what it gets.
    pub echoes_total: Counter,
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
    shared: Arc<ServerState>,
    address: SocketAddr,
    threads: Mutex<Option<Threads>>,
    stopping: watch::Sender<Stopping>,
    accepting: Mutex<JoinSet<()>>,
    started: Instant,
    /// Where log lines go.
    log: tracing::Dispatch,
}

/// How far the end of the server has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stopping {
    No,
    /// No new streams; sessions end with their last one.
    Draining,
    /// Sessions end.
    Now,
}

/// What every connection of a server uses.
pub(crate) struct ServerState {
    pub(crate) tls: ServerContext,
    face: RwLock<Arc<Face>>,
    limits: RwLock<ServerLimits>,
    pub(crate) rooms: Rooms,
    pub(crate) paths: Arc<Paths>,
    pub(crate) windows: Arc<yamux::WindowBudget>,
    /// What sessions hold for targets that do not take it.
    pub(crate) memory: Arc<Ledger>,
    pub(crate) stats: ServerStats,
    pub(crate) events: Arc<Events<Infallible>>,
    pub(crate) stopping: watch::Receiver<Stopping>,
    /// Where sessions run.
    pub(crate) threads: runtime::TrafficThreads,
}

impl ServerState {
    /// What visitors see now, and who may pass.
    pub(crate) fn face(&self) -> Arc<Face> {
        Arc::clone(&self.face.read())
    }

    pub(crate) fn limits(&self) -> ServerLimits {
        *self.limits.read()
    }
}

impl std::fmt::Debug for ServerState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerState").finish_non_exhaustive()
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
        let log = log::dispatch(Arc::clone(&events), config.log_level);
        let workers = match config.workers {
            0 => runtime::cores(),
            workers => workers,
        };
        let numbers = Numbers {
            control: workers,
            traffic: workers,
        };
        let threads = Threads::start("ech-server", numbers, &log)?;
        let (stopping, stop) = watch::channel(Stopping::No);
        let budget = tracing::dispatcher::with_default(&log, || budget(config.limits.max_sessions));
        let shared = Arc::new(ServerState {
            face: RwLock::new(Arc::new(Face::new(config.face, &Tokens::default())?)),
            limits: RwLock::new(config.limits),
            rooms: Rooms::new(&budget),
            paths: Arc::new(Paths::new(Policy::from(config.limits), &budget)),
            memory: Arc::new(Ledger::new(config.limits.memory_limit)),
            tls,
            windows: Arc::new(yamux::WindowBudget::new(WINDOWS)),
            stats: ServerStats::default(),
            events,
            stopping: stop,
            threads: threads.traffic(),
        });
        let mut accepting = JoinSet::new();
        let address = {
            let _context = threads.control().enter();
            let listener = listen::bind(host, port)?;
            let address = listener.local_addr()?;
            let shared = Arc::clone(&shared);
            accepting.spawn(listen::accept(listener, move |tcp| {
                accept::admit(&shared, tcp);
            }));
            address
        };
        Ok(Self {
            shared,
            address,
            threads: Mutex::new(Some(threads)),
            stopping,
            accepting: Mutex::new(accepting),
            started: Instant::now(),
            log,
        })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Other settings, all or none of them. Connections keep the certificate and the ECH key that they began with; sessions whose
    /// token is not there any more take no new streams; limits are for the sessions and targets that come from now on.
    ///
    /// # Errors
    /// Something cannot be used: nothing has changed then.
    pub fn apply(&self, settings: ServerSettings) -> Result<(), ApplyError> {
        let shared = &self.shared;
        // Held to the end: one at a time.
        let mut face = shared.face.write();
        let replacement = Face::new(settings.face, &face.tokens).map_err(ApplyError::Tokens)?;
        shared
            .tls
            .replace(&settings.identities, &settings.ech_keys)?;
        // From here on nothing fails.
        replacement.tokens.revoke_others(&face.tokens);
        *face = Arc::new(replacement);
        self.set_limits(settings.limits);
        Ok(())
    }

    fn set_limits(&self, limits: ServerLimits) {
        let shared = &self.shared;
        let before = std::mem::replace(&mut *shared.limits.write(), limits);
        shared.paths.set_policy(limits.into());
        shared.memory.set_limit(limits.memory_limit);
        if before.max_sessions != limits.max_sessions {
            let budget =
                tracing::dispatcher::with_default(&self.log, || budget(limits.max_sessions));
            shared.rooms.resize(&budget);
        }
    }

    /// The sessions now, at most `most` of them, those that have carried the most first.
    pub fn sessions(&self, most: usize) -> Vec<ServedSession> {
        self.shared.rooms.sessions.sessions(most)
    }

    /// What each token carries, in the order in which they were given.
    pub fn tokens(&self) -> Vec<TokenStats> {
        let face = self.shared.face();
        face.tokens
            .holders()
            .map(|holder| TokenStats {
                label: holder.label.clone(),
                sessions: holder.sessions.value(),
                sessions_total: holder.sessions_total.value(),
                bytes_up: holder.traffic.up.value(),
                bytes_down: holder.traffic.down.value(),
            })
            .collect()
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

    /// Stops accepting, and tells sessions to take no new streams. They end with their last one.
    pub fn drain(&self) {
        self.accepting.lock().abort_all();
        // Sessions of the last moment may not have looked yet: the value stays for them.
        let _ = self.stopping.send(Stopping::Draining);
    }

    /// Stops accepting, tells sessions to take no new streams, and ends everything when it is idle or after `grace`.
    pub fn close(&self, grace: Duration) {
        self.drain();
        let Some(threads) = self.threads.lock().take() else {
            return;
        };
        self.wait_for_sessions(grace);
        let _ = self.stopping.send(Stopping::Now);
        self.wait_for_sessions(GOODBYE);
        self.shared.events.close();
        threads.shutdown(Duration::from_secs(1));
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

/// Divides the descriptors that this process may have, and says so if they do not do for what is configured.
fn budget(max_sessions: usize) -> Budget {
    let limit = descriptors::raise();
    let budget = Budget::new(limit.unwrap_or(u64::MAX), max_sessions);
    if let Some(limit) = limit
        && budget.sessions < max_sessions
    {
        tracing::warn!(
            layer = Layer::Local.name(),
            code = Code::Local.as_str(),
            "the system allows this process {limit} open files: there may be {} sessions instead of {max_sessions}, \
             {} handshakes, {} web visitors and {} connections to targets at a time; raise its hard limit \
             (LimitNOFILE= in a systemd unit), or set --max-sessions",
            budget.sessions,
            budget.handshakes,
            budget.visitors,
            budget.targets
        );
    }
    budget
}

impl Drop for Server {
    fn drop(&mut self) {
        self.close(Duration::ZERO);
    }
}

#[cfg(test)]
mod tests {
    use ech_workers_tls::authority::{CertificateAuthority, Validity};

    use super::*;

    #[test]
    fn other_limits_reach_everything_that_goes_by_them() {
        let authority = CertificateAuthority::new().unwrap();
        let identity = authority
            .issue(&["server.example"], Validity::days(7))
            .unwrap();
        let limits = ServerLimits {
            max_sessions: 1,
            memory_limit: 16 << 20,
            max_streams: 1,
            allow_private_targets: false,
            connect_timeout: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(1),
        };
        let config = ServerConfig {
            face: FaceConfig {
                path: "/".to_owned(),
                tokens: vec![("token".to_owned(), "ours".to_owned())],
                decoy: None,
                healthz: false,
            },
            limits,
            workers: 1,
            log_level: LevelFilter::INFO,
        };
        let tls = ServerContext::new(std::slice::from_ref(&identity)).unwrap();
        let face = config.face.clone();
        let server = Server::new("127.0.0.1", 0, config, tls).unwrap();
        let rooms = &server.shared.rooms;
        let enter = || {
            (0..5)
                .filter_map(|last| rooms.sessions.enter([192, 0, 2, last].into()))
                .collect::<Vec<_>>()
        };
        assert_eq!(enter().len(), 1);
        let other = ServerLimits {
            max_sessions: 3,
            memory_limit: 64 << 20,
            max_streams: 7,
            ..limits
        };
        let settings = |face, identity, limits| ServerSettings {
            identities: vec![identity],
            ech_keys: Vec::new(),
            face,
            limits,
        };
        server
            .apply(settings(face.clone(), identity.clone(), other))
            .unwrap();
        assert_eq!(server.shared.limits(), other);
        assert_eq!(server.shared.memory.limit(), 64 << 20);
        assert_eq!(enter().len(), 3);

        // One thing that is wrong keeps everything else from counting, whichever it is.
        let holder = server.shared.face().tokens.find(b"token").unwrap();
        let mut changed = face.clone();
        changed.tokens = vec![("another".to_owned(), "another".to_owned())];
        let mut keyless = identity.clone();
        keyless.key_pem.clear();
        let refused = server.apply(settings(changed.clone(), keyless, limits));
        assert!(matches!(
            refused,
            Err(ApplyError::Tls(ReplaceError::Identities(_)))
        ));
        changed.tokens.push(("x".repeat(513), "long".to_owned()));
        let refused = server.apply(settings(changed, identity, limits));
        assert!(matches!(refused, Err(ApplyError::Tokens(_))));
        assert_eq!(server.shared.limits(), other);
        assert!(!holder.is_revoked());
        assert!(server.shared.face().tokens.find(b"token").is_some());
        assert!(server.shared.face().tokens.find(b"another").is_none());
    }
}
