//! Which ids the peer has used, and a hash for looking streams up.

use std::hash::{BuildHasher, Hasher, RandomState};

/// The peer's most recent ids. Concurrent openers in hashicorp's implementation take an id first and send later, so ids
/// may arrive a little out of order: only the ones far behind the newest are told apart by their age alone.
#[derive(Debug, Default)]
pub(crate) struct UsedIds {
    /// Bit `n % SPAN` stands for the peer's n-th id.
    recent: [u64; SPAN as usize / 64],
    /// One more than the highest n seen.
    next: u32,
}

const SPAN: u32 = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    New,
    Again,
    /// So far behind the newest id that it is not known whether it was used.
    TooOld,
}

impl UsedIds {
    pub(crate) fn mark(&mut self, id: u32) -> Use {
        let n = id >> 1;
        if n >= self.next {
            if n - self.next >= SPAN {
                self.recent.fill(0);
            } else {
                for skipped in self.next..n {
                    let (word, bit) = self.place(skipped);
                    *word &= !bit;
                }
            }
            self.next = n + 1;
        } else if self.next - n > SPAN {
            return Use::TooOld;
        } else {
            let (word, bit) = self.place(n);
            if *word & bit != 0 {
                return Use::Again;
            }
        }
        let (word, bit) = self.place(n);
        *word |= bit;
        Use::New
    }

    /// The word that holds the bit of the n-th id, and the bit.
    fn place(&mut self, n: u32) -> (&mut u64, u64) {
        let word = (n % SPAN) as usize / 64;
        let [first, rest @ ..] = &mut self.recent;
        let word = match word.checked_sub(1).and_then(|word| rest.get_mut(word)) {
            Some(word) => word,
            // The word's number is 0: there are as many words as the span needs.
            None => first,
        };
        (word, 1 << (n % 64))
    }
}

/// Hashes a stream id in a few cycles; keyed, because the peer chooses its ids and must not choose collisions.
#[derive(Clone, Debug)]
pub struct IdHash {
    key: u64,
}

impl Default for IdHash {
    fn default() -> Self {
        Self {
            key: RandomState::new().hash_one(0u32),
        }
    }
}

impl BuildHasher for IdHash {
    type Hasher = IdHasher;

    fn build_hasher(&self) -> IdHasher {
        IdHasher(self.key)
    }
}

/// See [`IdHash`].
#[derive(Debug)]
pub struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write_u32(&mut self, id: u32) {
        // A folded multiplication spreads every bit of the id over both halves of the hash; the factor is the
        // fractional part of the golden ratio.
        let product = u128::from(self.0 ^ u64::from(id)) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(u32::from(byte));
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn ids_out_of_order_are_new_and_repeated_ones_are_not() {
        let mut ids = UsedIds::default();
        for id in [3, 1, 7, 5, 2001] {
            assert_eq!(ids.mark(id), Use::New, "{id}");
        }
        for id in [3, 1, 7, 5, 2001] {
            assert_eq!(ids.mark(id), Use::Again, "{id}");
        }
        assert_eq!(ids.mark(1999), Use::New);
        assert_eq!(ids.mark(1 + 2 * 1024 + 2 * 1000), Use::New);
        assert_eq!(ids.mark(5), Use::TooOld);
        assert_eq!(ids.mark(u32::MAX), Use::New);
        assert_eq!(ids.mark(u32::MAX - 2), Use::New);
        assert_eq!(ids.mark(u32::MAX), Use::Again);
    }

    #[test]
    fn used_ids_agree_with_a_set_that_forgets_nothing() {
        let mut ids = UsedIds::default();
        let mut seen = HashSet::new();
        let mut state = 1u64;
        let mut newest = 0;
        for step in 0..100_000u32 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let id = ((step / 2).saturating_sub((state >> 40) as u32 % 600)) * 2 + 1;
            newest = newest.max(id);
            let expected = if seen.insert(id) {
                Use::New
            } else {
                Use::Again
            };
            assert_eq!(ids.mark(id), expected, "{id} after {newest}");
        }
    }

    #[test]
    fn ids_chosen_with_equal_low_bits_spread_over_the_table() {
        let hash = IdHash::default();
        let buckets: HashSet<u64> = (0..1024u32)
            .map(|n| hash.hash_one((n << 20) | 1) % 1024)
            .collect();
        assert!(
            buckets.len() > 400,
            "{} buckets for 1024 ids",
            buckets.len()
        );
    }
}
