//! The server's way to targets: name look-up, which addresses are allowed, the connection.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ech_workers_proxy::{Host, Target};
use tokio::net::TcpStream;
use tokio::time::timeout;

use ech_workers_session::{Refusal, Status};

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;

/// Which targets a server connects to.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    /// Also to addresses that are not of the public Internet.
    pub(crate) allow_private: bool,
    /// For one target, the look-up included.
    pub(crate) timeout: Duration,
}

/// Connects to `target`, or says why not.
pub(crate) async fn connect(target: &Target, policy: &Policy) -> Result<TcpStream, Refusal> {
    match timeout(policy.timeout, attempt(target, policy)).await {
        Ok(outcome) => outcome.map_err(|(status, reason)| Refusal::new(status, reason)),
        Err(_) => Err(Refusal::new(
            Status::TimedOut,
            format!(
                "{target}: no answer within {} s",
                policy.timeout.as_secs_f32()
            ),
        )),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the server end resolves targets as every program there does"
)]
async fn attempt(target: &Target, policy: &Policy) -> Result<TcpStream, (Status, String)> {
    let addresses: Vec<SocketAddr> = match &target.host {
        Host::Ip(address) => vec![SocketAddr::new(*address, target.port)],
        Host::Domain(name) => tokio::net::lookup_host((name.as_str(), target.port))
            .await
            .map_err(|error| (Status::NameNotFound, format!("{target}: {error}")))?
            .take(ADDRESSES_MAX)
            .collect(),
    };
    let mut last = (
        Status::NameNotFound,
        format!("{target}: the name has no address"),
    );
    for address in addresses {
        if !policy.allow_private && !is_public(address.ip()) {
            last = (
                Status::NotAllowed,
                format!("{target}: private addresses are not allowed"),
            );
            continue;
        }
        match TcpStream::connect(address).await {
            Ok(tcp) => {
                // Nothing depends on it but latency.
                let _ = tcp.set_nodelay(true);
                return Ok(tcp);
            }
            Err(error) => last = (status(&error), format!("{target}: {}", words(&error))),
        }
    }
    Err(last)
}

fn status(error: &io::Error) -> Status {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Status::Refused,
        io::ErrorKind::NetworkUnreachable => Status::NetworkUnreachable,
        io::ErrorKind::HostUnreachable => Status::HostUnreachable,
        io::ErrorKind::TimedOut => Status::TimedOut,
        _ => Status::General,
    }
}

fn words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => {
            "no route to it".to_owned()
        }
        io::ErrorKind::TimedOut => "no answer in time".to_owned(),
        _ => error.to_string(),
    }
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
