//! What a client needs to encrypt its hello: the list in a server's HTTPS record.

use super::{AEADS, KDF_HKDF_SHA256, KEM_X25519, VERSION, pem};
use crate::wire::Reader;

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
            let encoded = list
                .get(start..body.position())
                .unwrap_or_default()
                .to_vec();
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
    pub(super) fn parse(
        mut contents: Reader<'_>,
        encoded: Vec<u8>,
    ) -> Result<Self, ConfigListError> {
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
    let list = match pem::blocks(text)
        .filter(|block| block.label == "ECHCONFIG")
        .find_map(|block| block.content)
    {
        Some(list) => list,
        None => pem::decode_base64(text).ok_or(ConfigListError::Encoding)?,
    };
    ConfigList::parse(&list).map(|_| list)
}

/// Whether a public name is one that clients accept: letters, digits and hyphens in labels of 1 to 63, and no IPv4
/// address (RFC 9849 section 4).
pub(super) fn is_public_name(name: &str) -> bool {
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

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;

    use super::*;
    use crate::ech::{EchKey, config_list};

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
        let config = key().config().encoded().to_vec();
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
        let mut list = key().config().encoded().to_vec();
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
