//! JA3 and JA4: what others call a ClientHello.

use std::fmt::Write as _;

use ech_workers_boringssl::hash::{MessageDigest, hash};
use ech_workers_boringssl::sha::sha256;

use crate::hello::ClientHello;

/// The JA3 string: version, ciphers, extensions, groups, point formats, in the wire's order without GREASE.
pub fn ja3_text(hello: &ClientHello) -> String {
    let points: Vec<u16> = hello.point_formats().into_iter().map(u16::from).collect();
    let mut text = hello.legacy_version.to_string();
    for list in [
        &hello.cipher_suites,
        &hello.extension_ids(),
        &hello.groups(),
        &points,
    ] {
        text.push(',');
        text.push_str(&join(without_grease(list), "-", |value| value.to_string()));
    }
    text
}

/// The JA3 fingerprint: the MD5 of [`ja3_text`] in hexadecimal.
pub fn ja3(hello: &ClientHello) -> String {
    hash(MessageDigest::md5(), ja3_text(hello).as_bytes())
        .map_or_else(|_| String::new(), |md5| hex(&md5))
}

/// The JA4 fingerprint over TCP (FoxIO's specification of 2023): `t`, version, name or address, counts and ALPN; then the
/// ciphers sorted; then the extensions sorted, with the signature algorithms in order.
pub fn ja4(hello: &ClientHello) -> String {
    const SERVER_NAME: u16 = 0;
    const ALPN: u16 = 16;
    let version = without_grease(&hello.supported_versions())
        .max()
        .unwrap_or(hello.legacy_version);
    let version = match version {
        0x0304 => "13",
        0x0303 => "12",
        0x0302 => "11",
        0x0301 => "10",
        0x0300 => "s3",
        _ => "00",
    };
    let extensions = hello.extension_ids();
    let mut ciphers: Vec<u16> = without_grease(&hello.cipher_suites).collect();
    let mut listed: Vec<u16> = without_grease(&extensions).collect();
    let head = format!(
        "t{version}{}{:02}{:02}{}",
        if extensions.contains(&SERVER_NAME) {
            'd'
        } else {
            'i'
        },
        ciphers.len().min(99),
        listed.len().min(99),
        alpn_mark(
            hello
                .alpn()
                .first()
                .map(String::as_bytes)
                .unwrap_or_default()
        ),
    );
    ciphers.sort_unstable();
    listed.retain(|id| ![SERVER_NAME, ALPN].contains(id));
    listed.sort_unstable();
    let four = |value: u16| format!("{value:04x}");
    let mut tail = join(listed.into_iter(), ",", four);
    let algorithms = hello.signature_algorithms();
    if !algorithms.is_empty() {
        tail.push('_');
        tail.push_str(&join(without_grease(&algorithms), ",", four));
    }
    format!(
        "{head}_{}_{}",
        twelve(&join(ciphers.into_iter(), ",", four)),
        twelve(&tail)
    )
}

/// First and last character of the first protocol; of its hexadecimal form where they are no letters or digits.
fn alpn_mark(protocol: &[u8]) -> String {
    let (Some(&first), Some(&last)) = (protocol.first(), protocol.last()) else {
        return "00".to_owned();
    };
    if first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric() {
        return [char::from(first), char::from(last)].iter().collect();
    }
    let digits = hex(protocol);
    digits[..1].to_owned() + &digits[digits.len() - 1..]
}

/// The first 12 hexadecimal digits of the SHA-256; zeros for nothing.
fn twelve(text: &str) -> String {
    if text.is_empty() {
        return "0".repeat(12);
    }
    hex(&sha256(text.as_bytes())[..6])
}

/// RFC 8701: both bytes equal, ending in `a`.
fn without_grease(values: &[u16]) -> impl Iterator<Item = u16> + '_ {
    values
        .iter()
        .copied()
        .filter(|value| value & 0x0f0f != 0x0a0a || value >> 8 != value & 0xff)
}

fn join(
    values: impl Iterator<Item = u16>,
    separator: &str,
    write: impl Fn(u16) -> String,
) -> String {
    values.map(write).collect::<Vec<_>>().join(separator)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extension(id: u16, body: &[u8]) -> (u16, Vec<u8>) {
        (id, body.to_vec())
    }

    /// The example of the JA4 specification ("JA4 Algorithm": Chrome, raw form in its text).
    fn example() -> ClientHello {
        let algorithms: [u16; 8] = [
            0x0403, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501, 0x0806, 0x0601,
        ];
        let mut list = vec![0, 16];
        list.extend(algorithms.iter().flat_map(|value| value.to_be_bytes()));
        ClientHello {
            legacy_version: 0x0303,
            session_id: Vec::new(),
            cipher_suites: vec![
                0x8a8a, 0x1301, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8,
                0xc013, 0xc014, 0x009c, 0x009d, 0x002f, 0x0035,
            ],
            compression_methods: vec![0],
            extensions: vec![
                extension(0x1a1a, &[]),
                extension(0x001b, &[]),
                extension(0x0000, &[]),
                extension(0x0033, &[]),
                extension(0x0010, &[0, 3, 2, b'h', b'2']),
                extension(0x4469, &[]),
                extension(0x0017, &[]),
                extension(0x002d, &[]),
                extension(0x000d, &list),
                extension(0x0005, &[]),
                extension(0x0023, &[]),
                extension(0x0012, &[]),
                extension(0x002b, &[4, 0x0a, 0x0a, 3, 4]),
                extension(0xff01, &[]),
                extension(0x000b, &[]),
                extension(0x000a, &[]),
                extension(0x0015, &[]),
            ],
            record_version: 0x0301,
            wire_length: 0,
        }
    }

    #[test]
    fn the_example_of_the_ja4_specification_has_its_fingerprint() {
        assert_eq!(ja4(&example()), "t13d1516h2_8daaf6152771_e5627efa2ab1");
    }

    #[test]
    fn ja3_leaves_grease_out_and_keeps_the_order() {
        let text = ja3_text(&example());
        assert!(text.starts_with("771,4865-4866-4867-49195-"), "{text}");
        assert!(text.contains(",27-0-51-16-17513-23-45-13-5-35-18-43-65281-11-10-21,"));
        assert_eq!(ja3(&example()).len(), 32);
    }

    #[test]
    fn a_hello_without_anything_has_a_fingerprint_too() {
        let hello = ClientHello {
            cipher_suites: Vec::new(),
            extensions: Vec::new(),
            ..example()
        };
        assert_eq!(ja4(&hello), "t12i000000_000000000000_000000000000");
    }

    #[test]
    fn a_protocol_of_other_characters_is_marked_by_its_digits() {
        assert_eq!(alpn_mark(b"http/1.1"), "h1");
        assert_eq!(alpn_mark(&[0xab]), "ab");
        assert_eq!(alpn_mark(&[0x30, 0xab]), "3b");
    }
}
