//! Local connections, from the moment when they are accepted until it is known what carries them.

use std::sync::Arc;
use std::time::Instant;

use ech_workers_proxy::{Credentials, RequestKind};
use ech_workers_session::Open;
use futures_util::FutureExt;
use tokio::net::TcpStream;

use crate::client::ClientState;
use crate::client::desk::Desk;
use crate::client::local::{self, LocalPlace};
use crate::client::program::Program;
use crate::client::reply::Reply;
use crate::socket::Socket;

impl ClientState {
    /// Gives a connection that was accepted on the thread `here` to the desk of a thread: of those with sessions, as far as there are
    /// any, the one with the fewest connections. `false`: there is no room.
    pub(super) fn welcome(
        self: &Arc<Self>,
        here: usize,
        tcp: TcpStream,
        place: LocalPlace,
        credentials: Option<Credentials>,
    ) -> bool {
        let is_here = |desk: &Desk| desk.thread.number == here;
        let fewest = self.desks.iter().min_by_key(|desk| {
            let is_idle = desk.thread.sessions() == 0;
            (is_idle, desk.connections.value(), !is_here(desk))
        });
        let Some(desk) = fewest else {
            return false;
        };
        let place = place.on_thread(&desk.connections);
        let thread = desk.thread.number;
        let shared = Arc::clone(self);
        if is_here(desk) {
            return desk.take(shared.serve(tcp, place, credentials, thread).boxed());
        }
        // It is registered where it is used.
        let Ok(tcp) = tcp.into_std() else {
            return false;
        };
        let served = async move {
            match TcpStream::from_std(tcp) {
                Ok(tcp) => shared.serve(tcp, place, credentials, thread).await,
                Err(error) => tracing::debug!("a local connection was closed: {error}"),
            }
        };
        desk.take(served.boxed())
    }

    /// One local connection, up to the point where a driver owns its socket.
    async fn serve(
        self: Arc<Self>,
        mut tcp: TcpStream,
        place: LocalPlace,
        credentials: Option<Credentials>,
        thread: usize,
    ) {
        let Some(mut request) =
            local::negotiate(&mut tcp, credentials, self.config.local_handshake_timeout).await
        else {
            return;
        };
        let limits = self.limits();
        let deadline = Instant::now() + limits.open_timeout;
        let target = request.target.clone();
        let authority = target.authority();
        let protocol = request.kind.name();
        let early = std::mem::take(&mut request.early);
        let exchange = request.exchange.take();
        // A forwarded request has no reply of its own that could be early: a failure can be told.
        let confirm = limits.confirmed || request.kind == RequestKind::HttpForward;
        let mut end = Program::new(
            Socket::from(tcp),
            Reply::Local(request),
            exchange,
            Some(place),
        );
        end.list(self.list.list(authority.clone(), protocol));
        let mut open = Open::new(end, authority.into_bytes(), deadline);
        open.early = early;
        open.confirm = confirm;
        self.send(open, &target, Some(thread)).await;
    }
}
