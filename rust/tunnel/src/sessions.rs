//! Sessions on the server: both modes, and how their streams reach targets.

use std::sync::Arc;
use std::time::Duration;

use ech_workers_proxy::Target;
use ech_workers_tls::TlsStream;
use ech_workers_websocket::{MessageKind, Role};
use ech_workers_yamux as yamux;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::counters::Counted;
use crate::failure::{Code, Failure, Layer};
use crate::link::Link;
use crate::preamble;
use crate::server::{Shared, Stopping};
use crate::session::{self, Command, Connector, End};
use crate::simple;
use crate::sniff::first_message;
use crate::target;

/// From the 101 to the first message.
const FIRST_MESSAGE: Duration = Duration::from_secs(30);
const COMMANDS: usize = 256;

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
    let link = Link::new(tls, Role::Server, first.bytes);
    match first.kind {
        MessageKind::Binary => run_multiplexed(shared, link).await,
        MessageKind::Text => run_simple(shared, link).await,
    }
    Ok(())
}

async fn run_multiplexed(shared: &Arc<Shared>, link: Link) {
    let (commands, receiver) = mpsc::channel(COMMANDS);
    let limits = session::Limits {
        yamux: yamux::Config {
            max_streams: shared.config.max_streams,
            budget: Arc::clone(&shared.windows),
            // Deployed clients and ours ping for themselves; a server that pings as well finds the dead ones.
            ping_interval: Duration::from_secs(45),
            ..yamux::Config::default()
        },
        idle: shared.config.idle_timeout,
        half_closed_idle: shared.config.idle_timeout.min(Duration::from_secs(120)),
    };
    let end = End::Server {
        connector: Arc::new(Targets(Arc::clone(shared))),
        commands: commands.clone(),
    };
    let driver = session::Driver::new(
        link,
        end,
        limits,
        receiver,
        Arc::clone(&shared.stats.streams),
    );
    let mut stopping = shared.stopping.clone();
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

async fn run_simple(shared: &Arc<Shared>, link: Link) {
    let owner = Arc::clone(shared);
    let connect = Arc::new(move |target: Target| {
        let (answer, connecting) = oneshot::channel();
        let shared = Arc::clone(&owner);
        tokio::spawn(async move {
            // The client may have gone meanwhile.
            let _ = answer.send(reach(&shared, &target).await);
        });
        connecting
    });
    let limits = simple::Limits {
        answer: shared.config.connect_timeout + Duration::from_secs(5),
        idle: shared.config.idle_timeout,
        half_closed_idle: shared.config.idle_timeout.min(Duration::from_secs(120)),
    };
    let mut stopping = shared.stopping.clone();
    let streams = &shared.stats.streams;
    let _counted = Counted::new(&streams.streams);
    streams.streams_total.add(1);
    let driver = simple::Driver::server(link, connect, limits, Arc::clone(&streams.traffic));
    driver
        .run(stopping.wait_for(|&now| now == Stopping::Now), |failure| {
            tracing::debug!("a connection in simple mode ended: {failure}");
        })
        .await;
}

async fn reach(shared: &Shared, target: &Target) -> Result<TcpStream, (preamble::Status, String)> {
    let outcome = target::connect(target, &shared.policy).await;
    if let Err((_, reason)) = &outcome {
        shared.stats.streams_failed.add(1);
        tracing::debug!("{reason}");
    }
    outcome
}

/// How a session reaches targets.
struct Targets(Arc<Shared>);

impl Connector for Targets {
    fn connect(&self, stream: yamux::StreamId, target: Target, answer: mpsc::Sender<Command>) {
        let shared = Arc::clone(&self.0);
        tokio::spawn(async move {
            let outcome = reach(&shared, &target).await;
            // The session may have ended meanwhile.
            let _ = answer.send(Command::Connected(stream, outcome)).await;
        });
    }
}
