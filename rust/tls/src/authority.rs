//! A private certificate authority, for the demonstration and for tests.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ech_workers_boringssl::asn1::Asn1Time;
use ech_workers_boringssl::bn::{BigNum, MsbOption};
use ech_workers_boringssl::ec::{EcGroup, EcKey};
use ech_workers_boringssl::error::ErrorStack;
use ech_workers_boringssl::hash::MessageDigest;
use ech_workers_boringssl::nid::Nid;
use ech_workers_boringssl::pkey::{PKey, Private};
use ech_workers_boringssl::x509::extension::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAlternativeName,
    SubjectKeyIdentifier,
};
use ech_workers_boringssl::x509::{X509, X509Builder, X509Name, X509NameBuilder};

use crate::server::Identity;

/// An authority whose root exists nowhere but here.
pub struct CertificateAuthority {
    certificate: X509,
    key: PKey<Private>,
}

/// When a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// From then on.
    pub not_before: SystemTime,
    /// Until then.
    pub not_after: SystemTime,
}

/// BoringSSL refused to make a key or a certificate.
#[derive(Debug, thiserror::Error)]
#[error("certificate could not be made: {0}")]
pub struct AuthorityError(String);

impl Validity {
    /// From an hour ago (clocks differ) for `days` days.
    pub fn days(days: u32) -> Self {
        let now = SystemTime::now();
        Self {
            not_before: now - Duration::from_secs(3600),
            not_after: now + Duration::from_secs(86_400 * u64::from(days)),
        }
    }
}

impl CertificateAuthority {
    /// Makes an authority, valid for ten years.
    ///
    /// # Errors
    /// [`AuthorityError`] if BoringSSL fails.
    pub fn new() -> Result<Self, AuthorityError> {
        let key = p256()?;
        let name = name("ech-workers private authority")?;
        let mut builder = begin(&name, &name, Validity::days(3650))?;
        builder.set_pubkey(&key)?;
        builder.append_extension(BasicConstraints::new().critical().ca().build()?.as_ref())?;
        builder.append_extension(
            KeyUsage::new()
                .critical()
                .key_cert_sign()
                .crl_sign()
                .build()?
                .as_ref(),
        )?;
        let identifier = SubjectKeyIdentifier::new().build(&builder.x509v3_context(None, None))?;
        builder.append_extension(&identifier)?;
        builder.sign(&key, MessageDigest::sha256())?;
        Ok(Self {
            certificate: builder.build(),
            key,
        })
    }

    /// The root in PEM: what a client is told to trust.
    ///
    /// # Errors
    /// [`AuthorityError`] if BoringSSL fails.
    pub fn root_pem(&self) -> Result<Vec<u8>, AuthorityError> {
        Ok(self.certificate.to_pem()?)
    }

    /// Issues a P-256 certificate for DNS names and IP addresses, with a new key.
    ///
    /// # Errors
    /// [`AuthorityError`] if BoringSSL fails.
    pub fn issue(&self, names: &[&str], validity: Validity) -> Result<Identity, AuthorityError> {
        let key = p256()?;
        let subject = name(names.first().copied().unwrap_or("server"))?;
        let mut builder = begin(&subject, self.certificate.subject_name(), validity)?;
        builder.set_pubkey(&key)?;
        builder.append_extension(BasicConstraints::new().critical().build()?.as_ref())?;
        builder.append_extension(
            KeyUsage::new()
                .critical()
                .digital_signature()
                .build()?
                .as_ref(),
        )?;
        builder.append_extension(ExtendedKeyUsage::new().server_auth().build()?.as_ref())?;
        let (authority_identifier, alternative_name) = {
            let context = builder.x509v3_context(Some(&self.certificate), None);
            let mut alternative = SubjectAlternativeName::new();
            for name in names {
                if name.parse::<IpAddr>().is_ok() {
                    alternative.ip(name);
                } else {
                    alternative.dns(name);
                }
            }
            (
                AuthorityKeyIdentifier::new().keyid(true).build(&context)?,
                alternative.build(&context)?,
            )
        };
        builder.append_extension(&authority_identifier)?;
        if !names.is_empty() {
            builder.append_extension(&alternative_name)?;
        }
        builder.sign(&self.key, MessageDigest::sha256())?;
        let mut chain_pem = builder.build().to_pem()?;
        chain_pem.extend_from_slice(&self.root_pem()?);
        Ok(Identity {
            chain_pem,
            key_pem: key.private_key_to_pem_pkcs8()?,
        })
    }
}

impl std::fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificateAuthority")
            .finish_non_exhaustive()
    }
}

impl From<ErrorStack> for AuthorityError {
    fn from(stack: ErrorStack) -> Self {
        Self(crate::error::describe(&stack))
    }
}

fn p256() -> Result<PKey<Private>, ErrorStack> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
    PKey::from_ec_key(EcKey::generate(&group)?)
}

fn name(common_name: &str) -> Result<X509Name, ErrorStack> {
    let mut builder = X509NameBuilder::new()?;
    // ub-common-name is 64 characters (RFC 5280 appendix A.1); clients look at the alternative names only.
    let end = common_name
        .char_indices()
        .map(|(index, char)| index + char.len_utf8())
        .take_while(|end| *end <= 64)
        .last()
        .unwrap_or(0);
    builder.append_entry_by_nid(Nid::COMMONNAME, &common_name[..end])?;
    Ok(builder.build())
}

fn begin(
    subject: &ech_workers_boringssl::x509::X509NameRef,
    issuer: &ech_workers_boringssl::x509::X509NameRef,
    validity: Validity,
) -> Result<X509Builder, ErrorStack> {
    let mut builder = X509Builder::new()?;
    builder.set_version(2)?;
    let mut serial = BigNum::new()?;
    serial.rand(127, MsbOption::MAYBE_ZERO, false)?;
    let serial = serial.to_asn1_integer()?;
    builder.set_serial_number(&serial)?;
    builder.set_subject_name(subject)?;
    builder.set_issuer_name(issuer)?;
    let time = |time: SystemTime| {
        let seconds = time
            .duration_since(UNIX_EPOCH)
            .map_or(0, |elapsed| elapsed.as_secs());
        Asn1Time::from_unix(i64::try_from(seconds).unwrap_or(i64::MAX))
    };
    let (not_before, not_after) = (time(validity.not_before)?, time(validity.not_after)?);
    builder.set_not_before(&not_before)?;
    builder.set_not_after(&not_after)?;
    Ok(builder)
}
