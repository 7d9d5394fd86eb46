//! The server's way to targets: name look-up, which addresses are allowed, the connection.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ech_workers_proxy::{Host, Target};
use ech_workers_session::{Refusal, Status};
use ech_workers_sync::RwLock;
use futures_util::future::Either;
use futures_util::stream;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::descriptors::{self, Budget};
use crate::reach::{Unreachable, reach, unreachable};
use crate::server::ServerLimits;
use crate::server::permits::{Permit, Permits, Share};
use crate::server::resolve::{Resolver, SystemFiles};

/// Look-ups and connection attempts that one session may always have at a time. It may have more while as many are left for
/// others.
const LOOKUPS_OF_SESSION: usize = 64;
const ATTEMPTS_OF_SESSION: usize = 256;
/// Connection attempts of one session to one address at a time: many that are not answered hold up no attempt to reach another.
const ATTEMPTS_AT_ADDRESS: usize = 256;

/// Which targets a server connects to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Policy {
    /// Also to addresses that are not of the public Internet.
    pub(crate) allow_private: bool,
    /// For one target, the look-up included.
    pub(crate) timeout: Duration,
}

impl From<ServerLimits> for Policy {
    fn from(limits: ServerLimits) -> Self {
        Self {
            allow_private: limits.allow_private_targets,
            timeout: limits.connect_timeout,
        }
    }
}

/// What connecting to targets takes, for the whole process.
#[derive(Debug)]
pub(crate) struct Paths {
    policy: RwLock<Policy>,
    pub(crate) resolver: Resolver,
    /// Connection attempts at a time.
    pub(crate) attempts: Permits<SocketAddr>,
    /// Sockets of targets at a time, connected or not yet.
    pub(crate) sockets: Permits,
}

impl Paths {
    pub(crate) fn new(policy: Policy, budget: &Budget) -> Self {
        let share = |total: usize, most: usize| (total / 2).min(most);
        Self {
            policy: RwLock::new(policy),
            resolver: Resolver::new(
                SystemFiles::default(),
                budget.lookups,
                share(budget.lookups, LOOKUPS_OF_SESSION),
            ),
            attempts: Permits::new(
                budget.attempts,
                share(budget.attempts, ATTEMPTS_OF_SESSION),
                share(budget.attempts, ATTEMPTS_AT_ADDRESS),
            ),
            sockets: Permits::new(
                budget.targets,
                share(budget.targets, usize::MAX),
                usize::MAX,
            ),
        }
    }

    /// Another policy, for attempts that begin from now on.
    pub(crate) fn set_policy(&self, policy: Policy) {
        *self.policy.write() = policy;
    }

    fn policy(&self) -> Policy {
        *self.policy.read()
    }
}

/// One session's way to targets, with its share of what the process has.
#[derive(Debug)]
pub(crate) struct Route {
    paths: Arc<Paths>,
    lookups: Share,
    attempts: Share<SocketAddr>,
    sockets: Share,
}

/// A connection to a target, and one of the sockets that the process may have: that is given back when the connection is over.
pub(crate) type Reached = (TcpStream, Permit);

impl Route {
    pub(crate) fn new(paths: &Arc<Paths>) -> Self {
        Self {
            paths: Arc::clone(paths),
            lookups: paths.resolver.share(),
            attempts: paths.attempts.share(),
            sockets: paths.sockets.share(),
        }
    }

    /// Connects to `target`, or says why not. Nothing is spawned: dropping the future ends the look-up and every attempt.
    pub(crate) async fn reach(&self, target: &Target) -> Result<Reached, Refusal> {
        // Whether an attempt waits for a permit: that is another reason for a timeout than a silent target.
        let begun = AtomicBool::new(false);
        let limit = self.paths.policy().timeout;
        match timeout(limit, self.attempt(target, &begun)).await {
            Ok(outcome) => outcome,
            Err(_) if begun.load(Ordering::Relaxed) => Err(Refusal::new(
                Status::TimedOut,
                format!("{target}: no answer within {} s", limit.as_secs_f32()),
            )),
            Err(_) => Err(Refusal::new(
                Status::TimedOut,
                format!(
                    "{target}: this session or this server has as many look-ups, connection attempts or connections to targets as it may"
                ),
            )),
        }
    }

    async fn attempt(&self, target: &Target, begun: &AtomicBool) -> Result<Reached, Refusal> {
        let mut lookup = None;
        let addresses = match &target.host {
            Host::Ip(address) => Either::Left(stream::iter([*address])),
            Host::Domain(name) => {
                let looking = self.paths.resolver.look_up(name, &self.lookups).await;
                begun.store(true, Ordering::Relaxed);
                Either::Right(lookup.insert(looking))
            }
        };
        let connect = |address| self.connect(SocketAddr::new(address, target.port), begun);
        reach(addresses, connect).await.map_err(|failure| {
            let (status, words) = failure.unwrap_or_else(|| match lookup {
                Some(lookup) => {
                    let failure = lookup.failure();
                    (failure.status(), failure.to_string())
                }
                None => (Status::NameNotFound, "the name has no address".to_owned()),
            });
            Refusal::new(status, format!("{target}: {words}"))
        })
    }

    async fn connect(
        &self,
        address: SocketAddr,
        begun: &AtomicBool,
    ) -> Result<Reached, Unreachable> {
        if !self.paths.policy().allow_private && !is_public(address.ip()) {
            return Err((
                Status::NotAllowed,
                "private addresses are not allowed".to_owned(),
            ));
        }
        let _attempt = self.attempts.acquire(address).await;
        let permit = self.sockets.acquire(()).await;
        begun.store(true, Ordering::Relaxed);
        match connect(address).await {
            Ok(tcp) => Ok((tcp, permit)),
            Err(error) => {
                descriptors::note("connecting to a target", &error);
                Err(unreachable(&error))
            }
        }
    }
}

/// Connects. tokio's own way asks the system for the outcome of each connection; here only of those that the system marks as failed.
async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let connecting = mio::net::TcpStream::connect(address)?;
    let tcp = TcpStream::from_std(connecting.into())?;
    let ready = tcp.ready(Interest::WRITABLE | Interest::ERROR).await?;
    // Elsewhere the mark may be missing.
    if ready.is_error() || cfg!(not(target_os = "linux")) {
        tcp.take_error()?.map_or(Ok(()), Err)?;
    }
    Ok(tcp)
}

/// Whether an address is of the public Internet: not in the special-purpose registries (RFC 6890 and its successors),
/// where a server's own network and its neighbours are.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(a == 0
        || address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_broadcast()
        || address.is_documentation()
        || address.is_multicast()
        // Shared address space (RFC 6598).
        || (a == 100 && (64..128).contains(&b))
        // IETF protocol assignments (RFC 6890).
        || (a == 192 && b == 0 && c == 0)
        // Benchmarking (RFC 2544).
        || (a == 198 && (18..20).contains(&b))
        // Reserved (RFC 1112).
        || a >= 240)
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let s = address.segments();
    // Forms that carry an IPv4 address reach what that address reaches.
    if let Some(inner) = address.to_ipv4_mapped() {
        return is_public_v4(inner);
    }
    let embedded = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        Ipv4Addr::new(a, b, c, d)
    };
    match s {
        // NAT64 (RFC 6052), its local form (RFC 8215), 6to4 (RFC 3056).
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => return is_public_v4(embedded(high, low)),
        [0x64, 0xff9b, 1, ..] => return false,
        [0x2002, high, low, ..] => return is_public_v4(embedded(high, low)),
        _ => {}
    }
    // Global unicast (RFC 4291), less the special blocks of 2001::/23 (Teredo, ORCHID, benchmarking) and documentation.
    (s[0] & 0xe000) == 0x2000
        && !(s[0] == 0x2001 && s[1] < 0x200)
        && !(s[0] == 0x2001 && s[1] == 0xdb8)
        && !(s[0] == 0x3fff && s[1] < 0x1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_servers_own_network_are_not_public() {
        for address in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "255.255.255.255",
            "224.0.0.1",
            "198.18.0.1",
            "192.0.0.8",
            "240.0.0.1",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "2002:a00:1::1",
            "2001::1",
            "2001:db8::1",
            "::7f00:1",
        ] {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn addresses_of_the_internet_are_public() {
        for address in [
            "1.1.1.1",
            "100.128.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "2606:4700::1111",
            "2a00::1",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
        ] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
    }
}
