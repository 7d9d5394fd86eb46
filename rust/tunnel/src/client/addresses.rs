//! Which addresses failed lately: they are tried after the others for a while.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ech_workers_sync::Mutex;

/// How long an address that failed is tried after the others.
const MEMORY: Duration = Duration::from_secs(300);
/// The most addresses that are remembered; the oldest failure is forgotten first.
const ADDRESSES_MAX: usize = 256;

/// The addresses that failed lately, of all servers and resolvers of a client.
#[derive(Debug, Default)]
pub(crate) struct Addresses {
    failed: Mutex<HashMap<SocketAddr, Instant>>,
}

impl Addresses {
    /// The addresses in the order in which they are to be tried: as given, but those that failed lately behind the others, and
    /// of these the one that failed last at the end.
    pub(crate) fn in_order(&self, given: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
        let failed = self.failed.lock();
        let now = Instant::now();
        let mut addresses: Vec<_> = given.collect();
        addresses.sort_by_key(|address| {
            failed
                .get(address)
                .filter(|&&at| now.duration_since(at) < MEMORY)
        });
        addresses
    }

    /// A connection by this address failed, or another address was faster by far.
    pub(crate) fn note_failed(&self, address: SocketAddr) {
        let mut failed = self.failed.lock();
        if failed.len() >= ADDRESSES_MAX
            && !failed.contains_key(&address)
            && let Some(oldest) = failed
                .iter()
                .min_by_key(|&(_, &at)| at)
                .map(|(&address, _)| address)
        {
            failed.remove(&oldest);
        }
        failed.insert(address, Instant::now());
    }

    /// A connection by this address is usable.
    pub(crate) fn note_usable(&self, address: SocketAddr) {
        self.failed.lock().remove(&address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 443))
    }

    fn order(addresses: &Addresses, given: &[u8]) -> Vec<SocketAddr> {
        addresses.in_order(given.iter().copied().map(address))
    }

    #[test]
    fn an_address_that_failed_goes_behind_the_others_until_it_is_usable_again() {
        let addresses = Addresses::default();
        assert_eq!(order(&addresses, &[1, 2, 3]), [1, 2, 3].map(address));
        addresses.note_failed(address(1));
        assert_eq!(order(&addresses, &[1, 2, 3]), [2, 3, 1].map(address));
        addresses.note_failed(address(2));
        assert_eq!(order(&addresses, &[1, 2, 3]), [3, 1, 2].map(address));
        addresses.note_usable(address(1));
        assert_eq!(order(&addresses, &[1, 2, 3]), [1, 3, 2].map(address));
    }

    #[test]
    fn a_bounded_number_is_remembered() {
        let addresses = Addresses::default();
        for last in 0..=255 {
            addresses.note_failed(address(last));
        }
        addresses.note_failed(SocketAddr::from(([198, 51, 100, 1], 443)));
        assert_eq!(addresses.failed.lock().len(), ADDRESSES_MAX);
        assert_eq!(order(&addresses, &[1, 0]), [0, 1].map(address));
    }
}
