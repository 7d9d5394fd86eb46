//! ECH configurations and keys (RFC 9849 section 4, RFC 9934).

use std::fmt;

use base64::Engine as _;
use base64::engine::GeneralPurpose;
use base64::engine::general_purpose::{GeneralPurposeConfig, STANDARD};
use ech_workers_boringssl::{error::ErrorStack, x25519::X25519PrivateKey};

use crate::wire::Reader;

/// The extension, and the version of the configurations (RFC 9849 section 4).
pub const VERSION: u16 = 0xfe0d;
/// DHKEM(X25519, HKDF-SHA256) (RFC 9180 section 7.1), the one KEM that is in use.
pub const KEM_X25519: u16 = 0x0020;
/// HKDF-SHA256 (RFC 9180 section 7.2).
pub const KDF_HKDF_SHA256: u16 = 0x0001;
/// AES-128-GCM, AES-256-GCM, ChaCha20-Poly1305 (RFC 9180 section 7.3).
pub const AEADS: [u16; 3] = [0x0001, 0x0002, 0x0003];

/// A parsed ECHConfigList with at least one configuration that this client can use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigList {
    configs: Vec<Config>,
}

/// One ECHConfig of a known version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Tells the server which key was used.
    pub id: u8,
    /// HPKE KEM (RFC 9180 section 7.1).
    pub kem: u16,
    /// The KEM's public key.
    pub public_key: Vec<u8>,
    /// HPKE (KDF, AEAD) pairs.
    pub cipher_suites: Vec<(u16, u16)>,
    /// Names up to this length are padded to the same length.
    pub maximum_name_length: u8,
    /// The name in the ClientHelloOuter.
    pub public_name: String,
    /// Types of its extensions.
    pub extensions: Vec<u16>,
    encoded: Vec<u8>,
}

/// Why a list cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigListError {
    /// No bytes, or a list of none.
    #[error("the list is empty")]
    Empty,
    /// A length points outside.
    #[error("the list is cut off or malformed at byte {0}")]
    Malformed(usize),
    /// There is something behind the list.
    #[error("{0} bytes follow the list")]
    Trailing(usize),
    /// Every configuration is of another version (an outdated draft, usually).
    #[error("no configuration of a known version (found {0:#06x})")]
    Version(u16),
    /// Every configuration lacks something: the last one's lack.
    #[error("no usable configuration: {0}")]
    Unusable(Unusable),
    /// Neither base64, nor PEM, nor binary.
    #[error("neither base64, nor PEM with an ECHCONFIG, nor a binary list")]
    Encoding,
    /// BoringSSL found fault with it.
    #[error("refused by BoringSSL")]
    Refused,
}

/// Why one configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unusable {
    /// Only X25519 is known.
    #[error("unknown KEM {0:#06x}")]
    Kem(u16),
    /// The public key's length does not fit the KEM.
    #[error("public key of {0} bytes")]
    PublicKey(usize),
    /// No pair of HKDF-SHA256 and a known AEAD.
    #[error("no known cipher suite")]
    CipherSuites,
    /// Not a DNS name (RFC 9849 section 4).
    #[error("public name {0:?} is no DNS name")]
    PublicName(String),
    /// An extension that must be understood (RFC 9849 section 4.2).
    #[error("unknown mandatory extension {0:#06x}")]
    Mandatory(u16),
}

impl ConfigList {
    /// Parses an `ECHConfigList` as it stands in an HTTPS record.
    ///
    /// Configurations of unknown versions are passed over, as RFC 9849 section 4 asks.
    ///
    /// # Errors
    /// [`ConfigListError`] if it is malformed or nothing in it can be used.
    pub fn parse(list: &[u8]) -> Result<Self, ConfigListError> {
        let mut reader = Reader::new(list);
        if list.is_empty() {
            return Err(ConfigListError::Empty);
        }
        let malformed = |reader: &Reader<'_>| ConfigListError::Malformed(reader.position());
        let mut body = reader.vector16().ok_or_else(|| malformed(&reader))?;
        if !reader.is_empty() {
            return Err(ConfigListError::Trailing(reader.remaining()));
        }
        if body.is_empty() {
            return Err(ConfigListError::Empty);
        }
        let mut configs = Vec::new();
        let mut fault = ConfigListError::Empty;
        while !body.is_empty() {
            let start = body.position();
            let version = body.u16().ok_or_else(|| malformed(&body))?;
            let contents = body.vector16().ok_or_else(|| malformed(&body))?;
            if version != VERSION {
                if matches!(fault, ConfigListError::Empty) {
                    fault = ConfigListError::Version(version);
                }
                continue;
            }
            let encoded = list[start..body.position()].to_vec();
            let config = Config::parse(contents, encoded)?;
            match config.check() {
                Ok(()) => configs.push(config),
                Err(unusable) => fault = ConfigListError::Unusable(unusable),
            }
        }
        if configs.is_empty() {
            return Err(fault);
        }
        Ok(Self { configs })
    }

    /// The usable configurations, most preferred first.
    pub fn configs(&self) -> &[Config] {
        &self.configs
    }

    /// The name that is sent in clear.
    pub fn public_name(&self) -> &str {
        self.configs
            .first()
            .map_or("", |config| &config.public_name)
    }
}

impl Config {
    fn parse(mut contents: Reader<'_>, encoded: Vec<u8>) -> Result<Self, ConfigListError> {
        let reader = &mut contents;
        let parsed = (|| {
            let id = reader.u8()?;
            let kem = reader.u16()?;
            let public_key = reader.vector16()?.rest().to_vec();
            let mut suites = reader.vector16()?;
            let mut cipher_suites = Vec::new();
            while !suites.is_empty() {
                cipher_suites.push((suites.u16()?, suites.u16()?));
            }
            let maximum_name_length = reader.u8()?;
            let public_name = reader.vector8()?.rest();
            let mut list = reader.vector16()?;
            let mut extensions = Vec::new();
            while !list.is_empty() {
                extensions.push(list.u16()?);
                list.vector16()?;
            }
            (reader.is_empty() && !public_key.is_empty() && !cipher_suites.is_empty()).then(|| {
                Self {
                    id,
                    kem,
                    public_key,
                    cipher_suites,
                    maximum_name_length,
                    public_name: String::from_utf8_lossy(public_name).into_owned(),
                    extensions,
                    encoded,
                }
            })
        })();
        parsed.ok_or(ConfigListError::Malformed(contents.position()))
    }

    /// The `ECHConfig` as it was in the list.
    pub fn encoded(&self) -> &[u8] {
        &self.encoded
    }

    fn check(&self) -> Result<(), Unusable> {
        if self.kem != KEM_X25519 {
            return Err(Unusable::Kem(self.kem));
        }
        if self.public_key.len() != 32 {
            return Err(Unusable::PublicKey(self.public_key.len()));
        }
        if !self
            .cipher_suites
            .iter()
            .any(|(kdf, aead)| *kdf == KDF_HKDF_SHA256 && AEADS.contains(aead))
        {
            return Err(Unusable::CipherSuites);
        }
        if !is_public_name(&self.public_name) {
            return Err(Unusable::PublicName(self.public_name.clone()));
        }
        // No extension is registered that this client implements; bit 15 says "must be understood".
        if let Some(&mandatory) = self.extensions.iter().find(|&&id| id & 0x8000 != 0) {
            return Err(Unusable::Mandatory(mandatory));
        }
        Ok(())
    }
}

/// An `ECHConfigList` from what a person may hand over: the binary list, its base64 form (as in a zone file), or PEM with
/// an `ECHCONFIG` block (RFC 9934).
///
/// # Errors
/// [`ConfigListError`] if it is none of them, or the list cannot be used.
pub fn decode_list(input: &[u8]) -> Result<Vec<u8>, ConfigListError> {
    let binary = ConfigList::parse(input);
    if binary.is_ok() {
        return Ok(input.to_vec());
    }
    let Ok(text) = std::str::from_utf8(input) else {
        return binary.map(|_| Vec::new());
    };
    let list = match pem_blocks(text)
        .filter(|block| block.label == "ECHCONFIG")
        .find_map(|block| block.content)
    {
        Some(list) => list,
        None => decode_base64(text).ok_or(ConfigListError::Encoding)?,
    };
    ConfigList::parse(&list).map(|_| list)
}

/// A server's ECH key with its configuration.
#[derive(Clone, PartialEq, Eq)]
pub struct EchKey {
    private_key: [u8; 32],
    config: Config,
    retry: bool,
}

/// Why there is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EchKeyError {
    /// No `PRIVATE KEY` followed by an `ECHCONFIG` (RFC 9934 section 3).
    #[error("no PRIVATE KEY followed by an ECHCONFIG")]
    Missing,
    /// Not a PKCS #8 X25519 key.
    #[error("the private key is not an X25519 key in PKCS #8")]
    PrivateKey,
    /// The list is not acceptable.
    #[error("configuration: {0}")]
    Config(#[from] ConfigListError),
    /// The key belongs to none of the configurations.
    #[error("the private key belongs to no configuration of the file")]
    Mismatch,
    /// The public name cannot be one.
    #[error("public name {0:?} is no DNS name")]
    PublicName(String),
    /// BoringSSL refused.
    #[error("key generation failed: {0}")]
    Tls(String),
}

impl EchKey {
    /// Makes a key and a configuration for it, to be advertised.
    ///
    /// # Errors
    /// [`EchKeyError::PublicName`] if `public_name` is no DNS name.
    pub fn generate(
        id: u8,
        public_name: &str,
        maximum_name_length: u8,
    ) -> Result<Self, EchKeyError> {
        if !is_public_name(public_name) {
            return Err(EchKeyError::PublicName(public_name.to_owned()));
        }
        let private = X25519PrivateKey::generate()?;
        let private_key = private.private_key_bytes()?;
        let public_key = private.public_key()?.public_key_bytes()?;
        let mut contents = vec![id];
        contents.extend_from_slice(&KEM_X25519.to_be_bytes());
        contents.extend_from_slice(&32u16.to_be_bytes());
        contents.extend_from_slice(&public_key);
        contents.extend_from_slice(&8u16.to_be_bytes());
        // What every client knows first, then what suits one without AES instructions.
        for aead in [0x0001u16, 0x0003] {
            contents.extend_from_slice(&KDF_HKDF_SHA256.to_be_bytes());
            contents.extend_from_slice(&aead.to_be_bytes());
        }
        contents.push(maximum_name_length);
        contents.push(public_name.len() as u8);
        contents.extend_from_slice(public_name.as_bytes());
        contents.extend_from_slice(&0u16.to_be_bytes());
        let mut encoded = VERSION.to_be_bytes().to_vec();
        encoded.extend_from_slice(&(contents.len() as u16).to_be_bytes());
        encoded.extend_from_slice(&contents);
        let config = Config::parse(Reader::new(&contents), encoded)?;
        Ok(Self {
            private_key,
            config,
            retry: true,
        })
    }

    /// The keys of a PEM file (RFC 9934), whoever made it: one for each configuration that its private key belongs to.
    ///
    /// # Errors
    /// [`EchKeyError`] if a part is missing, malformed or does not belong to the other.
    pub fn from_pem(text: &str) -> Result<Vec<Self>, EchKeyError> {
        let mut keys = Vec::new();
        let mut private_key = None;
        for block in pem_blocks(text) {
            match (block.label, block.content) {
                ("PRIVATE KEY", Some(der)) => {
                    private_key = Some(x25519_from_pkcs8(&der).ok_or(EchKeyError::PrivateKey)?);
                }
                ("PRIVATE KEY", None) => return Err(EchKeyError::PrivateKey),
                ("ECHCONFIG", content) => {
                    let list = content.ok_or(ConfigListError::Encoding)?;
                    let private_key = private_key.take().ok_or(EchKeyError::Missing)?;
                    keys.extend(Self::matching(private_key, &ConfigList::parse(&list)?)?);
                }
                _ => {}
            }
        }
        if keys.is_empty() {
            return Err(EchKeyError::Missing);
        }
        Ok(keys)
    }

    fn matching(private_key: [u8; 32], list: &ConfigList) -> Result<Vec<Self>, EchKeyError> {
        let public_key = X25519PrivateKey::from_private_key_bytes(&private_key)?
            .public_key()?
            .public_key_bytes()?;
        let keys: Vec<Self> = list
            .configs()
            .iter()
            .filter(|config| config.public_key == public_key)
            .map(|config| Self {
                private_key,
                config: config.clone(),
                retry: true,
            })
            .collect();
        if keys.is_empty() {
            return Err(EchKeyError::Mismatch);
        }
        Ok(keys)
    }

    /// The PEM form (RFC 9934): the private key, then its configuration.
    pub fn to_pem(&self) -> String {
        let mut pkcs8 = PKCS8_X25519.to_vec();
        pkcs8.extend_from_slice(&self.private_key);
        let mut text = String::new();
        write_pem(&mut text, "PRIVATE KEY", &pkcs8);
        write_pem(
            &mut text,
            "ECHCONFIG",
            &config_list(std::slice::from_ref(self)),
        );
        text
    }

    /// Its configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Whether clients with a stale configuration are told of it. Keys are, until they are retired.
    pub fn is_retry(&self) -> bool {
        self.retry
    }

    /// The same key, told of or not: a retired key still opens what clients send, until they have learned the new one.
    #[must_use]
    pub fn with_retry(mut self, retry: bool) -> Self {
        self.retry = retry;
        self
    }

    pub(crate) fn private_key(&self) -> &[u8; 32] {
        &self.private_key
    }
}

impl fmt::Debug for EchKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EchKey")
            .field("config", &self.config)
            .field("retry", &self.retry)
            .finish_non_exhaustive()
    }
}

impl From<ErrorStack> for EchKeyError {
    fn from(stack: ErrorStack) -> Self {
        Self::Tls(crate::error::describe(&stack))
    }
}

/// The ECHConfigList of these keys' configurations: what belongs into the HTTPS record.
pub fn config_list(keys: &[EchKey]) -> Vec<u8> {
    let length: usize = keys.iter().map(|key| key.config.encoded.len()).sum();
    let mut list = (length.min(usize::from(u16::MAX)) as u16)
        .to_be_bytes()
        .to_vec();
    for key in keys {
        list.extend_from_slice(&key.config.encoded);
    }
    list
}

/// Whether a public name is one that clients accept: letters, digits and hyphens in labels of 1 to 63, and no IPv4
/// address (RFC 9849 section 4).
fn is_public_name(name: &str) -> bool {
    let labels = || name.split('.');
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    // A last label of digits, or of 0x and hexadecimal digits, is what an IPv4 parser would take (WHATWG URL).
    let numeric = |label: &str| {
        label.bytes().all(|byte| byte.is_ascii_digit())
            || label
                .strip_prefix("0x")
                .or_else(|| label.strip_prefix("0X"))
                .is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    (1..=253).contains(&name.len())
        && labels().all(label)
        && !labels().next_back().is_some_and(numeric)
}

/// PKCS #8 up to the private key: version 0, id-X25519 (RFC 8410 section 7).
const PKCS8_X25519: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x6e, 0x04, 0x22, 0x04, 0x20,
];

/// The key of a PKCS #8 structure of version 0, or of version 1, which may carry the public key behind it (RFC 5958).
fn x25519_from_pkcs8(der: &[u8]) -> Option<[u8; 32]> {
    let prefix = der.first_chunk::<16>()?;
    let mut expected = PKCS8_X25519;
    expected[1] = u8::try_from(der.len().checked_sub(2)?)
        .ok()
        .filter(|length| *length < 0x80)?;
    if prefix[4] == 1 {
        expected[4] = 1;
    }
    (*prefix == expected).then(|| der[16..].first_chunk::<32>().copied())?
}

struct PemBlock<'a> {
    label: &'a str,
    content: Option<Vec<u8>>,
}

/// The blocks of a PEM text (RFC 7468); what is around them is passed over.
fn pem_blocks(text: &str) -> impl Iterator<Item = PemBlock<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (_, after) = rest.split_once("-----BEGIN ")?;
        let (label, after) = after.split_once("-----")?;
        let (body, after) = after.split_once("-----END ")?;
        rest = after;
        Some(PemBlock {
            label,
            content: decode_base64(body),
        })
    })
}

fn write_pem(text: &mut String, label: &str, content: &[u8]) {
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

fn decode_base64(text: &str) -> Option<Vec<u8>> {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> EchKey {
        EchKey::generate(7, "public.test", 64).unwrap()
    }

    fn list_of(config: &[u8]) -> Vec<u8> {
        let mut list = (config.len() as u16).to_be_bytes().to_vec();
        list.extend_from_slice(config);
        list
    }

    #[test]
    fn a_generated_configuration_says_what_was_asked_for() {
        let list = ConfigList::parse(&config_list(&[key()])).unwrap();
        assert_eq!(list.public_name(), "public.test");
        let config = &list.configs()[0];
        assert_eq!(
            (config.id, config.kem, config.maximum_name_length),
            (7, KEM_X25519, 64)
        );
        assert_eq!(config.cipher_suites, [(1, 1), (1, 3)]);
    }

    #[test]
    fn a_key_survives_its_pem_form() {
        let key = key();
        assert_eq!(EchKey::from_pem(&key.to_pem()).unwrap(), [key]);
    }

    #[test]
    fn the_example_of_rfc_9934_is_read() {
        let text = "-----BEGIN PRIVATE KEY-----\n\
            MC4CAQAwBQYDK2VuBCIEICjd4yGRdsoP9gU7YT7My8DHx1Tjme8GYDXrOMCi8v1V\n\
            -----END PRIVATE KEY-----\n\
            -----BEGIN ECHCONFIG-----\n\
            AD7+DQA65wAgACA8wVN2BtscOl3vQheUzHeIkVmKIiydUhDCliA4iyQRCwAEAAEA\n\
            AQALZXhhbXBsZS5jb20AAA==\n\
            -----END ECHCONFIG-----\n";
        let keys = EchKey::from_pem(text).unwrap();
        assert_eq!(keys[0].config().public_name, "example.com");
        assert_eq!(keys[0].config().id, 0xe7);
    }

    #[test]
    fn a_pem_file_with_a_foreign_configuration_is_refused() {
        let (one, other) = (key().to_pem(), key().to_pem());
        let private = one.split_once("-----BEGIN ECHCONFIG").unwrap().0;
        let config = other.split_once("-----END PRIVATE KEY-----\n").unwrap().1;
        assert_eq!(
            EchKey::from_pem(&format!("{private}{config}")),
            Err(EchKeyError::Mismatch)
        );
        assert_eq!(EchKey::from_pem(config), Err(EchKeyError::Missing));
        assert_eq!(EchKey::from_pem(private), Err(EchKeyError::Missing));
    }

    #[test]
    fn a_private_key_with_its_public_key_behind_it_is_read() {
        let mut der = PKCS8_X25519.to_vec();
        der[4] = 1;
        der.extend_from_slice(&[9; 32]);
        der.extend_from_slice(&[0x81, 0x21, 0x00]);
        der.extend_from_slice(&[8; 32]);
        der[1] = (der.len() - 2) as u8;
        assert_eq!(x25519_from_pkcs8(&der), Some([9; 32]));
        assert_eq!(x25519_from_pkcs8(&der[..40]), None);
    }

    #[test]
    fn a_list_is_taken_in_any_form_a_person_may_have_it() {
        let key = key();
        let list = config_list(std::slice::from_ref(&key));
        let base64 = STANDARD.encode(&list);
        assert_eq!(decode_list(&list).unwrap(), list);
        assert_eq!(decode_list(base64.as_bytes()).unwrap(), list);
        assert_eq!(
            decode_list(format!("\"{}\"\n", base64.trim_end_matches('=')).as_bytes()).unwrap(),
            list
        );
        assert_eq!(decode_list(key.to_pem().as_bytes()).unwrap(), list);
        assert_eq!(decode_list(b"not a list!"), Err(ConfigListError::Encoding));
    }

    #[test]
    fn every_cut_of_a_list_is_an_error() {
        let list = config_list(&[key(), key()]);
        for length in 0..list.len() {
            assert!(ConfigList::parse(&list[..length]).is_err(), "{length}");
        }
        let mut longer = list;
        longer.push(0);
        assert_eq!(
            ConfigList::parse(&longer),
            Err(ConfigListError::Trailing(1))
        );
        assert_eq!(ConfigList::parse(&[0, 0]), Err(ConfigListError::Empty));
    }

    #[test]
    fn a_configuration_that_cannot_be_used_says_why() {
        let config = key().config.encoded;
        let changed = |position: usize, bytes: &[u8]| {
            let mut config = config.clone();
            config[position..position + bytes.len()].copy_from_slice(bytes);
            ConfigList::parse(&list_of(&config)).unwrap_err()
        };
        assert_eq!(changed(0, &[0xfe, 0x0a]), ConfigListError::Version(0xfe0a));
        assert_eq!(
            changed(5, &[0, 0x10]),
            ConfigListError::Unusable(Unusable::Kem(0x10))
        );
        assert_eq!(
            changed(43, &[0, 2, 0, 1, 0, 2]),
            ConfigListError::Unusable(Unusable::CipherSuites)
        );
        assert!(matches!(
            changed(config.len() - 13, b"public_test"),
            ConfigListError::Unusable(Unusable::PublicName(_))
        ));
    }

    #[test]
    fn an_unknown_version_beside_a_known_one_is_passed_over() {
        let mut list = key().config.encoded;
        list.extend_from_slice(&[0xfe, 0x0a, 0, 3, 1, 2, 3]);
        let parsed = ConfigList::parse(&list_of(&list)).unwrap();
        assert_eq!(parsed.configs().len(), 1);
    }

    #[test]
    fn only_dns_names_are_public_names() {
        for name in [
            "a",
            "cloudflare-ech.com",
            "1.example",
            "xn--bcher-kva.example",
        ] {
            assert!(is_public_name(name), "{name}");
        }
        for name in [
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "-a.b",
            "a-.b",
            "a_b.c",
            "1.2.3.4",
            "a.0x1f",
            "ü.example",
            "a b",
        ] {
            assert!(!is_public_name(name), "{name}");
        }
        assert!(!is_public_name(&"a.".repeat(127)));
        assert!(!is_public_name(&"a".repeat(64)));
    }

    proptest! {
        #[test]
        fn noise_is_an_error_and_never_a_crash(
            noise in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let _ = ConfigList::parse(&noise);
            let _ = decode_list(&noise);
            let _ = EchKey::from_pem(&String::from_utf8_lossy(&noise));
        }

        #[test]
        fn a_changed_byte_never_crashes(position in 0usize..80, byte in any::<u8>()) {
            let mut list = config_list(&[key()]);
            let position = position % list.len();
            list[position] = byte;
            let _ = ConfigList::parse(&list);
        }
    }
}
