//! What a server needs to decrypt hellos: the private key of a configuration, in a PEM file that others can read too.

use std::fmt;

use ech_workers_boringssl::{error::ErrorStack, x25519::X25519PrivateKey};

use super::config_list::{Config, ConfigList, ConfigListError, is_public_name};
use super::{KDF_HKDF_SHA256, KEM_X25519, VERSION, pem};
use crate::wire::Reader;

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
        for block in pem::blocks(text) {
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
        pem::write(&mut text, "PRIVATE KEY", &pkcs8);
        pem::write(
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
    let length: usize = keys.iter().map(|key| key.config.encoded().len()).sum();
    let mut list = (length.min(usize::from(u16::MAX)) as u16)
        .to_be_bytes()
        .to_vec();
    for key in keys {
        list.extend_from_slice(key.config.encoded());
    }
    list
}

/// PKCS #8 up to the private key: version 0, id-X25519 (RFC 8410 section 7).
const PKCS8_X25519: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x6e, 0x04, 0x22, 0x04, 0x20,
];

/// The key of a PKCS #8 structure of version 0, or of version 1, which may carry the public key behind it (RFC 5958).
fn x25519_from_pkcs8(der: &[u8]) -> Option<[u8; 32]> {
    let (prefix, rest) = der.split_first_chunk::<16>()?;
    let mut expected = PKCS8_X25519;
    expected[1] = u8::try_from(der.len().checked_sub(2)?)
        .ok()
        .filter(|length| *length < 0x80)?;
    if prefix[4] == 1 {
        expected[4] = 1;
    }
    (*prefix == expected).then(|| rest.first_chunk::<32>().copied())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> EchKey {
        EchKey::generate(7, "public.test", 64).unwrap()
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

    proptest! {
        #[test]
        fn noise_is_an_error_and_never_a_crash(
            noise in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let _ = EchKey::from_pem(&String::from_utf8_lossy(&noise));
        }
    }
}
