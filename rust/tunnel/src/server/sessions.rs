//! Sessions on the server: both modes, and how their streams reach targets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ech_workers_proxy::Target;
use ech_workers_session::{self as session, Connector, Refusal, Session, Status};
use ech_workers_tls::TlsStream;
use ech_workers_websocket::{self as websocket, MessageKind, Role};
use ech_workers_yamux as yamux;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::carrier::WebSocket;
use crate::counters::Counted;
use crate::driver::{Driver, Owner, SessionStats, Side, Sums, seed};
use crate::echo::{self, Answering};
use crate::failure::{Code, Ended, Failure, Layer};
use crate::log;
use crate::server::admission::Place;
use crate::server::sniff::{First, first_message};
use crate::server::target::Route;
use crate::server::target_end::TargetEnd;
use crate::server::tokens::Holder;
use crate::server::web::Upgraded;
use crate::server::{ServerState, Stopping};

/// From the 101 to the first message. A client with nothing to send asks for a proof of life within 30 s.
const FIRST_MESSAGE: Duration = Duration::from_secs(60);
/// How long saying goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);
/// The longest time between two keep-alive pings.
const PING_INTERVAL: Duration = Duration::from_secs(28);
/// How long an answer to one may take.
const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// The part of the memory limit that one session may hold for targets that do not take it. What it holds beside that, in TLS
/// records and bookkeeping, is a few hundred KiB and about one KiB a stream.
const SESSION_PART: usize = 6;
/// What the one stream of a connection in simple mode may hold, in bytes.
const STREAM_MEMORY: usize = 256 << 10;

/// A session whose first message has come.
pub(crate) struct Begun {
    tls: TlsStream,
    first: First,
    place: Place,
    /// Whose token it has, and that it is one of its sessions.
    holder: Arc<Holder>,
    /// What it carries.
    stats: Arc<SessionStats>,
    counted: Counted,
}

/// Waits for the first message behind an upgrade. `None`: a client that has said nothing yet was sent away, because the server begins
/// to stop or its place is needed: it has nothing that could finish.
pub(crate) async fn begin(
    shared: &Arc<ServerState>,
    upgraded: Upgraded,
) -> Result<Option<Begun>, Failure> {
    let Upgraded {
        mut tls,
        early,
        place,
    } = upgraded;
    let Some((holder, stats)) = place
        .served()
        .map(|served| (Arc::clone(served.holder()), Arc::clone(&served.stats)))
    else {
        return Ok(None);
    };
    holder.sessions_total.add(1);
    let counted = Counted::new(&holder.sessions);
    let mut stopping = shared.stopping.clone();
    let first = tokio::select! {
        first = timeout(FIRST_MESSAGE, first_message(&mut tls, &early)) => first.map_err(|_| {
            Failure::new(
                Layer::WebSocket,
                Code::WebSocketTimeout,
                "nothing came behind the upgrade",
            )
        })??,
        () = unneeded(&mut stopping, &place) => {
            send_away(tls).await;
            return Ok(None);
        }
    };
    Ok(Some(Begun {
        tls,
        first,
        place,
        holder,
        stats,
        counted,
    }))
}

/// Runs a session, in either mode, to its end, on the thread that this is called on.
pub(crate) async fn run(shared: &Arc<ServerState>, begun: Begun) -> Result<(), Failure> {
    let Begun {
        tls,
        first,
        place,
        holder,
        stats,
        counted: _counted,
    } = begun;
    if let Some(served) = place.served() {
        let mode = match first.kind {
            MessageKind::Binary => "yamux",
            MessageKind::Text => "simple",
        };
        served.begin(mode);
        tracing::debug!(
            "a session of {} begins: {mode}, {}",
            served.peer(),
            holder.label
        );
    }
    let limits = shared.limits();
    let tls = tls
        .into_current_runtime()
        .map_err(|error| Failure::transport(&error))?;
    let idle = limits.idle_timeout;
    let (mode, memory_share) = match first.kind {
        MessageKind::Binary => {
            let config = yamux::Config {
                max_streams: limits.max_streams,
                budget: Arc::clone(&shared.windows),
                ..yamux::Config::default()
            };
            (
                session::Mode::Yamux(config),
                session::Allowance::Part(SESSION_PART),
            )
        }
        MessageKind::Text => (
            // A socket is read no further than its other end takes it, so nothing is to be said about that.
            session::Mode::Simple { window: None },
            session::Allowance::Bytes(STREAM_MEMORY),
        ),
    };
    let config = session::Config {
        mode,
        extended: true,
        limits: session::Limits {
            answer: limits.connect_timeout + Duration::from_secs(5),
            idle,
            half_closed_idle: idle.min(Duration::from_secs(120)),
        },
        ping_interval: PING_INTERVAL,
        ping_timeout: PING_TIMEOUT,
        memory: Arc::clone(&shared.memory),
        memory_share,
        early_bulk: None,
        seed: seed(),
    };
    let carrier = WebSocket::new(tls, Role::Server, first.bytes);
    let connector = Box::new(Targets {
        shared: Arc::clone(shared),
        route: Arc::new(Route::new(&shared.paths)),
    });
    let session = Session::server(carrier, connector, config, Instant::now());
    match run_session(shared, session, &place, &holder, stats).await {
        Ended::Lost(failure) => Err(failure),
        _ => Ok(()),
    }
}

/// Waits until a client that has said nothing is not waited for any more: the server stops, or the place is needed.
async fn unneeded(stopping: &mut watch::Receiver<Stopping>, place: &Place) {
    tokio::select! {
        _ = stopping.wait_for(|&now| now >= Stopping::Draining) => {}
        () = place.lost() => {}
    }
}

/// Closes a WebSocket on which nothing has happened: the server goes away (RFC 6455 section 7.4.1).
async fn send_away(mut tls: TlsStream) {
    let mut close = Vec::new();
    websocket::encode_close(&mut close, Some(1001), "", None);
    let goodbye = async {
        tls.write_all(&close).await?;
        tls.shutdown().await
    };
    // Best effort: the connection may be broken already.
    let _ = timeout(GOODBYE, goodbye).await;
}

/// Runs a session until it ends, the server does, or its place is needed for another.
async fn run_session(
    shared: &Arc<ServerState>,
    session: Session<WebSocket, TargetEnd>,
    place: &Place,
    holder: &Holder,
    stats: Arc<SessionStats>,
) -> Ended {
    let sums = Sums {
        all: Some(Arc::clone(&shared.stats.streams)),
        traffic: Some(Arc::clone(&holder.traffic)),
    };
    let (driver, handle) = Driver::new(session, Side::Server, stats, sums);
    let watcher = Watcher(Arc::clone(shared));
    let mut stopping = shared.stopping.clone();
    let running = driver.run(&watcher);
    tokio::pin!(running);
    for stage in [Stopping::Draining, Stopping::Now] {
        tokio::select! {
            ended = &mut running => return ended,
            _ = stopping.wait_for(|&now| now >= stage) => {}
            () = holder.revoked(), if stage == Stopping::Draining => {}
            () = place.lost() => {
                handle.end();
                break;
            }
        }
        match stage {
            Stopping::Draining => handle.retire(),
            _ => handle.end(),
        }
    }
    running.await
}

/// Counts what a session could not do.
struct Watcher(Arc<ServerState>);

impl Owner<TargetEnd> for Watcher {
    fn handle_event(&self, event: session::Event<TargetEnd>) {
        if let session::Event::TargetFailed(refusal) = event {
            self.0.stats.streams_failed.add(1);
            log::say_target_failed(&refusal);
        }
    }
}

/// How a session reaches targets.
struct Targets {
    shared: Arc<ServerState>,
    route: Arc<Route>,
}

impl Connector for Targets {
    type End = TargetEnd;

    fn connect(&mut self, authority: &[u8]) -> Result<TargetEnd, Refusal> {
        if authority == echo::TARGET {
            self.shared.stats.echoes_total.add(1);
            return Ok(TargetEnd::Echo(Answering::default()));
        }
        let target: Target = std::str::from_utf8(authority)
            .ok()
            .and_then(|authority| authority.parse().ok())
            .ok_or_else(|| Refusal::new(Status::General, "the target is not host:port"))?;
        let route = Arc::clone(&self.route);
        Ok(TargetEnd::Connecting(Box::pin(async move {
            route.reach(&target).await
        })))
    }
}
