//! Which way a connection goes, by the name or address of its target and by its port.
//!
//! [`Rules`] are asked in their order, and the first [`Rule`] that matches decides. A rule for domains is matched against the
//! name as the program gave it, a rule for networks against an address that the program gave: nothing is resolved here.
//!
//! ```
//! use ech_workers_rules::{Host, Rule, Rules, Way};
//!
//! let mut blocked = Rule::new(Way::Block);
//! blocked.add_domain("ads.example")?;
//! let mut local = Rule::new(Way::Direct);
//! local.add_network("192.168.0.0/16")?;
//! let rules = Rules::new(vec![blocked.into(), local.into()]);
//! assert_eq!(rules.decide(Host::Name("eu.ads.example"), 443), Way::Block);
//! assert_eq!(rules.decide(Host::Address("192.168.1.7".parse().unwrap()), 22), Way::Direct);
//! assert_eq!(rules.decide(Host::Name("example.org"), 443), Way::Tunnel);
//! # Ok::<(), ech_workers_rules::Mistake>(())
//! ```

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

mod domains;
mod lines;
mod mistake;
mod networks;
mod ports;
mod rule;

pub use mistake::Mistake;
pub use rule::{Host, Rule, Rules, Way};
