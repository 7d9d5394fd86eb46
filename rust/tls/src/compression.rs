//! Certificate compression (RFC 8879), for the profiles that offer it: only the client's side, unpacking.
//!
//! What is unpacked is capped twice: BoringSSL gives a buffer of the announced length, at most 100 KiB, and a stream that
//! holds more fails at its end; and no decoder gets a window that such a length could not need.

use std::io::{self, Write};

use ech_workers_boringssl::error::ErrorStack;
use ech_workers_boringssl::ssl::{
    CertificateCompressionAlgorithm, CertificateCompressor, SslContextBuilder,
};

/// RFC 8878 section 3.1.1.1.2 recommends that decoders take at least this.
const ZSTD_WINDOW: u64 = 8 << 20;

/// Makes every algorithm known to a context; which are offered, each connection says.
pub(crate) fn register(context: &mut SslContextBuilder) -> Result<(), ErrorStack> {
    context.add_certificate_compression_algorithm(Zlib)?;
    context.add_certificate_compression_algorithm(Brotli)?;
    context.add_certificate_compression_algorithm(Zstd)
}

/// The algorithms with these numbers.
pub(crate) fn algorithms(ids: &[u16]) -> Vec<CertificateCompressionAlgorithm> {
    [
        (1, CertificateCompressionAlgorithm::ZLIB),
        (2, CertificateCompressionAlgorithm::BROTLI),
        (3, CertificateCompressionAlgorithm::ZSTD),
    ]
    .into_iter()
    .filter_map(|(id, algorithm)| {
        ids.iter()
            .position(|wanted| *wanted == id)
            .map(|place| (place, algorithm))
    })
    .collect::<std::collections::BTreeMap<_, _>>()
    .into_values()
    .collect()
}

struct Zlib;
struct Brotli;
struct Zstd;

impl CertificateCompressor for Zlib {
    const ALGORITHM: CertificateCompressionAlgorithm = CertificateCompressionAlgorithm::ZLIB;
    const CAN_COMPRESS: bool = false;
    const CAN_DECOMPRESS: bool = true;

    fn decompress<W: Write>(&self, input: &[u8], output: &mut W) -> io::Result<()> {
        io::copy(&mut flate2::read::ZlibDecoder::new(input), output).map(drop)
    }
}

impl CertificateCompressor for Brotli {
    const ALGORITHM: CertificateCompressionAlgorithm = CertificateCompressionAlgorithm::BROTLI;
    const CAN_COMPRESS: bool = false;
    const CAN_DECOMPRESS: bool = true;

    fn decompress<W: Write>(&self, input: &[u8], output: &mut W) -> io::Result<()> {
        let mut decoder = brotli_decompressor::Decompressor::new(input, 4096);
        io::copy(&mut decoder, output).map(drop)
    }
}

impl CertificateCompressor for Zstd {
    const ALGORITHM: CertificateCompressionAlgorithm = CertificateCompressionAlgorithm::ZSTD;
    const CAN_COMPRESS: bool = false;
    const CAN_DECOMPRESS: bool = true;

    fn decompress<W: Write>(&self, input: &[u8], output: &mut W) -> io::Result<()> {
        if zstd_window(input).is_none_or(|window| window > ZSTD_WINDOW) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut decoder =
            ruzstd::decoding::StreamingDecoder::new(input).map_err(io::Error::other)?;
        io::copy(&mut decoder, output).map(drop)
    }
}

/// The window that a frame's header asks for (RFC 8878 section 3.1.1.1), before the decoder allocates it.
fn zstd_window(frame: &[u8]) -> Option<u64> {
    let rest = frame.strip_prefix(&[0x28, 0xb5, 0x2f, 0xfd])?;
    let (&descriptor, rest) = rest.split_first()?;
    let single_segment = descriptor & 0x20 != 0;
    if !single_segment {
        let window = *rest.first()?;
        let base = 1u64 << (10 + (window >> 3));
        return Some(base + base / 8 * u64::from(window & 7));
    }
    // Without a window descriptor the window is the content, whose size stands behind the dictionary's id.
    let dictionary = match descriptor & 3 {
        3 => 4,
        length => usize::from(length),
    };
    let field = rest.get(dictionary..)?;
    let little_endian = |length: usize| {
        field.get(..length).map(|bytes| {
            bytes
                .iter()
                .rev()
                .fold(0u64, |value, byte| value << 8 | u64::from(*byte))
        })
    };
    match descriptor >> 6 {
        0 => little_endian(1),
        1 => little_endian(2).map(|size| size + 256),
        2 => little_endian(4),
        _ => little_endian(8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zstd_frame_that_asks_for_a_huge_window_is_refused_before_it_is_allocated() {
        // Window descriptor 0xf8: 2^41 bytes.
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xf8, 0x01, 0x00, 0x00];
        assert_eq!(zstd_window(&frame), Some(1 << 41));
        assert!(Zstd.decompress(&frame, &mut Vec::new()).is_err());
        let frame = [
            0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f,
        ];
        assert_eq!(zstd_window(&frame), Some(u64::MAX >> 1));
        assert!(Zstd.decompress(&frame, &mut Vec::new()).is_err());
    }

    #[test]
    fn what_was_packed_comes_out_whole() {
        let certificate: Vec<u8> = (0..5000u32).map(|n| (n / 7) as u8).collect();
        let packed = ruzstd::encoding::compress_to_vec(
            &certificate[..],
            ruzstd::encoding::CompressionLevel::Fastest,
        );
        let mut out = Vec::new();
        Zstd.decompress(&packed, &mut out).unwrap();
        assert_eq!(out, certificate);

        let mut packed = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        packed.write_all(&certificate).unwrap();
        out.clear();
        Zlib.decompress(&packed.finish().unwrap(), &mut out)
            .unwrap();
        assert_eq!(out, certificate);

        let mut packed = Vec::new();
        brotli::BrotliCompress(&mut &certificate[..], &mut packed, &Default::default()).unwrap();
        out.clear();
        Brotli.decompress(&packed, &mut out).unwrap();
        assert_eq!(out, certificate);
    }

    #[test]
    fn more_than_was_announced_is_an_error() {
        let mut packed = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        packed.write_all(&[0; 1 << 20]).unwrap();
        let packed = packed.finish().unwrap();
        let mut announced = [0; 1000];
        assert!(Zlib.decompress(&packed, &mut &mut announced[..]).is_err());
    }

    #[test]
    fn algorithms_keep_the_order_of_the_profile() {
        assert_eq!(
            algorithms(&[3, 1]),
            [
                CertificateCompressionAlgorithm::ZSTD,
                CertificateCompressionAlgorithm::ZLIB
            ]
        );
    }
}
