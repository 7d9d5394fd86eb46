use std::io;

use ech_workers_boringssl::error::{Error, ErrorStack};
use ech_workers_boringssl::{reason, ssl, x509::X509VerifyError};

use crate::ech::ConfigListError;
use crate::profile::is_finite_field;

/// How BoringSSL names the extension of RFC 9345 in the data of an error.
const DELEGATED_CREDENTIAL: &str = "extension 34";

/// Why there is no connection. No message ever holds the server's (inner) name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The server did not take the ECH configuration, and proved to be its public name. `None`: it has switched ECH
    /// off, which for us is an error like any other.
    #[error("{}", ech_rejected(public_name, retry_configs.as_deref()))]
    EchRejected {
        /// The name that the server authenticated as.
        public_name: String,
        /// An authenticated ECHConfigList, to be tried once (RFC 9849 section 6.1.6).
        retry_configs: Option<Vec<u8>>,
    },
    /// The configuration list cannot be used; nothing was sent.
    #[error("invalid ECH configuration list: {0}")]
    EchConfigInvalid(#[from] ConfigListError),
    /// The handshake ended without the server having confirmed ECH.
    #[error("the server did not confirm ECH")]
    EchNotAccepted,
    /// The server's certificate was not accepted.
    #[error("{}{problem}", certificate_subject(*outer))]
    Certificate {
        /// Why.
        problem: CertificateProblem,
        /// ECH was rejected, and it is the certificate for the public name that is wrong: nothing that the server said
        /// may be believed.
        outer: bool,
    },
    /// The peer refused with an alert.
    #[error("the peer refused the handshake: {0}")]
    Alert(Alert),
    /// The connection ended right after the ClientHello: what a middlebox does that does not like it.
    #[error("the connection was cut right after the ClientHello, probably blocked on the way")]
    ResetAfterHello,
    /// The peer closed the connection during the handshake.
    #[error("the peer closed the connection during the handshake")]
    Closed,
    /// The server does not speak TLS 1.3.
    #[error("the peer does not speak TLS 1.3")]
    TlsVersion,
    /// What answered is no TLS server, or what came is no TLS client.
    #[error("the peer does not speak TLS")]
    NotTls,
    /// The server chose something that the profile offers as the browser does, but BoringSSL cannot do. One more try
    /// without it ([`ClientParameters::without`](crate::ClientParameters::without)) may succeed.
    #[error("the server chose {0}, which the profile offers but this client cannot do")]
    Unsupported(Unsupported),
    /// The server's name is neither a DNS name nor an IP address.
    #[error("the server's name is neither a DNS name nor an IP address")]
    ServerName,
    /// The connection broke.
    #[error("the connection broke during the handshake: {0}")]
    Io(#[source] io::Error),
    /// Anything else, in BoringSSL's words.
    #[error("TLS failed: {0}")]
    Tls(String),
}

/// What the browsers of the profiles can do and BoringSSL cannot, so that it is offered for its looks alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// A finite field group (RFC 7919), by its number.
    #[error("the finite field group {0:#06x}")]
    Group(u16),
    /// A delegated credential (RFC 9345).
    #[error("a delegated credential")]
    DelegatedCredential,
}

/// What is wrong with a certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateProblem {
    /// It does not lead to a trusted root.
    #[error("is not issued by a trusted authority")]
    UnknownIssuer,
    /// Its time is over.
    #[error("has expired")]
    Expired,
    /// Its time has not come; often the local clock is wrong.
    #[error("is not valid yet (is the clock right?)")]
    NotYetValid,
    /// It is for other names.
    #[error("is for another name")]
    NameMismatch,
    /// Anything else, in BoringSSL's words.
    #[error("is not acceptable: {0}")]
    Other(String),
}

/// An alert (RFC 8446 section 6), by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alert(pub u8);

/// The trust roots could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// A file given as roots holds no certificate that can be read.
    #[error("certificate authority {index}: {reason}")]
    Pem {
        /// Which of the given ones, from 0.
        index: usize,
        /// Why.
        reason: String,
    },
    /// Neither the system's roots nor others were asked for.
    #[error("no trust roots were asked for")]
    Empty,
    /// BoringSSL refused.
    #[error("TLS could not be set up: {0}")]
    Tls(String),
}

/// A server could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// No certificate chain in the PEM text.
    #[error("certificate chain: {0}")]
    Chain(String),
    /// No private key in the PEM text, or an unusable one.
    #[error("private key: {0}")]
    Key(String),
    /// The key is not the certificate's.
    #[error("the private key does not belong to the certificate")]
    Mismatch,
    /// The certificate that the key belongs to is not the first of its chain; its place, counted from 1.
    #[error(
        "the private key belongs to certificate {0} of the chain: the server's own comes first"
    )]
    Order(usize),
    /// No certificate at all was given.
    #[error("no certificate was given")]
    Empty,
    /// A set of ECH keys needs at least one that is advertised to clients whose configuration is stale.
    #[error("no ECH key is marked for retry")]
    NoRetryKey,
    /// Two ECH keys with the same id: a client's choice could not be told.
    #[error("two ECH keys have the configuration id {0}")]
    DuplicateId(u8),
    /// BoringSSL refused.
    #[error("TLS could not be set up: {0}")]
    Tls(String),
}

/// Which of the things that were to be replaced together cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReplaceError {
    /// A certificate.
    #[error(transparent)]
    Identities(ServerError),
    /// An ECH key.
    #[error(transparent)]
    EchKeys(ServerError),
}

impl Alert {
    /// The name in RFC 8446 section 6 (and RFC 9849 section 11.2).
    pub fn name(self) -> &'static str {
        match self.0 {
            0 => "close_notify",
            10 => "unexpected_message",
            20 => "bad_record_mac",
            22 => "record_overflow",
            40 => "handshake_failure",
            42 => "bad_certificate",
            43 => "unsupported_certificate",
            44 => "certificate_revoked",
            45 => "certificate_expired",
            46 => "certificate_unknown",
            47 => "illegal_parameter",
            48 => "unknown_ca",
            49 => "access_denied",
            50 => "decode_error",
            51 => "decrypt_error",
            70 => "protocol_version",
            71 => "insufficient_security",
            80 => "internal_error",
            86 => "inappropriate_fallback",
            90 => "user_canceled",
            109 => "missing_extension",
            110 => "unsupported_extension",
            112 => "unrecognized_name",
            113 => "bad_certificate_status_response",
            115 => "unknown_psk_identity",
            116 => "certificate_required",
            120 => "no_application_protocol",
            121 => "ech_required",
            _ => "an unknown alert",
        }
    }
}

impl std::fmt::Display for Alert {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.name(), self.0)
    }
}

impl From<X509VerifyError> for CertificateProblem {
    fn from(error: X509VerifyError) -> Self {
        match error {
            X509VerifyError::CERT_HAS_EXPIRED => Self::Expired,
            X509VerifyError::CERT_NOT_YET_VALID => Self::NotYetValid,
            X509VerifyError::HOSTNAME_MISMATCH | X509VerifyError::IP_ADDRESS_MISMATCH => {
                Self::NameMismatch
            }
            X509VerifyError::UNABLE_TO_GET_ISSUER_CERT
            | X509VerifyError::UNABLE_TO_GET_ISSUER_CERT_LOCALLY
            | X509VerifyError::UNABLE_TO_VERIFY_LEAF_SIGNATURE
            | X509VerifyError::DEPTH_ZERO_SELF_SIGNED_CERT
            | X509VerifyError::SELF_SIGNED_CERT_IN_CHAIN => Self::UnknownIssuer,
            other => Self::Other(other.error_string().to_owned()),
        }
    }
}

impl HandshakeError {
    /// What BoringSSL's failed handshake means. Reads the retry configurations in the one case in which they are
    /// authenticated: after `ECH_REJECTED`. `group` is the one that the server chose.
    pub(crate) fn from_boringssl(
        error: &ssl::Error,
        ssl: &ssl::SslRef,
        group: Option<u16>,
    ) -> Self {
        let Some(stack) = error.ssl_error() else {
            return Self::Tls(error.to_string());
        };
        let code = stack.errors().first().map_or(0, Error::reason_code);
        match code {
            reason::ECH_REJECTED => Self::EchRejected {
                public_name: ssl
                    .get_ech_name_override()
                    .map_or_else(String::new, |name| {
                        String::from_utf8_lossy(name).into_owned()
                    }),
                retry_configs: ssl
                    .get_ech_retry_configs()
                    .filter(|list| !list.is_empty())
                    .map(<[u8]>::to_vec),
            },
            reason::CERTIFICATE_VERIFY_FAILED => Self::Certificate {
                problem: ssl.verify_result().err().map_or_else(
                    || CertificateProblem::Other("no reason given".to_owned()),
                    Into::into,
                ),
                outer: ssl.get_ech_name_override().is_some(),
            },
            // A server of TLS 1.2 that rejects the version says so with an alert.
            code if code == reason::ALERT_OFFSET + 70 => Self::TlsVersion,
            code if (reason::ALERT_OFFSET..reason::ALERT_OFFSET + 256).contains(&code) => {
                Self::Alert(Alert((code - reason::ALERT_OFFSET) as u8))
            }
            reason::UNSUPPORTED_PROTOCOL => Self::TlsVersion,
            reason::WRONG_VERSION_NUMBER | reason::HTTP_REQUEST => Self::NotTls,
            _ => Unsupported::behind(stack, group)
                .map_or_else(|| Self::Tls(describe(stack)), Self::Unsupported),
        }
    }
}

impl Unsupported {
    /// What was chosen, if that is why a handshake failed.
    fn behind(stack: &ErrorStack, group: Option<u16>) -> Option<Self> {
        let error = stack.errors().first()?;
        match error.reason_code() {
            reason::WRONG_CURVE => group.filter(is_finite_field).map(Self::Group),
            // In the Certificate message, compressed (RFC 8879) or not.
            reason::UNEXPECTED_EXTENSION => {
                (error.data() == Some(DELEGATED_CREDENTIAL)).then_some(Self::DelegatedCredential)
            }
            _ => None,
        }
    }
}

impl From<ErrorStack> for HandshakeError {
    fn from(stack: ErrorStack) -> Self {
        Self::Tls(describe(&stack))
    }
}

impl From<ErrorStack> for TrustError {
    fn from(stack: ErrorStack) -> Self {
        Self::Tls(describe(&stack))
    }
}

impl From<ErrorStack> for ServerError {
    fn from(stack: ErrorStack) -> Self {
        Self::Tls(describe(&stack))
    }
}

/// BoringSSL's reasons in one line, without source positions.
pub(crate) fn describe(stack: &ErrorStack) -> String {
    let reasons: Vec<&str> = stack
        .errors()
        .iter()
        .filter_map(|error| error.reason())
        .collect();
    if reasons.is_empty() {
        "no reason given".to_owned()
    } else {
        reasons.join(", ")
    }
}

fn ech_rejected(public_name: &str, retry_configs: Option<&[u8]>) -> String {
    match retry_configs {
        Some(_) => {
            format!("{public_name} rejected the ECH configuration as stale and sent newer ones")
        }
        None => format!("{public_name} rejected the ECH configuration and offers ECH no more"),
    }
}

fn certificate_subject(outer: bool) -> &'static str {
    if outer {
        "ECH was rejected, and the certificate for the public name "
    } else {
        "the server's certificate "
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_is_one_lower_case_line() {
        for error in [
            HandshakeError::EchRejected {
                public_name: "public.test".to_owned(),
                retry_configs: None,
            },
            HandshakeError::Certificate {
                problem: CertificateProblem::Expired,
                outer: true,
            },
            HandshakeError::Alert(Alert(121)),
            HandshakeError::ResetAfterHello,
        ] {
            let text = error.to_string();
            assert!(!text.ends_with('.') && !text.contains('\n'), "{text}");
        }
        assert_eq!(
            HandshakeError::Alert(Alert(40)).to_string(),
            "the peer refused the handshake: handshake_failure (40)"
        );
    }
}
