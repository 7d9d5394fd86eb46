//! Sessions on the server: both modes, and how their streams reach targets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ech_workers_proxy::Target;
use ech_workers_session::{self as session, Connector, Refusal, Session, Status};
use ech_workers_tls::TlsStream;
use ech_workers_websocket::{MessageKind, Role};
use ech_workers_yamux as yamux;
use tokio::time::timeout;

use crate::carrier::WebSocket;
use crate::driver::{Driver, Owner, Side};
use crate::failure::{Code, Ended, Failure, Layer};
use crate::server::{Shared, Stopping};
use crate::sniff::first_message;
use crate::target;
use crate::target_end::TargetEnd;

/// From the 101 to the first message. A client with nothing to send asks for a proof of life within 30 s.
const FIRST_MESSAGE: Duration = Duration::from_secs(60);
/// The longest time between two keep-alive pings.
const PING_INTERVAL: Duration = Duration::from_secs(28);
/// How long an answer to one may take.
const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// What one session may hold for targets that do not take it, in bytes.
const SESSION_MEMORY: usize = 48 << 20;
/// The same for the one stream of a connection in simple mode.
const STREAM_MEMORY: usize = 256 << 10;

/// Runs the session behind an upgrade, in either mode, to its end. `early`: what was read behind the upgrade request.
pub(crate) async fn run(
    shared: &Arc<Shared>,
    mut tls: TlsStream,
    early: &[u8],
) -> Result<(), Failure> {
    let first = timeout(FIRST_MESSAGE, first_message(&mut tls, early))
        .await
        .map_err(|_| {
            Failure::new(
                Layer::WebSocket,
                Code::WebSocketTimeout,
                "nothing came behind the upgrade",
            )
        })??;
    let idle = shared.config.idle_timeout;
    let (mode, memory_share) = match first.kind {
        MessageKind::Binary => {
            let config = yamux::Config {
                max_streams: shared.config.max_streams,
                budget: Arc::clone(&shared.windows),
                ..yamux::Config::default()
            };
            (session::Mode::Yamux(config), SESSION_MEMORY)
        }
        MessageKind::Text => (session::Mode::Simple, STREAM_MEMORY),
    };
    let config = session::Config {
        mode,
        extended: true,
        limits: session::Limits {
            answer: shared.config.connect_timeout + Duration::from_secs(5),
            idle,
            half_closed_idle: idle.min(Duration::from_secs(120)),
        },
        ping_interval: PING_INTERVAL,
        ping_timeout: PING_TIMEOUT,
        memory: Arc::clone(&shared.memory),
        memory_share,
        seed: seed(),
    };
    let carrier = WebSocket::new(tls, Role::Server, first.bytes);
    let connector = Box::new(Targets(Arc::clone(shared)));
    let session = Session::server(carrier, connector, config, Instant::now());
    match run_session(shared, session).await {
        Ended::Lost(failure) => Err(failure),
        _ => Ok(()),
    }
}

/// Runs a session until it ends or the server does.
async fn run_session(shared: &Arc<Shared>, session: Session<WebSocket, TargetEnd>) -> Ended {
    let stats = Arc::clone(&shared.stats.streams);
    let (driver, handle) = Driver::new(session, Side::Server, stats, None);
    let watcher = Watcher(Arc::clone(shared));
    let mut stopping = shared.stopping.clone();
    let running = driver.run(&watcher);
    tokio::pin!(running);
    for stage in [Stopping::Draining, Stopping::Now] {
        tokio::select! {
            ended = &mut running => return ended,
            _ = stopping.wait_for(|&now| now >= stage) => {}
        }
        match stage {
            Stopping::Draining => handle.retire(),
            _ => handle.end(),
        }
    }
    running.await
}

/// A seed for what must not look regular.
pub(crate) fn seed() -> u64 {
    let mut seed = [0; 8];
    // Without random numbers pings look regular, which is no reason to fail.
    let _ = getrandom::fill(&mut seed);
    u64::from_ne_bytes(seed)
}

/// Counts what a session could not do.
struct Watcher(Arc<Shared>);

impl Owner<TargetEnd> for Watcher {
    fn handle_event(&self, event: session::Event<TargetEnd>) {
        if let session::Event::TargetFailed(refusal) = event {
            self.0.stats.streams_failed.add(1);
            tracing::debug!("{}", refusal.reason);
        }
    }
}

/// How a session reaches targets.
struct Targets(Arc<Shared>);

impl Connector for Targets {
    type End = TargetEnd;

    fn connect(&mut self, authority: &[u8]) -> Result<TargetEnd, Refusal> {
        let target: Target = std::str::from_utf8(authority)
            .ok()
            .and_then(|authority| authority.parse().ok())
            .ok_or_else(|| Refusal::new(Status::General, "the target is not host:port"))?;
        let shared = Arc::clone(&self.0);
        Ok(TargetEnd::Connecting(Box::pin(async move {
            target::connect(&target, &shared.policy).await
        })))
    }
}
