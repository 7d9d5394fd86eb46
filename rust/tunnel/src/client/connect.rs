//! The way to a usable connection: a server's addresses are tried until one of them leads to the server itself.
//!
//! TCP alone says little: what accepts may reset the connection, stay silent, or be another server. So the race of addresses
//! goes on until a whole attempt, TLS and what follows included, has succeeded or the server itself has said no.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ech_workers_sync::Mutex;
use ech_workers_tls::{ClientContext, ClientParameters, HandshakeError, TlsStream};
use futures_util::stream::{self, Stream};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::carrier::unpace_loopback;
use crate::client::addresses::Addresses;
use crate::descriptors;
use crate::failure::{Code, Failure, Layer};
use crate::race::{HEAD_START, race};

/// How long an attempt that has TCP may take before another address is tried beside it.
const PATIENCE: Duration = Duration::from_secs(3);
/// The least of it, where many addresses share little time.
const PATIENCE_MIN: Duration = Duration::from_millis(500);

/// Where a server is, and how long to wait for it.
#[derive(Clone, Copy)]
pub(crate) struct Destination<'a> {
    /// Tried in turn.
    pub(crate) addresses: &'a [IpAddr],
    pub(crate) port: u16,
    /// For the TCP connection to one address.
    pub(crate) tcp_timeout: Duration,
    /// For each TLS handshake.
    pub(crate) handshake_timeout: Duration,
}

impl Destination<'_> {
    /// How long one attempt runs alone.
    fn patience(&self) -> Duration {
        let share = self.handshake_timeout / self.addresses.len().clamp(1, 64) as u32;
        share.clamp(PATIENCE_MIN, PATIENCE)
    }
}

/// A TCP connection.
pub(crate) struct Connection {
    pub(crate) tcp: TcpStream,
    pub(crate) address: SocketAddr,
    /// Time to connect.
    pub(crate) tcp_time: Duration,
}

/// A connection with TLS.
pub(crate) struct Secured {
    pub(crate) tls: TlsStream,
    /// Time to connect.
    pub(crate) tcp_time: Duration,
    /// Time for the TLS handshake.
    pub(crate) tls_time: Duration,
}

/// What became of the addresses during one race.
#[derive(Default)]
struct Course {
    /// In the order in which they were first tried.
    begun: Vec<SocketAddr>,
    failed: Vec<(SocketAddr, Failure)>,
}

/// Runs `attempt` on a connection to one address after the other, until one succeeds or the server itself says no. While others
/// wait, an attempt runs alone for a few seconds at most; it then goes on beside the next one.
///
/// # Errors
/// The server's own answer, or the failure of the attempt that came furthest.
pub(crate) async fn reach<T, F>(
    route: Destination<'_>,
    addresses: &Addresses,
    mut attempt: impl FnMut(Connection) -> F,
) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    let given = route
        .addresses
        .iter()
        .map(|&address| SocketAddr::new(address, route.port));
    let waiting = addresses.in_order(given);
    let course = Mutex::new(Course::default());
    let connections = connections(waiting, route.tcp_timeout, &course);
    let outcome = race(connections, route.patience(), usize::MAX, |connection| {
        let address = connection.address;
        let outcome = attempt(connection);
        let course = &course;
        async move {
            match outcome.await {
                Ok(usable) => Ok((address, Ok(usable))),
                Err(failure) if is_answer(&failure) => Ok((address, Err(failure))),
                Err(failure) => {
                    tracing::debug!(
                        layer = failure.layer.name(),
                        code = failure.code.as_str(),
                        "{address}: {failure}"
                    );
                    course.lock().failed.push((address, failure));
                    Err(())
                }
            }
        }
    })
    .await;
    let Course { begun, failed } = course.into_inner();
    for (address, _) in &failed {
        addresses.note_failed(*address);
    }
    match outcome {
        Ok((address, outcome)) => {
            // Those that had their turn before it, and have not come as far.
            for slow in begun.iter().take_while(|&&slow| slow != address) {
                addresses.note_failed(*slow);
            }
            addresses.note_usable(address);
            outcome
        }
        Err(_) => Err(furthest(failed)),
    }
}

/// TCP connections to the addresses, each as it is asked for: the first that accepts, with a head start for each address before
/// the next (RFC 8305). The others wait for the next call.
fn connections<'a>(
    waiting: Vec<SocketAddr>,
    limit: Duration,
    course: &'a Mutex<Course>,
) -> impl Stream<Item = Connection> + 'a {
    stream::unfold(waiting, move |mut waiting| async move {
        let over = Mutex::new(Vec::new());
        let connected = race(
            stream::iter(waiting.iter().copied()),
            HEAD_START,
            usize::MAX,
            |address| {
                let over = &over;
                async move {
                    {
                        let mut course = course.lock();
                        if !course.begun.contains(&address) {
                            course.begun.push(address);
                        }
                    }
                    let outcome = connect_to(address, limit).await;
                    match outcome {
                        Ok(connection) => {
                            over.lock().push(address);
                            Ok(connection)
                        }
                        Err(failure) => {
                            over.lock().push(address);
                            course.lock().failed.push((address, failure));
                            Err(())
                        }
                    }
                }
            },
        )
        .await
        .ok()?;
        let over = over.into_inner();
        waiting.retain(|address| !over.contains(address));
        Some((connected, waiting))
    })
}

/// Connects to one address.
///
/// # Errors
/// Why it cannot be connected to.
pub(crate) async fn connect_to(
    address: SocketAddr,
    limit: Duration,
) -> Result<Connection, Failure> {
    let started = Instant::now();
    let connect = async {
        let tcp = timeout(limit, TcpStream::connect(address))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        tcp.set_nodelay(true)?;
        Ok(tcp)
    };
    let tcp = connect.await.map_err(|error: io::Error| {
        descriptors::note("connecting to the server", &error);
        Failure::tcp(&address.to_string(), &error)
    })?;
    unpace_loopback(&tcp, address);
    Ok(Connection {
        tcp,
        address,
        tcp_time: started.elapsed(),
    })
}

/// The TLS handshake. Unless `parameters.without` says that it was done before, the hello is sent once more, on a new connection,
/// without what the server chose from it and this client cannot do; `parameters.without` keeps that for the connections to
/// come.
///
/// # Errors
/// Why it failed.
pub(crate) async fn secure(
    mut connection: Connection,
    route: Destination<'_>,
    context: &ClientContext,
    parameters: &mut ClientParameters<'_>,
) -> Result<Secured, Failure> {
    loop {
        let Connection {
            tcp,
            address,
            tcp_time,
        } = connection;
        let started = Instant::now();
        let handshake = ech_workers_tls::connect(tcp, context, *parameters);
        return match timeout(route.handshake_timeout, handshake).await {
            Ok(Ok(tls)) => Ok(Secured {
                tls,
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
                connection = connect_to(address, route.tcp_timeout).await?;
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

/// Whether a failure is the answer of the server itself, proven by its certificate, or of no server at all: another address would
/// bring the same.
fn is_answer(failure: &Failure) -> bool {
    match failure.layer {
        Layer::Token => true,
        // Without an authenticated rejection it may have been anybody.
        Layer::Ech => failure.code != Code::EchNotAccepted,
        _ => matches!(
            failure.code,
            Code::WebSocketStatus
                | Code::WebSocketBusy
                | Code::ServerFull
                | Code::WebSocketRedirect
                | Code::CdnChallenge
                | Code::CdnRefused
                | Code::CdnOrigin
                | Code::HttpTooLarge
                | Code::TlsServerName
                | Code::Internal
        ),
    }
}

/// The failure of the attempt that came furthest, of several the first, with the others in its detail.
fn furthest(failed: Vec<(SocketAddr, Failure)>) -> Failure {
    let progress = |failure: &Failure| match failure.layer {
        Layer::Tcp => 0,
        Layer::Tls | Layer::Ech | Layer::Certificate => 1,
        _ => 2,
    };
    let best = failed
        .iter()
        .enumerate()
        .max_by_key(|&(index, (_, failure))| (progress(failure), std::cmp::Reverse(index)))
        .map(|(index, _)| index);
    let mut told = None;
    let mut others = Vec::new();
    for (index, (_, failure)) in failed.into_iter().enumerate() {
        if Some(index) == best {
            told = Some(failure);
        } else {
            others.push(failure.message);
        }
    }
    let Some(mut failure) = told else {
        return Failure::new(
            Layer::Tcp,
            Code::TcpUnreachable,
            "the server has no address",
        );
    };
    if !others.is_empty() {
        let others = format!("other addresses: {}", others.join("; "));
        failure.detail = Some(match failure.detail {
            Some(detail) => format!("{detail}; {others}"),
            None => others,
        });
    }
    failure
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(layer: Layer, message: &str) -> (SocketAddr, Failure) {
        let address = SocketAddr::from(([192, 0, 2, 1], 443));
        (address, Failure::new(layer, Code::TcpFailed, message))
    }

    #[test]
    fn the_failure_that_came_furthest_is_told_with_the_others_in_its_detail() {
        let told = furthest(vec![
            failure(Layer::Tcp, "refused"),
            failure(Layer::Certificate, "foreign"),
            failure(Layer::Tls, "reset"),
        ]);
        assert_eq!(told.message, "foreign");
        assert_eq!(
            told.detail.as_deref(),
            Some("other addresses: refused; reset")
        );
        let alone = furthest(vec![failure(Layer::Tcp, "refused")]);
        assert_eq!((alone.message.as_str(), alone.detail), ("refused", None));
    }
}
