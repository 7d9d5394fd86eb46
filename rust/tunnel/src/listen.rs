//! Listening sockets: opening them, and accepting what comes.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::descriptors;
use crate::failure::{Code, Layer};
use crate::os;
use crate::seldom::{Seldom, times};

/// In place of a host: the first socket that the service manager hands over (sd_listen_fds(3)).
const ACTIVATED: &str = "systemd";

const BACKLOG: u32 = 1024;
/// How long an accept loop waits when the system has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listening socket, on the first address of `host` that can be had.
#[expect(
    clippy::disallowed_methods,
    reason = "an address to listen on, given by the user: `localhost` is the name in use"
)]
pub(crate) fn bind(host: &str, port: u16) -> io::Result<TcpListener> {
    if host == ACTIVATED {
        return activated();
    }
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let mut last = io::Error::new(io::ErrorKind::AddrNotAvailable, "the host has no address");
    for address in (host, port).to_socket_addrs()? {
        match bind_one(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn activated() -> io::Result<TcpListener> {
    let listener = os::activated()?.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            "the service manager handed over no socket (LISTEN_FDS)",
        )
    })?;
    listener.set_nonblocking(true)?;
    socket2::SockRef::from(&listener).set_tcp_nodelay(true)?;
    TcpListener::from_std(listener)
}

fn bind_one(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }?;
    // A port whose connections linger from the last run can be had again (not one that is in use).
    socket.set_reuseaddr(true)?;
    // Linux gives it to every connection that is accepted: a system call less for each of them.
    socket.set_nodelay(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts connections without end and gives each to `accepted`.
///
/// When that fails because there is no descriptor, one line a minute says so, with a count.
pub(crate) async fn accept(listener: TcpListener, mut accepted: impl FnMut(TcpStream)) {
    let failed = Seldom::default();
    loop {
        match listener.accept().await {
            Ok((tcp, _)) => {
                if cfg!(not(target_os = "linux")) {
                    // Only latency depends on it.
                    let _ = tcp.set_nodelay(true);
                }
                accepted(tcp);
            }
            Err(error) => {
                // A connection that was gone before it was accepted is nobody's trouble.
                if error.kind() == io::ErrorKind::ConnectionAborted {
                    continue;
                }
                if descriptors::exhausted(&error) {
                    descriptors::note("accepting a connection", &error);
                } else if let Some(count) = failed.happened() {
                    tracing::warn!(
                        layer = Layer::Local.name(),
                        code = Code::Local.as_str(),
                        "accepting a connection: {error}{}",
                        times(count)
                    );
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
