//! TCP and TLS to a server: its addresses in turn, and one more try where the server chooses what the profile offers and
//! this client cannot do.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ech_workers_tls::{ClientContext, ClientParameters, HandshakeError, TlsStream};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::carrier::unpace_loopback;
use crate::failure::{Code, Failure, Layer};

/// The head start of one address before the next is tried (RFC 8305 section 5).
const HEAD_START: Duration = Duration::from_millis(250);

/// Where a server is, and how long to wait for it.
#[derive(Clone, Copy)]
pub(crate) struct Route<'a> {
    /// Tried in turn with a head start.
    pub(crate) addresses: &'a [IpAddr],
    pub(crate) port: u16,
    /// For each address.
    pub(crate) tcp_timeout: Duration,
    /// For each TLS handshake.
    pub(crate) handshake_timeout: Duration,
}

/// A connection with TLS.
pub(crate) struct Connected {
    pub(crate) tls: TlsStream,
    pub(crate) address: SocketAddr,
    /// Time to connect.
    pub(crate) tcp_time: Duration,
    /// Time for the TLS handshake.
    pub(crate) tls_time: Duration,
}

/// Connects. Unless `parameters.without` says that it was done before, the hello is sent once more without what the server
/// chose from it and this client cannot do; `parameters.without` keeps that for the connections to come.
pub(crate) async fn connect(
    route: Route<'_>,
    context: &ClientContext,
    parameters: &mut ClientParameters<'_>,
) -> Result<Connected, Failure> {
    loop {
        let started = Instant::now();
        let (tcp, address) = connect_tcp(route).await?;
        let tcp_time = started.elapsed();
        let started = Instant::now();
        let handshake = ech_workers_tls::connect(tcp, context, *parameters);
        return match timeout(route.handshake_timeout, handshake).await {
            Ok(Ok(tls)) => Ok(Connected {
                tls,
                address,
                tcp_time,
                tls_time: started.elapsed(),
            }),
            Ok(Err(HandshakeError::Unsupported(unsupported))) if parameters.without.is_none() => {
                tracing::info!(
                    "{address} chose {unsupported}, which {} can do and this client cannot: \
                     trying once more without it",
                    parameters.profile.name
                );
                parameters.without = Some(unsupported);
                continue;
            }
            Ok(Err(error)) => {
                let failure = Failure::handshake(&address.to_string(), error);
                Err(match parameters.without {
                    Some(unsupported) => failure.with_detail(format!(
                        "the hello was one without {unsupported}, which the server had chosen before"
                    )),
                    None => failure,
                })
            }
            Err(_) => Err(Failure::new(
                Layer::Tls,
                Code::TlsTimeout,
                format!(
                    "handshake with {address}: no end within {} s",
                    route.handshake_timeout.as_secs_f32()
                ),
            )),
        };
    }
}

/// Connects to the first address that answers, each with a head start before the next (RFC 8305).
async fn connect_tcp(route: Route<'_>) -> Result<(TcpStream, SocketAddr), Failure> {
    let mut attempts = JoinSet::new();
    let mut waiting = route
        .addresses
        .iter()
        .map(|&address| SocketAddr::new(address, route.port));
    let mut last = Failure::new(
        Layer::Tcp,
        Code::TcpUnreachable,
        "the server has no address",
    );
    let mut more = true;
    loop {
        if more {
            match waiting.next() {
                Some(address) => {
                    let limit = route.tcp_timeout;
                    attempts.spawn(async move { (address, connect_one(address, limit).await) });
                }
                None => more = false,
            }
        }
        let next = async {
            if more {
                tokio::time::sleep(HEAD_START).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            finished = attempts.join_next() => match finished {
                Some(Ok((address, Ok(tcp)))) => return Ok((tcp, address)),
                Some(Ok((address, Err(error)))) => last = Failure::tcp(&address.to_string(), &error),
                Some(Err(_)) => {}
                None if !more => return Err(last),
                None => {}
            },
            () = next => {}
        }
    }
}

async fn connect_one(address: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    let tcp = timeout(limit, TcpStream::connect(address))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    tcp.set_nodelay(true)?;
    unpace_loopback(&tcp, address);
    Ok(tcp)
}
