//! From an accepted TCP connection to an authenticated session.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ech_workers_tls::TlsStream;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::carrier::unpace_loopback;
use crate::counters::Counted;
use crate::failure::Failure;
use crate::panics::caught;
use crate::server::ServerState;
use crate::server::admission::Place;
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
    let Some(upgraded) = upgraded else {
        return;
    };
    let counted = Counted::new(&shared.stats.sessions);
    shared.stats.sessions_total.add(1);
    let begun = match sessions::begin(&shared, upgraded).await {
        Ok(Some(begun)) => begun,
        Ok(None) => return,
        Err(failure) => return say_end(peer, &failure),
    };
    // From here on it is traffic.
    let (thread, of_thread) = shared.threads.least_busy();
    thread.spawn(async move {
        let ended = caught(sessions::run(&shared, begun)).await;
        drop((counted, of_thread));
        if let Err(failure) = ended.and_then(|ended| ended) {
            say_end(peer, &failure);
        }
    });
}

fn say_end(peer: SocketAddr, failure: &Failure) {
    tracing::debug!("the session of {peer} ended: {failure}");
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
    match outcome {
        Ok(Ok(tls)) => return Some(tls),
        Ok(Err(error)) => tracing::debug!("handshake with {peer}: {error}"),
        Err(_) => tracing::debug!(
            "handshake with {peer}: no end within {} s",
            HANDSHAKE.as_secs()
        ),
    }
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
