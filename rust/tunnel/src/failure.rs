//! Why something failed: the layer, a stable code, one line for a person, and detail for a developer.

use std::io;

use ech_workers_tls::{CertificateProblem, HandshakeError};

/// The layer at which something failed, from the local port outward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Layer {
    Resolver,
    Tcp,
    Tls,
    Ech,
    Certificate,
    WebSocket,
    Token,
    Yamux,
    Target,
    Local,
}

impl Layer {
    /// The word used in messages and in the Python API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Resolver => "resolver",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Ech => "ech",
            Self::Certificate => "certificate",
            Self::WebSocket => "websocket",
            Self::Token => "token",
            Self::Yamux => "yamux",
            Self::Target => "target",
            Self::Local => "local",
        }
    }
}

/// Why something failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Where.
    pub layer: Layer,
    /// A stable word for programs, for example `tcp-refused`.
    pub code: &'static str,
    /// One line: what failed and why, without advice.
    pub message: String,
    /// What a developer would want beside it.
    pub detail: Option<String>,
    /// An authenticated `ECHConfigList`, with `ech-rejected` only.
    pub retry_configs: Option<Vec<u8>>,
    /// The server's name was not reached: ECH was rejected. With a certificate's failure it is the public name's.
    pub is_ech_rejected: bool,
}

impl Failure {
    /// A failure without detail.
    pub fn new(layer: Layer, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            layer,
            code,
            message: message.into(),
            detail: None,
            retry_configs: None,
            is_ech_rejected: false,
        }
    }

    /// The same failure with detail.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// A TCP connection to `address` that could not be made.
    pub fn tcp(address: &str, error: &io::Error) -> Self {
        let (code, why) = match error.kind() {
            io::ErrorKind::ConnectionRefused => ("tcp-refused", "connection refused".to_owned()),
            io::ErrorKind::TimedOut => ("tcp-timeout", "no answer in time".to_owned()),
            io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => {
                ("tcp-unreachable", "no route to it".to_owned())
            }
            io::ErrorKind::ConnectionReset => ("tcp-reset", "connection reset".to_owned()),
            _ => ("tcp-failed", error.to_string()),
        };
        Self::new(Layer::Tcp, code, format!("connecting to {address}: {why}"))
    }

    /// A TLS handshake with `address` that failed.
    pub fn handshake(address: &str, error: HandshakeError) -> Self {
        let message = format!("handshake with {address}: {error}");
        let is_ech_rejected = matches!(
            error,
            HandshakeError::EchRejected { .. } | HandshakeError::Certificate { outer: true, .. }
        );
        let (layer, code, retry_configs) = match error {
            HandshakeError::EchRejected {
                retry_configs: Some(configs),
                ..
            } => (Layer::Ech, "ech-rejected", Some(configs)),
            HandshakeError::EchRejected {
                retry_configs: None,
                ..
            } => (Layer::Ech, "ech-disabled", None),
            HandshakeError::EchConfigInvalid { .. } => (Layer::Ech, "ech-config-invalid", None),
            HandshakeError::EchNotAccepted => (Layer::Ech, "ech-not-accepted", None),
            HandshakeError::Certificate { ref problem, .. } => (
                Layer::Certificate,
                match problem {
                    CertificateProblem::UnknownIssuer => "certificate-unknown-issuer",
                    CertificateProblem::Expired => "certificate-expired",
                    CertificateProblem::NotYetValid => "certificate-not-yet-valid",
                    CertificateProblem::NameMismatch => "certificate-name",
                    _ => "certificate-invalid",
                },
                None,
            ),
            HandshakeError::Alert(_) => (Layer::Tls, "tls-alert", None),
            HandshakeError::ResetAfterHello | HandshakeError::Closed => {
                (Layer::Tls, "tls-reset", None)
            }
            HandshakeError::TlsVersion => (Layer::Tls, "tls-version", None),
            HandshakeError::NotTls => (Layer::Tls, "tls-not-spoken", None),
            HandshakeError::Unsupported(_) => (Layer::Tls, "tls-unsupported", None),
            HandshakeError::ServerName => (Layer::Tls, "tls-server-name", None),
            // The connection broke, or BoringSSL has another word for it.
            _ => (Layer::Tls, "tls-failed", None),
        };
        Self {
            layer,
            code,
            message,
            detail: None,
            retry_configs,
            is_ech_rejected,
        }
    }

    /// The carrying connection broke while in use.
    pub fn transport(error: &io::Error) -> Self {
        let (code, why) = match error.kind() {
            io::ErrorKind::UnexpectedEof => (
                "tcp-reset",
                "the connection was cut without a close".to_owned(),
            ),
            io::ErrorKind::ConnectionReset => ("tcp-reset", "the connection was reset".to_owned()),
            io::ErrorKind::TimedOut => ("tcp-timeout", "the connection timed out".to_owned()),
            _ => ("tcp-failed", error.to_string()),
        };
        Self::new(Layer::Tcp, code, why)
    }
}

#[cfg(test)]
mod tests {
    use ech_workers_tls::{Alert, Unsupported};

    use super::*;

    #[test]
    fn every_handshake_that_fails_for_a_known_reason_has_a_code_of_its_own() {
        let rejected = |retry_configs| HandshakeError::EchRejected {
            public_name: "public.test".to_owned(),
            retry_configs,
        };
        let certificate = |problem| HandshakeError::Certificate {
            problem,
            outer: false,
        };
        for (error, layer, code) in [
            (rejected(Some(vec![1])), Layer::Ech, "ech-rejected"),
            (rejected(None), Layer::Ech, "ech-disabled"),
            (
                HandshakeError::EchNotAccepted,
                Layer::Ech,
                "ech-not-accepted",
            ),
            (
                certificate(CertificateProblem::Expired),
                Layer::Certificate,
                "certificate-expired",
            ),
            (
                certificate(CertificateProblem::Other("odd".to_owned())),
                Layer::Certificate,
                "certificate-invalid",
            ),
            (HandshakeError::Alert(Alert(40)), Layer::Tls, "tls-alert"),
            (HandshakeError::ResetAfterHello, Layer::Tls, "tls-reset"),
            (HandshakeError::TlsVersion, Layer::Tls, "tls-version"),
            (HandshakeError::NotTls, Layer::Tls, "tls-not-spoken"),
            (
                HandshakeError::Unsupported(Unsupported::DelegatedCredential),
                Layer::Tls,
                "tls-unsupported",
            ),
            (HandshakeError::ServerName, Layer::Tls, "tls-server-name"),
            (
                HandshakeError::Tls("odd".to_owned()),
                Layer::Tls,
                "tls-failed",
            ),
        ] {
            let configs = matches!(
                error,
                HandshakeError::EchRejected {
                    retry_configs: Some(_),
                    ..
                }
            );
            let failure = Failure::handshake("192.0.2.1:443", error);
            assert_eq!((failure.layer, failure.code), (layer, code));
            assert_eq!(failure.retry_configs.is_some(), configs);
            assert_eq!(
                failure.is_ech_rejected,
                code.starts_with("ech-re") || code == "ech-disabled"
            );
        }
    }

    #[test]
    fn a_bad_certificate_of_the_public_name_means_that_ech_was_rejected() {
        for outer in [false, true] {
            let problem = CertificateProblem::Expired;
            let failure = Failure::handshake(
                "192.0.2.1:443",
                HandshakeError::Certificate { problem, outer },
            );
            assert_eq!(
                (failure.layer, failure.is_ech_rejected),
                (Layer::Certificate, outer)
            );
        }
    }
}
