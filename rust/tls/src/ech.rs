//! ECH configurations (RFC 9849 section 4) and a server's keys for them (RFC 9934).

mod config_list;
mod key;
mod pem;

pub use config_list::{Config, ConfigList, ConfigListError, Unusable, decode_list};
pub use key::{EchKey, EchKeyError, config_list};

/// The extension, and the version of the configurations (RFC 9849 section 4).
pub const VERSION: u16 = 0xfe0d;
/// DHKEM(X25519, HKDF-SHA256) (RFC 9180 section 7.1), the one KEM that is in use.
const KEM_X25519: u16 = 0x0020;
/// HKDF-SHA256 (RFC 9180 section 7.2).
const KDF_HKDF_SHA256: u16 = 0x0001;
/// AES-128-GCM, AES-256-GCM, ChaCha20-Poly1305 (RFC 9180 section 7.3).
const AEADS: [u16; 3] = [0x0001, 0x0002, 0x0003];
