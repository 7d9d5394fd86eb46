/// XORs `payload` with the masking key (RFC 6455 section 5.3), where `payload` starts `phase` bytes into the frame's
/// payload. Masking and unmasking are the same operation.
#[inline]
pub fn mask(payload: &mut [u8], key: [u8; 4], phase: usize) {
    let key = rotate(key, phase);
    if key == [0; 4] {
        return;
    }
    // LLVM makes full vector registers of this, whatever their width, and needs no alignment.
    let [a, b, c, d] = key;
    let pattern = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = payload.as_chunks_mut();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ pattern).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(pattern.to_ne_bytes()) {
        *byte ^= key;
    }
}

/// The key as it applies from `phase` bytes on.
#[inline]
pub(crate) fn rotate(key: [u8; 4], phase: usize) -> [u8; 4] {
    // One instruction, where `key.rotate_left` is a loop.
    let bits = 8 * (phase % 4) as u32;
    u32::from_le_bytes(key).rotate_right(bits).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 6455 section 5.3, word for word.
    fn by_the_book(payload: &mut [u8], key: [u8; 4], phase: usize) {
        for (index, octet) in payload.iter_mut().enumerate() {
            *octet ^= key[(phase + index) % 4];
        }
    }

    #[test]
    fn the_example_of_section_5_7_is_masked_as_printed() {
        let mut payload = *b"Hello";
        mask(&mut payload, [0x37, 0xfa, 0x21, 0x3d], 0);
        assert_eq!(payload, [0x7f, 0x9f, 0x4d, 0x51, 0x58]);
    }

    #[test]
    fn a_phase_near_the_end_of_the_address_space_does_not_overflow() {
        let mut payload = [0; 3];
        mask(&mut payload, [1, 2, 3, 4], usize::MAX);
        assert_eq!(payload, [4, 1, 2]);
    }

    proptest! {
        #[test]
        fn any_length_start_and_phase_masks_like_the_book(
            bytes in proptest::collection::vec(any::<u8>(), 0..600),
            key: [u8; 4],
            phase in 0_usize..9,
            start in 0_usize..70,
        ) {
            let start = start.min(bytes.len());
            let (mut fast, mut slow) = (bytes.clone(), bytes);
            mask(&mut fast[start..], key, phase);
            by_the_book(&mut slow[start..], key, phase);
            prop_assert_eq!(fast, slow);
        }
    }
}
