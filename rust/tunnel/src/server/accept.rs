//! From an accepted TCP connection to an authenticated session.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ech_workers_tls::TlsStream;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::Instrument;

use crate::carrier::unpace_loopback;
use crate::counters::Counted;
use crate::failure::{Code, Failure, Layer};
use crate::log;
use crate::panics::caught;
use crate::server::ServerState;
use crate::server::admission::Place;
use crate::server::web::Upgraded;
use crate::server::{sessions, web};

/// From the TCP connection to the end of the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Gives a connection its place among those in their handshake, and serves it to its end in a task of its own.
pub(crate) fn admit(shared: &Arc<ServerState>, tcp: TcpStream) {
    let admitted = tcp.peer_addr().ok().and_then(|peer| {
        let place = shared.rooms.handshakes.enter(peer.ip())?;
        Some((peer, place))
    });
    match admitted {
        Some((peer, place)) => {
            tokio::spawn(serve(Arc::clone(shared), tcp, peer, place));
        }
        // It is gone already.
        None => shared.stats.handshakes_failed.add(1),
    }
}

async fn serve(shared: Arc<ServerState>, tcp: TcpStream, peer: SocketAddr, place: Place) {
    let Some(tls) = handshake(&shared, tcp, peer, &place).await else {
        shared.stats.handshakes_failed.add(1);
        return;
    };
    count_ech(&shared, &tls);
    let Some(visitor) = shared.rooms.visitors.enter(peer.ip()) else {
        return;
    };
    drop(place);
    let upgraded = tokio::select! {
        upgraded = web::serve(&shared, tls, peer) => upgraded,
        () = visitor.lost() => {
            tracing::debug!("the web visitor {peer} was ended for a newer one");
            None
        }
    };
    drop(visitor);
    if let Some(upgraded) = upgraded {
        let span = log::session(upgraded.place.number(), None);
        let session = serve_session(shared, upgraded, peer, span.clone());
        session.instrument(span).await;
    }
}

/// Serves a session: up to its first message here, and then on the thread where it lives. `span`: that of its log lines.
async fn serve_session(
    shared: Arc<ServerState>,
    upgraded: Upgraded,
    peer: SocketAddr,
    span: tracing::Span,
) {
    let counted = Counted::new(&shared.stats.sessions);
    shared.stats.sessions_total.add(1);
    let begun = match sessions::begin(&shared, upgraded).await {
        Ok(Some(begun)) => begun,
        Ok(None) => return say_end(peer, Ok(())),
        Err(failure) => return say_end(peer, Err(failure)),
    };
    // From here on it is traffic.
    let (thread, of_thread) = shared.threads.least_busy();
    let session = async move {
        let ended = caught(sessions::run(&shared, begun)).await;
        drop((counted, of_thread));
        say_end(peer, ended.and_then(|ended| ended));
    };
    thread.spawn(session.instrument(span));
}

fn say_end(peer: SocketAddr, ended: Result<(), Failure>) {
    match ended {
        Ok(()) => tracing::debug!("the session of {peer} ended"),
        Err(failure) => tracing::debug!(
            layer = failure.layer.name(),
            code = failure.code.as_str(),
            "the session of {peer} ended: {failure}"
        ),
    }
}

/// The TLS handshake, unless it fails, takes too long, or its place is needed.
async fn handshake(
    shared: &ServerState,
    tcp: TcpStream,
    peer: SocketAddr,
    place: &Place,
) -> Option<TlsStream> {
    unpace_loopback(&tcp, peer);
    let outcome = tokio::select! {
        outcome = timeout(HANDSHAKE, ech_workers_tls::accept(tcp, &shared.tls)) => outcome,
        () = place.lost() => {
            tracing::debug!("the handshake with {peer} was ended for a newer one");
            return None;
        }
    };
    let failure = match outcome {
        Ok(Ok(tls)) => return Some(tls),
        Ok(Err(error)) => Failure::handshake(&peer.to_string(), error),
        Err(_) => Failure::new(
            Layer::Tls,
            Code::TlsTimeout,
            format!(
                "handshake with {peer}: no end within {} s",
                HANDSHAKE.as_secs()
            ),
        ),
    };
    tracing::debug!(
        layer = failure.layer.name(),
        code = failure.code.as_str(),
        "{failure}"
    );
    None
}

fn count_ech(shared: &ServerState, tls: &TlsStream) {
    let info = tls.info();
    let counter = match (info.ech_accepted, info.ech_config_id.is_some()) {
        (true, _) => &shared.stats.ech_accepted,
        (false, true) => &shared.stats.ech_rejected,
        (false, false) => &shared.stats.ech_absent,
    };
    counter.add(1);
    if let Some(id) = info.ech_config_id {
        shared.stats.ech_offered.add(id);
    }
}
