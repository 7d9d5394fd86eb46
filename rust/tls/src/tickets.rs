//! Keys for session tickets that several servers share, so that a client resumes at any of them (RFC 8446 section 2.2).

use std::sync::{Arc, PoisonError, RwLock};

use ech_workers_boringssl::ssl::SslContextBuilder;
use ech_workers_boringssl::{self as boringssl, TICKET_KEY_NAME};
use zeroize::Zeroizing;

/// One key, from a file as nginx and others have it, which `openssl rand 80` makes: 16 bytes of name, 32 for HMAC-SHA256, 32 for
/// AES-256.
#[derive(Clone)]
pub struct TicketKey(Arc<Parts>);

struct Parts {
    name: [u8; TICKET_KEY_NAME],
    mac: Zeroizing<[u8; 32]>,
    cipher: Zeroizing<[u8; 32]>,
}

impl TicketKey {
    /// Takes a key file's content; None if it has not 80 bytes.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let (name, bytes) = bytes.split_first_chunk()?;
        let (mac, bytes) = bytes.split_first_chunk()?;
        Some(Self(Arc::new(Parts {
            name: *name,
            mac: Zeroizing::new(*mac),
            cipher: Zeroizing::new(bytes.try_into().ok()?),
        })))
    }
}

impl boringssl::TicketKey for TicketKey {
    fn name(&self) -> &[u8; TICKET_KEY_NAME] {
        &self.0.name
    }

    fn mac_key(&self) -> &[u8; 32] {
        &self.0.mac
    }

    fn cipher_key(&self) -> &[u8; 32] {
        &self.0.cipher
    }
}

impl std::fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TicketKey").finish_non_exhaustive()
    }
}

/// The keys in use, the newest first: it seals new tickets, the others only open those that clients still have. Cheap to
/// clone; they may be changed at any time, for all clones.
#[derive(Debug, Clone, Default)]
pub struct TicketKeys(Arc<RwLock<Vec<TicketKey>>>);

impl TicketKeys {
    /// Replaces the keys, from the next handshake on. Without any, clients get no tickets.
    pub fn set(&self, keys: Vec<TicketKey>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    fn choose(&self, name: Option<&[u8; TICKET_KEY_NAME]>) -> Option<TicketKey> {
        use boringssl::TicketKey as _;

        let keys = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut keys = keys.iter();
        match name {
            None => keys.next(),
            Some(name) => keys.find(|key| key.name() == name),
        }
        .cloned()
    }

    pub(crate) fn configure(&self, builder: &mut SslContextBuilder) {
        let keys = self.clone();
        boringssl::set_ticket_keys(builder, move |name| keys.choose(name));
    }
}
