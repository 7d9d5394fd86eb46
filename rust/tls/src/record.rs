//! TLS 1.3 record protection (RFC 8446 section 5) over the traffic secrets of a handshake that BoringSSL made.
//!
//! BoringSSL's own record layer copies every byte four times between the socket and the caller (its read buffer is
//! cleared, filled and copied out of; its write buffer is copied into and out of). Here a record is opened where the
//! socket's bytes lie and sealed where the caller wrote the plaintext.

use ech_workers_boringssl::{
    aead::{AeadKey, Algorithm},
    error::ErrorStack,
    hash::MessageDigest,
    hkdf,
};
use zeroize::Zeroize as _;

/// Largest plaintext of a record (RFC 8446 section 5.1).
pub(crate) const MAX_PLAINTEXT: usize = 1 << 14;
/// Largest encrypted body (RFC 8446 section 5.2).
pub(crate) const MAX_CIPHERTEXT: usize = MAX_PLAINTEXT + 256;
/// Type, legacy version, length.
pub(crate) const HEADER: usize = 5;
/// Authentication tag of every TLS 1.3 cipher suite.
const TAG: usize = 16;
/// What a record is longer than its plaintext: header, inner content type, tag.
pub(crate) const OVERHEAD: usize = HEADER + 1 + TAG;

/// Full-size records after which an AES-GCM key is replaced; RFC 8446 section 5.5 allows 2^24.5.
pub(crate) const RECORDS_PER_KEY: u64 = 1 << 24;

/// Inner content types (RFC 8446 section 5.1).
pub(crate) mod content_type {
    pub(crate) const ALERT: u8 = 21;
    pub(crate) const HANDSHAKE: u8 = 22;
    pub(crate) const APPLICATION_DATA: u8 = 23;
}

/// A cipher suite of RFC 8446 section B.4.
#[derive(Clone, Copy)]
pub(crate) struct Suite {
    algorithm: Algorithm,
    digest: fn() -> MessageDigest,
}

impl Suite {
    /// The suite with this wire value.
    pub(crate) fn from_id(id: u16) -> Option<Self> {
        let (algorithm, digest): (_, fn() -> MessageDigest) = match id {
            0x1301 => (Algorithm::Aes128Gcm, MessageDigest::sha256),
            0x1302 => (Algorithm::Aes256Gcm, MessageDigest::sha384),
            0x1303 => (Algorithm::ChaCha20Poly1305, MessageDigest::sha256),
            _ => return None,
        };
        Some(Self { algorithm, digest })
    }
}

/// Why a record could not be opened, as the alert that says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RecordError {
    BadRecordMac,
    RecordOverflow,
    UnexpectedMessage,
    IllegalParameter,
    DecodeError,
}

impl RecordError {
    pub(crate) fn alert(self) -> u8 {
        match self {
            Self::BadRecordMac => 20,
            Self::RecordOverflow => 22,
            Self::UnexpectedMessage => 10,
            Self::IllegalParameter => 47,
            Self::DecodeError => 50,
        }
    }

    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::BadRecordMac => "a TLS record was altered on its way",
            Self::RecordOverflow => "a TLS record is longer than allowed",
            Self::UnexpectedMessage => "unexpected TLS message",
            Self::IllegalParameter => "a TLS message has a value that does not exist",
            Self::DecodeError => "a TLS message has a wrong length",
        }
    }
}

/// A record could not be sealed, and neither can the next ones with the same key.
#[derive(Debug)]
pub(crate) struct SealError;

impl From<ErrorStack> for SealError {
    fn from(_: ErrorStack) -> Self {
        Self
    }
}

/// One direction's traffic key.
pub(crate) struct TrafficKey {
    suite: Suite,
    secret: Secret,
    key: AeadKey,
    iv: [u8; 12],
    sequence: u64,
}

impl TrafficKey {
    /// The key of a traffic secret, with `sequence` records already used up.
    pub(crate) fn new(suite: Suite, secret: Secret, sequence: u64) -> Result<Self, ErrorStack> {
        let digest = (suite.digest)();
        let mut key = Secret::zeroed(suite.algorithm.key_len());
        expand_label(digest, &secret, "key", key.as_mut_slice())?;
        let mut iv = [0; 12];
        expand_label(digest, &secret, "iv", &mut iv)?;
        Ok(Self {
            key: AeadKey::new(suite.algorithm, key.as_slice())?,
            suite,
            secret,
            iv,
            sequence,
        })
    }

    /// Records protected with this key so far.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// As if that many records had been protected.
    #[cfg(test)]
    pub(crate) fn skip_to(&mut self, sequence: u64) {
        self.sequence = sequence;
    }

    /// The next key of this direction (RFC 8446 section 7.2).
    pub(crate) fn update(&mut self) -> Result<(), ErrorStack> {
        let mut next = Secret::zeroed(self.secret.as_slice().len());
        expand_label(
            (self.suite.digest)(),
            &self.secret,
            "traffic upd",
            next.as_mut_slice(),
        )?;
        *self = Self::new(self.suite, next, 0)?;
        Ok(())
    }

    /// Seals a record in place. The plaintext lies at `record[HEADER..HEADER + length]`, and `record` is at least
    /// `length + OVERHEAD` long. Returns the record's length.
    pub(crate) fn seal(
        &mut self,
        record: &mut [u8],
        length: usize,
        content_type: u8,
    ) -> Result<usize, SealError> {
        let (header, body) = record.split_first_chunk_mut().ok_or(SealError)?;
        let body = body.get_mut(..length + 1 + TAG).ok_or(SealError)?;
        let [high, low] = u16::try_from(body.len())
            .map_err(|_| SealError)?
            .to_be_bytes();
        *header = [content_type::APPLICATION_DATA, 3, 3, high, low];
        *body.get_mut(length).ok_or(SealError)? = content_type;
        let nonce = self.nonce();
        self.key.seal_in_place(&nonce, header, body)?;
        self.sequence += 1;
        Ok(HEADER + body.len())
    }

    /// The record that begins `input`, header included; `None` while not all of it is there.
    pub(crate) fn first_record(input: &mut [u8]) -> Result<Option<&mut [u8]>, RecordError> {
        let Some(&[kind, major, _, high, low]) = input.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let body = usize::from(u16::from_be_bytes([high, low]));
        if kind != content_type::APPLICATION_DATA || major != 3 {
            return Err(RecordError::UnexpectedMessage);
        }
        if body > MAX_CIPHERTEXT {
            return Err(RecordError::RecordOverflow);
        }
        Ok(input.get_mut(..HEADER + body))
    }

    /// Opens one whole record in place: the inner content type, and the length of the content, which begins at
    /// [`HEADER`].
    pub(crate) fn open(&mut self, record: &mut [u8]) -> Result<(u8, usize), RecordError> {
        let (header, body) = record
            .split_first_chunk_mut::<HEADER>()
            .ok_or(RecordError::BadRecordMac)?;
        let nonce = self.nonce();
        let inner = self
            .key
            .open_in_place(&nonce, header, body)
            .map_err(|_| RecordError::BadRecordMac)?;
        self.sequence += 1;
        // What is padded is bounded too (RFC 8446 section 5.4).
        if inner.len() > MAX_PLAINTEXT + 1 {
            return Err(RecordError::RecordOverflow);
        }
        // The content type is the last byte that is not padding.
        let (end, kind) = inner
            .iter()
            .enumerate()
            .rfind(|(_, byte)| **byte != 0)
            .ok_or(RecordError::UnexpectedMessage)?;
        Ok((*kind, end))
    }

    /// RFC 8446 section 5.3.
    fn nonce(&self) -> [u8; 12] {
        let mut nonce = self.iv;
        for (byte, sequence) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= sequence;
        }
        nonce
    }
}

/// A traffic secret or a key derived from one: at most 48 bytes, wiped when dropped. It lies on the heap, because what is
/// moved on the stack leaves copies behind.
pub(crate) struct Secret {
    bytes: Box<[u8; 48]>,
    length: usize,
}

impl Secret {
    fn zeroed(length: usize) -> Self {
        Self {
            bytes: Box::new([0; 48]),
            length: length.min(48),
        }
    }

    /// From the hexadecimal form of a key log line.
    pub(crate) fn from_hex(hex: &str) -> Option<Self> {
        let hex = hex.as_bytes();
        if !matches!(hex.len(), 64 | 96) {
            return None;
        }
        let mut secret = Self::zeroed(hex.len() / 2);
        let (digits, _) = hex.as_chunks();
        for (byte, [high, low]) in secret.as_mut_slice().iter_mut().zip(digits) {
            let high = char::from(*high).to_digit(16)?;
            let low = char::from(*low).to_digit(16)?;
            *byte = (high << 4 | low) as u8;
        }
        Some(secret)
    }

    fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        self.bytes.get_mut(..self.length).unwrap_or_default()
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

/// HKDF-Expand-Label with an empty context (RFC 8446 section 7.1).
fn expand_label(
    digest: MessageDigest,
    secret: &Secret,
    label: &str,
    out: &mut [u8],
) -> Result<(), ErrorStack> {
    let mut info = Vec::with_capacity(32);
    info.extend_from_slice(&(out.len() as u16).to_be_bytes());
    info.push(6 + label.len() as u8);
    info.extend_from_slice(b"tls13 ");
    info.extend_from_slice(label.as_bytes());
    info.push(0);
    hkdf::expand(digest, secret.as_slice(), &info, out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8448 section 3: the server's application traffic secret, and the keys that come of it.
    const SECRET: &str = "a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643";

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn key() -> TrafficKey {
        TrafficKey::new(
            Suite::from_id(0x1301).unwrap(),
            Secret::from_hex(SECRET).unwrap(),
            0,
        )
        .unwrap()
    }

    #[test]
    fn the_keys_of_rfc_8448_come_of_its_secret() {
        let secret = Secret::from_hex(SECRET).unwrap();
        let mut derived = [0; 16];
        expand_label(MessageDigest::sha256(), &secret, "key", &mut derived).unwrap();
        assert_eq!(hex(&derived), "9f02283b6c9c07efc26bb9f2ac92e356");
        assert_eq!(hex(&key().iv), "cf782b88dd83549aadf1e984");
    }

    #[test]
    fn the_records_of_rfc_8448_are_sealed_to_its_bytes() {
        // "Server sends" application data, the second record of that key: the first carried a ticket.
        let mut key = key();
        key.sequence = 1;
        let mut record = vec![0; 50 + OVERHEAD];
        for (index, byte) in record[HEADER..HEADER + 50].iter_mut().enumerate() {
            *byte = index as u8;
        }
        let length = key
            .seal(&mut record, 50, content_type::APPLICATION_DATA)
            .unwrap();
        assert_eq!(
            hex(&record[..length]),
            "17030300432e937e11ef4ac740e538ad36005fc4a46932fc3225d05f82aa1b36e30efaf97d90e6dffc602dcb501a59a8fcc49c4bf2e5f0a21c0047c2abf332540dd032e167c2955d"
        );
    }

    #[test]
    fn both_ends_step_through_key_updates_together() {
        let (mut seal, mut open) = (key(), key());
        for round in 0..4u8 {
            let mut record = vec![round; 100 + OVERHEAD];
            let length = seal
                .seal(&mut record, 100, content_type::APPLICATION_DATA)
                .unwrap();
            let first = TrafficKey::first_record(&mut record).unwrap().unwrap();
            assert_eq!(first.len(), length);
            assert_eq!(open.open(&mut record[..length]), Ok((23, 100)));
            assert!(record[HEADER..HEADER + 100].iter().all(|&b| b == round));
            seal.update().unwrap();
            open.update().unwrap();
            assert_eq!(seal.sequence(), 0);
        }
    }

    #[test]
    fn an_altered_record_is_refused() {
        let mut record = vec![7; 100 + OVERHEAD];
        let length = key().seal(&mut record, 100, 23).unwrap();
        for position in 0..length {
            let mut altered = record[..length].to_vec();
            altered[position] ^= 1;
            assert_eq!(
                key().open(&mut altered),
                Err(RecordError::BadRecordMac),
                "byte {position}"
            );
        }
        assert_eq!(
            key().open(&mut [23, 3, 3, 0, 0]),
            Err(RecordError::BadRecordMac)
        );
    }

    #[test]
    fn a_header_of_anything_else_than_a_protected_record_is_refused() {
        let first = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            TrafficKey::first_record(&mut bytes).map(|record| record.map(|record| record.len()))
        };
        assert_eq!(first(&[23, 3, 3, 0]), Ok(None));
        assert_eq!(first(&[23, 3, 3, 0x41, 0]), Ok(None));
        assert_eq!(first(&[23, 3, 3, 0, 1, 9, 23, 3]), Ok(Some(6)));
        assert_eq!(
            first(&[23, 3, 3, 0x41, 1]),
            Err(RecordError::RecordOverflow)
        );
        assert_eq!(
            first(&[21, 3, 3, 0, 2, 2, 40]),
            Err(RecordError::UnexpectedMessage)
        );
    }
}
