//! PEM (RFC 7468) and the base64 in it.

use base64::Engine as _;
use base64::engine::GeneralPurpose;
use base64::engine::general_purpose::{GeneralPurposeConfig, STANDARD};

pub(super) struct Block<'a> {
    pub(super) label: &'a str,
    /// `None` where it is no base64.
    pub(super) content: Option<Vec<u8>>,
}

/// The blocks of a PEM text (RFC 7468); what is around them is passed over.
pub(super) fn blocks(text: &str) -> impl Iterator<Item = Block<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (_, after) = rest.split_once("-----BEGIN ")?;
        let (label, after) = after.split_once("-----")?;
        let (body, after) = after.split_once("-----END ")?;
        rest = after;
        Some(Block {
            label,
            content: decode_base64(body),
        })
    })
}

pub(super) fn write(text: &mut String, label: &str, content: &[u8]) {
    let body = STANDARD.encode(content);
    text.push_str(&format!("-----BEGIN {label}-----\n"));
    let mut line = body.as_str();
    while !line.is_empty() {
        let (head, tail) = line.split_at(line.len().min(64));
        text.push_str(head);
        text.push('\n');
        line = tail;
    }
    text.push_str(&format!("-----END {label}-----\n"));
}

pub(super) fn decode_base64(text: &str) -> Option<Vec<u8>> {
    /// Zone files and copies by hand lose the padding now and then.
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        GeneralPurposeConfig::new()
            .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
    );
    let compact: String = text
        .chars()
        .filter(|char| !char.is_ascii_whitespace() && *char != '"')
        .collect();
    if compact.is_empty() {
        return None;
    }
    LENIENT.decode(compact).ok()
}
