//! Session tickets sealed with keys of the caller's instead of BoringSSL's own.

use rama_boring::{
    hash::MessageDigest,
    hmac::HmacCtxRef,
    rand,
    ssl::{SslContextBuilder, TicketKeyCallbackResult as Answer},
    symm::{Cipher, CipherCtxRef},
};

/// Length of the name that stands in clear before a ticket.
pub const NAME: usize = 16;

/// A key for session tickets: its name, AES-256-CBC to encrypt, HMAC-SHA256 to authenticate (RFC 5077 section 4).
pub trait TicketKey {
    /// What the ticket begins with.
    fn name(&self) -> &[u8; NAME];
    /// For AES-256.
    fn cipher_key(&self) -> &[u8; 32];
    /// For HMAC-SHA256.
    fn mac_key(&self) -> &[u8; 32];
}

/// Has session tickets sealed and opened with the keys that `choose` finds: by a ticket's name, or, for a new ticket, without
/// one. A ticket whose key is not found leads to a full handshake.
pub fn set_ticket_keys<K, F>(builder: &mut SslContextBuilder, choose: F)
where
    K: TicketKey,
    F: Fn(Option<&[u8; NAME]>) -> Option<K> + Send + Sync + 'static,
{
    let callback = move |_: &_,
                         name: &mut [u8; NAME],
                         iv: &mut [u8; NAME],
                         cipher: &mut CipherCtxRef,
                         mac: &mut HmacCtxRef,
                         encrypt: bool| {
        let Some(key) = choose((!encrypt).then_some(&*name)) else {
            return Answer::Noop;
        };
        let keyed = if encrypt {
            *name = *key.name();
            rand::rand_bytes(iv)
                .and_then(|()| cipher.init_encrypt(&Cipher::aes_256_cbc(), key.cipher_key(), iv))
        } else {
            cipher.init_decrypt(&Cipher::aes_256_cbc(), key.cipher_key(), iv)
        }
        .and_then(|()| mac.init(key.mac_key(), &MessageDigest::sha256()));
        match keyed {
            Ok(()) => Answer::Success,
            Err(_) => Answer::Noop,
        }
    };
    // SAFETY: `Success` is returned only when both contexts have been keyed, the cipher for the direction that was asked for.
    unsafe { builder.set_ticket_key_callback(callback) }
}
