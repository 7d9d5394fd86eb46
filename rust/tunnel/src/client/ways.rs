//! Which way a local connection goes, and the way to a target without the tunnel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ech_workers_proxy::{Host, Target};
use ech_workers_rules::{self as rules, Rules, Way};
use ech_workers_session::{Refusal, Status};
use ech_workers_sync::RwLock;
use futures_util::stream;
use tokio::net::TcpStream;

use crate::client::names::{Names, Resolved};
use crate::counters::Counter;
use crate::reach::{Unreachable, reach, unreachable};

/// The rules, and what direct connections take.
#[derive(Debug, Default)]
pub(crate) struct Ways {
    rules: RwLock<Arc<Rules>>,
    pub(crate) names: Names,
    /// Connections so far that went straight to their target, and that a rule has blocked.
    pub(crate) direct: Counter,
    pub(crate) blocked: Counter,
}

impl Ways {
    /// Other rules, for the connections that come from now on.
    pub(crate) fn set_rules(&self, rules: Rules) {
        *self.rules.write() = Arc::new(rules);
    }

    /// The way to a target. A name is not resolved for it: rules for networks are about addresses that programs give.
    pub(crate) fn decide(&self, target: &Target) -> Way {
        let rules = Arc::clone(&self.rules.read());
        let host = match &target.host {
            Host::Domain(name) => rules::Host::Name(name),
            Host::Ip(address) => rules::Host::Address(*address),
        };
        let way = rules.decide(host, target.port);
        match way {
            Way::Direct => self.direct.add(1),
            Way::Block => self.blocked.add(1),
            Way::Tunnel | Way::Server(_) => {}
        }
        way
    }

    /// Connects straight to a target. `ask` tells the owner that a name is wanted. Dropping the future ends every attempt.
    pub(crate) async fn reach(
        &self,
        target: &Target,
        ask: impl Fn(String),
    ) -> Result<TcpStream, Refusal> {
        let refusal = |status, why: &str| Err(Refusal::new(status, format!("{target}: {why}")));
        let addresses = match &target.host {
            Host::Ip(address) => Arc::from([*address]),
            Host::Domain(name) => {
                let name = name.trim_end_matches('.').to_ascii_lowercase();
                let resolved = match loopback(&name) {
                    Some(addresses) => addresses,
                    None => self.names.look_up(&name, || ask(name.clone())).await,
                };
                match resolved {
                    Resolved::Addresses(addresses) => addresses,
                    Resolved::NotFound => {
                        return refusal(Status::NameNotFound, "the name does not exist");
                    }
                    Resolved::Failed => {
                        return refusal(Status::NameNotFound, "no resolver answers for the name");
                    }
                }
            }
        };
        let mut reached = reach_first(&addresses, target.port).await;
        if let (Host::Ip(address @ IpAddr::V4(_)), Err((Status::NetworkUnreachable, _))) =
            (&target.host, &reached)
        {
            // A network with IPv6 alone may have a translator, which the owner knows.
            let address = address.to_string();
            let found = self.names.look_up(&address, || ask(address.clone())).await;
            if let Resolved::Addresses(translated) = found
                && translated != addresses
            {
                reached = reach_first(&translated, target.port).await;
            }
        }
        match reached {
            Ok(tcp) => Ok(tcp),
            Err((status, why)) => refusal(status, &why),
        }
    }
}

/// Connects to the first of these addresses that can be reached; an error: the one that says the most.
async fn reach_first(addresses: &[IpAddr], port: u16) -> Result<TcpStream, Unreachable> {
    let candidates = stream::iter(addresses.iter().copied());
    reach(candidates, |address| {
        connect(SocketAddr::new(address, port))
    })
    .await
    .map_err(|failure| {
        failure.unwrap_or((Status::NameNotFound, "the name has no address".to_owned()))
    })
}

async fn connect(address: SocketAddr) -> Result<TcpStream, Unreachable> {
    let tcp = TcpStream::connect(address)
        .await
        .map_err(|error| unreachable(&error))?;
    // Only latency depends on it.
    let _ = tcp.set_nodelay(true);
    Ok(tcp)
}

/// No resolver is asked for these (RFC 6761 section 6.3).
fn loopback(name: &str) -> Option<Resolved> {
    let is_local = name == "localhost" || name.ends_with(".localhost");
    let addresses: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    is_local.then(|| Resolved::Addresses(addresses.into()))
}
