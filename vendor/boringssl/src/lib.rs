//! Where BoringSSL comes from: the pinned crate, and safe forms of the few raw calls rust/tls needs.
//!
//! Nothing else in the workspace names the vendor: replacing it (see README.md) is a change of this crate alone.

#![allow(unsafe_code)] // the raw calls below; each states why it is sound

#[cfg(feature = "delegated-credential")]
mod delegated_credential;
mod ticket_keys;

use std::io::{Read, Write};

use foreign_types::ForeignTypeRef as _;
use rama_boring_sys as ffi;

#[cfg(feature = "delegated-credential")]
pub use delegated_credential::delegated_credential;
pub use ticket_keys::{NAME as TICKET_KEY_NAME, TicketKey, set_ticket_keys};

pub use rama_boring::{
    aead, asn1, bn, ec, error, ex_data, hash, hkdf, hpke, nid, pkey, sha, sign, ssl, stack, x509,
    x25519,
};

/// The BoringSSL release inside, as its MODULE.bazel numbers it, and the crate that carries it.
pub const REVISION: &str = "BoringSSL 0.20260813.0 (rama-boring 0.7.0)";

/// Reason codes of BoringSSL's SSL library (`SSL_R_*`) that callers tell apart.
pub mod reason {
    use super::ffi;

    /// The server rejected ECH and proved to be the public name: only now may its retry configurations be read.
    pub const ECH_REJECTED: i32 = ffi::SSL_R_ECH_REJECTED;
    /// The peer's certificate was not accepted; the X.509 verify result says why.
    pub const CERTIFICATE_VERIFY_FAILED: i32 = ffi::SSL_R_CERTIFICATE_VERIFY_FAILED;
    /// No protocol version in common.
    pub const UNSUPPORTED_PROTOCOL: i32 = ffi::SSL_R_UNSUPPORTED_PROTOCOL;
    /// The first bytes are no TLS record.
    pub const WRONG_VERSION_NUMBER: i32 = ffi::SSL_R_WRONG_VERSION_NUMBER;
    /// The first bytes are an HTTP request.
    pub const HTTP_REQUEST: i32 = ffi::SSL_R_HTTP_REQUEST;
    /// The server picked a group it was not offered, or one BoringSSL cannot do.
    pub const WRONG_CURVE: i32 = ffi::SSL_R_WRONG_CURVE;
    /// The peer sent an extension that it may not send, or that BoringSSL does not know; the error's data says which.
    pub const UNEXPECTED_EXTENSION: i32 = ffi::SSL_R_UNEXPECTED_EXTENSION;
    /// A received alert `n` has the reason `ALERT_OFFSET + n`.
    pub const ALERT_OFFSET: i32 = ffi::SSL_AD_REASON_OFFSET;
}

/// Protected records written so far with the current write key.
pub fn write_sequence(ssl: &ssl::SslRef) -> u64 {
    // SAFETY: `ssl` is a live SSL; the call only reads a counter.
    unsafe { ffi::SSL_get_write_sequence(ssl.as_ptr()) }
}

/// Protected records read so far with the current read key.
pub fn read_sequence(ssl: &ssl::SslRef) -> u64 {
    // SAFETY: `ssl` is a live SSL; the call only reads a counter.
    unsafe { ffi::SSL_get_read_sequence(ssl.as_ptr()) }
}

/// Writes what a TLS 1.3 server holds back until its first write: the session tickets. No application data is sent.
pub fn flush_tickets<S: Read + Write>(
    stream: &mut ssl::SslStream<S>,
) -> Result<(), error::ErrorStack> {
    // SAFETY: `stream` owns a live SSL with its BIO; a write of no bytes reads nothing through the pointer, which is
    // non-null and aligned all the same.
    let written = unsafe { ffi::SSL_write(stream.ssl().as_ptr(), [0u8; 1].as_ptr().cast(), 0) };
    if written < 0 {
        return Err(error::ErrorStack::get());
    }
    Ok(())
}

/// Offers `session` in the next ClientHello of `ssl`.
///
/// # Safety
/// `session` must come from a connection of the same `SslContext` as `ssl`.
pub unsafe fn offer_session(
    ssl: &mut ssl::SslRef,
    session: &ssl::SslSessionRef,
) -> Result<(), error::ErrorStack> {
    // SAFETY: forwarded to the caller.
    unsafe { ssl.set_session(session) }
}
