//! From an accepted TCP connection to an authenticated session.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::carrier::unpace_loopback;
use crate::counters::Counted;
use crate::panics::caught;
use crate::server::Shared;
use crate::{sessions, web};

/// From the TCP connection to the end of the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Serves one connection to its end.
pub(crate) async fn serve(shared: Arc<Shared>, tcp: TcpStream) {
    let Ok(peer) = tcp.peer_addr() else {
        // It is gone already.
        shared.stats.handshakes_failed.add(1);
        return;
    };
    unpace_loopback(&tcp, peer);
    let tls = match timeout(HANDSHAKE, ech_workers_tls::accept(tcp, &shared.tls)).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => {
            shared.stats.handshakes_failed.add(1);
            tracing::debug!("handshake with {peer}: {error}");
            return;
        }
        Err(_) => {
            shared.stats.handshakes_failed.add(1);
            tracing::debug!(
                "handshake with {peer}: no end within {} s",
                HANDSHAKE.as_secs()
            );
            return;
        }
    };
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
    let Some((tls, early)) = web::serve(&shared, tls, peer).await else {
        return;
    };
    let counted = Counted::new(&shared.stats.sessions);
    shared.stats.sessions_total.add(1);
    let ended = caught(sessions::run(&shared, tls, &early)).await;
    drop(counted);
    if let Err(failure) = ended.and_then(|ended| ended) {
        tracing::debug!("the session of {peer} ended: {failure}");
    }
}
