//! Sets of networks, as sorted ranges of addresses.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::lines;
use crate::mistake::Mistake;

/// The networks of one rule.
#[derive(Debug, Default)]
pub(crate) struct Networks {
    /// First and last address of each range; sorted, and without overlap once [`merge`](Self::merge) was called.
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

impl Networks {
    /// A network, or a single address; what is set behind the prefix does not count.
    pub(crate) fn add(&mut self, network: &str) -> Result<(), Mistake> {
        self.push(network)?;
        self.merge();
        Ok(())
    }

    pub(crate) fn add_list(&mut self, list: &[u8]) -> Result<(), Mistake> {
        lines::each(list, |entry| self.push(entry))?;
        self.merge();
        Ok(())
    }

    fn push(&mut self, network: &str) -> Result<(), Mistake> {
        let parsed = match network.parse::<IpNet>() {
            Ok(network) => network,
            Err(_) => network
                .parse::<IpAddr>()
                .map(IpNet::from)
                .map_err(|_| Mistake::Network(network.to_owned()))?,
        };
        match parsed {
            IpNet::V4(network) => self
                .v4
                .push((network.network().into(), network.broadcast().into())),
            IpNet::V6(network) => self
                .v6
                .push((network.network().into(), network.broadcast().into())),
        }
        Ok(())
    }

    fn merge(&mut self) {
        merge(&mut self.v4);
        merge(&mut self.v6);
    }

    /// An IPv4 address inside IPv6 (RFC 4291 section 2.5.5.2) is that IPv4 address.
    pub(crate) fn contain(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => contains(&self.v4, address.into()),
            IpAddr::V6(address) => contains(&self.v6, address.into()),
        }
    }
}

fn merge<T: Copy + Ord>(ranges: &mut Vec<(T, T)>) {
    ranges.sort_unstable();
    ranges.dedup_by(|later, earlier| {
        let overlaps = later.0 <= earlier.1;
        if overlaps {
            earlier.1 = earlier.1.max(later.1);
        }
        overlaps
    });
    ranges.shrink_to_fit();
}

fn contains<T: Copy + Ord>(ranges: &[(T, T)], address: T) -> bool {
    let behind = ranges.partition_point(|&(first, _)| first <= address);
    behind
        .checked_sub(1)
        .and_then(|index| ranges.get(index))
        .is_some_and(|&(_, last)| address <= last)
}
