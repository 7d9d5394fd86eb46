//! Random numbers that a seed decides.

/// `SplitMix64`.
#[derive(Debug, Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from `least` up to and without `most`.
    pub(crate) fn range(&mut self, least: u64, most: u64) -> u64 {
        least + self.next() % (most - least).max(1)
    }

    /// True once in `n` times.
    pub(crate) fn once_in(&mut self, n: u64) -> bool {
        self.next().is_multiple_of(n)
    }

    pub(crate) fn fork(&mut self) -> Self {
        Self(self.next())
    }
}

/// The byte at `offset` of the data with this seed: it shows a loss, a repetition and a swap.
pub(crate) fn pattern(seed: u64, offset: usize) -> u8 {
    let mixed = (seed ^ (offset as u64 / 8)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> (8 * (offset as u64 % 8))) as u8
}
