//! Rules, and the question that is put to them.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::domains::{Domains, Parts};
use crate::mistake::Mistake;
use crate::networks::Networks;
use crate::ports::Ports;

/// Where a connection goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Through the tunnel, by whatever server takes it.
    Tunnel,
    /// Through the tunnel, by the server of this number alone.
    Server(u32),
    /// Straight to the target.
    Direct,
    /// Nowhere.
    Block,
}

/// A target's host, as the program gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host<'a> {
    /// A domain name in its ASCII form.
    Name(&'a str),
    /// An address.
    Address(IpAddr),
}

/// Conditions, and the way of the connections that meet them. The host must meet one of the conditions on hosts, if there
/// are any, and the port one of those on ports, if there are any. A rule without conditions is met by everything.
pub struct Rule {
    way: Way,
    /// There is a condition on the host, even if that is an empty list.
    for_hosts: bool,
    domains: Domains,
    networks: Networks,
    ports: Ports,
}

impl Rule {
    /// Without conditions yet.
    pub fn new(way: Way) -> Self {
        Self {
            way,
            for_hosts: false,
            domains: Domains::default(),
            networks: Networks::default(),
            ports: Ports::default(),
        }
    }

    /// A domain and all below it: `example.org`, also written `.example.org` or `*.example.org`.
    ///
    /// # Errors
    /// It is no domain name.
    pub fn add_domain(&mut self, domain: &str) -> Result<(), Mistake> {
        self.for_hosts = true;
        self.domains.add(domain)
    }

    /// A name, and nothing below it.
    ///
    /// # Errors
    /// It is no domain name.
    pub fn add_exact_domain(&mut self, name: &str) -> Result<(), Mistake> {
        self.for_hosts = true;
        self.domains.add_exact(name)
    }

    /// Every name that has this in it.
    ///
    /// # Errors
    /// No name can have it in it.
    pub fn add_keyword(&mut self, keyword: &str) -> Result<(), Mistake> {
        self.for_hosts = true;
        self.domains.add_keyword(keyword)
    }

    /// Domains, one a line, each with all below it. A million of them take about 30 MB.
    ///
    /// # Errors
    /// A line that is no domain name.
    pub fn add_domain_list(&mut self, list: &[u8]) -> Result<(), Mistake> {
        self.for_hosts = true;
        self.domains.add_list(list)
    }

    /// A network, `192.0.2.0/24`, or an address.
    ///
    /// # Errors
    /// It is neither.
    pub fn add_network(&mut self, network: &str) -> Result<(), Mistake> {
        self.for_hosts = true;
        self.networks.add(network)
    }

    /// Networks and addresses, one a line.
    ///
    /// # Errors
    /// A line that is neither.
    pub fn add_network_list(&mut self, list: &[u8]) -> Result<(), Mistake> {
        self.for_hosts = true;
        self.networks.add_list(list)
    }

    /// A port, or a range of them: `8000-8099`.
    ///
    /// # Errors
    /// It is neither.
    pub fn add_ports(&mut self, ports: &str) -> Result<(), Mistake> {
        self.ports.add(ports)
    }

    fn matches(&self, host: &Asked, port: u16) -> bool {
        self.ports.contain(port)
            && (!self.for_hosts
                || match host {
                    Asked::Name(Some(name)) => self.domains.contain(name),
                    Asked::Name(None) => false,
                    Asked::Address(address) => self.networks.contain(*address),
                })
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rule")
            .field("way", &self.way)
            .finish_non_exhaustive()
    }
}

enum Asked {
    /// `None`: longer than any name.
    Name(Option<Parts>),
    Address(IpAddr),
}

/// Rules in their order.
#[derive(Debug, Default)]
pub struct Rules(Vec<Arc<Rule>>);

impl Rules {
    /// The first rule that matches will decide.
    pub const fn new(rules: Vec<Arc<Rule>>) -> Self {
        Self(rules)
    }

    /// The way of a connection; through the tunnel where no rule says otherwise.
    pub fn decide(&self, host: Host<'_>, port: u16) -> Way {
        if self.0.is_empty() {
            return Way::Tunnel;
        }
        let asked = match host {
            Host::Name(name) => Asked::Name(Parts::new(name)),
            Host::Address(address) => Asked::Address(address),
        };
        self.0
            .iter()
            .find(|rule| rule.matches(&asked, port))
            .map_or(Way::Tunnel, |rule| rule.way)
    }
}
