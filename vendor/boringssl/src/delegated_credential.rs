//! A server's delegated credential, which no server of ours has: for the tests of a client that meets one.

use std::ptr;

use foreign_types::{ForeignType as _, ForeignTypeRef as _};
use rama_boring::{error, pkey, ssl, x509};
use rama_boring_sys as ffi;

/// A server's delegated credential (RFC 9345 section 4) with the chain that it is delegated by and its own key.
pub fn delegated_credential(
    chain: &[x509::X509],
    credential: &[u8],
    key: &pkey::PKeyRef<pkey::Private>,
) -> Result<ssl::SslCredential, error::ErrorStack> {
    let buffer = |bytes: &[u8]| {
        // SAFETY: the bytes are copied; the buffer is freed by `Buffer`.
        let buffer =
            unsafe { ffi::CRYPTO_BUFFER_new(bytes.as_ptr(), bytes.len(), ptr::null_mut()) };
        if buffer.is_null() {
            return Err(error::ErrorStack::get());
        }
        Ok(Buffer(buffer))
    };
    let certificates = chain
        .iter()
        .map(|certificate| buffer(&certificate.to_der()?))
        .collect::<Result<Vec<_>, _>>()?;
    let pointers: Vec<_> = certificates.iter().map(|buffer| buffer.0).collect();
    let credential = buffer(credential)?;
    // SAFETY: what it returns is owned, by `made` from here on.
    let made = unsafe { ffi::SSL_CREDENTIAL_new_delegated() };
    if made.is_null() {
        return Err(error::ErrorStack::get());
    }
    // SAFETY: not null, and nobody else's.
    let made = unsafe { ssl::SslCredential::from_ptr(made) };
    // SAFETY: all pointers are live; each call copies or takes a reference of its own.
    let set = unsafe {
        ffi::SSL_CREDENTIAL_set1_cert_chain(made.as_ptr(), pointers.as_ptr(), pointers.len()) == 1
            && ffi::SSL_CREDENTIAL_set1_delegated_credential(made.as_ptr(), credential.0) == 1
            && ffi::SSL_CREDENTIAL_set1_private_key(made.as_ptr(), key.as_ptr()) == 1
    };
    if set {
        Ok(made)
    } else {
        Err(error::ErrorStack::get())
    }
}

struct Buffer(*mut ffi::CRYPTO_BUFFER);

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: made by `CRYPTO_BUFFER_new`, and freed once.
        unsafe { ffi::CRYPTO_BUFFER_free(self.0) }
    }
}
