//! Why something failed: the layer, a stable code, one line for a person, and detail for a developer.

use std::io;
use std::time::Duration;

use ech_workers_session::Status;
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

/// What failed, as a word that stays the same over versions. [`as_str`](Self::as_str) gives it as programs and users know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Code {
    TcpRefused,
    TcpTimeout,
    TcpUnreachable,
    TcpReset,
    TcpFailed,
    TlsAlert,
    TlsReset,
    TlsVersion,
    TlsNotSpoken,
    TlsUnsupported,
    TlsServerName,
    TlsTimeout,
    TlsFailed,
    EchRejected,
    EchDisabled,
    EchNotAccepted,
    EchConfigInvalid,
    CertificateUnknownIssuer,
    CertificateExpired,
    CertificateNotYetValid,
    CertificateName,
    CertificateInvalid,
    WebSocketStatus,
    WebSocketRedirect,
    WebSocketBusy,
    /// The server has no place for one more session of this client.
    ServerFull,
    CdnChallenge,
    CdnRefused,
    CdnOrigin,
    WebSocketProtocol,
    WebSocketClosed,
    WebSocketTimeout,
    TokenRejected,
    YamuxPingTimeout,
    YamuxGoAway,
    YamuxProtocol,
    YamuxExhausted,
    Closed,
    Retired,
    Shutdown,
    Internal,
    HttpFailed,
    HttpTooLarge,
    TargetRefused,
    TargetUnreachable,
    TargetNotFound,
    TargetTimeout,
    TargetNotAllowed,
    TargetBlocked,
    TargetFailed,
    NoSession,
    SessionTimeout,
    TooManyConnections,
    Local,
}

impl Code {
    /// What a server's answer for a target that it does not reach means.
    pub(crate) const fn of(status: Status) -> Self {
        match status {
            Status::NotAllowed => Self::TargetNotAllowed,
            Status::NetworkUnreachable | Status::HostUnreachable => Self::TargetUnreachable,
            Status::Refused => Self::TargetRefused,
            Status::TimedOut => Self::TargetTimeout,
            Status::NameNotFound => Self::TargetNotFound,
            Status::Succeeded
            | Status::General
            | Status::PlatformAddress
            | Status::SocketLimit
            | Status::SessionLost
            | Status::NoAnswer => Self::TargetFailed,
        }
    }

    /// The word used in messages and in the Python API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TcpRefused => "tcp-refused",
            Self::TcpTimeout => "tcp-timeout",
            Self::TcpUnreachable => "tcp-unreachable",
            Self::TcpReset => "tcp-reset",
            Self::TcpFailed => "tcp-failed",
            Self::TlsAlert => "tls-alert",
            Self::TlsReset => "tls-reset",
            Self::TlsVersion => "tls-version",
            Self::TlsNotSpoken => "tls-not-spoken",
            Self::TlsUnsupported => "tls-unsupported",
            Self::TlsServerName => "tls-server-name",
            Self::TlsTimeout => "tls-timeout",
            Self::TlsFailed => "tls-failed",
            Self::EchRejected => "ech-rejected",
            Self::EchDisabled => "ech-disabled",
            Self::EchNotAccepted => "ech-not-accepted",
            Self::EchConfigInvalid => "ech-config-invalid",
            Self::CertificateUnknownIssuer => "certificate-unknown-issuer",
            Self::CertificateExpired => "certificate-expired",
            Self::CertificateNotYetValid => "certificate-not-yet-valid",
            Self::CertificateName => "certificate-name",
            Self::CertificateInvalid => "certificate-invalid",
            Self::WebSocketStatus => "websocket-status",
            Self::WebSocketRedirect => "websocket-redirect",
            Self::WebSocketBusy => "websocket-busy",
            Self::ServerFull => "server-full",
            Self::CdnChallenge => "cdn-challenge",
            Self::CdnRefused => "cdn-refused",
            Self::CdnOrigin => "cdn-origin",
            Self::WebSocketProtocol => "websocket-protocol",
            Self::WebSocketClosed => "websocket-closed",
            Self::WebSocketTimeout => "websocket-timeout",
            Self::TokenRejected => "token-rejected",
            Self::YamuxPingTimeout => "yamux-ping-timeout",
            Self::YamuxGoAway => "yamux-go-away",
            Self::YamuxProtocol => "yamux-protocol",
            Self::YamuxExhausted => "yamux-exhausted",
            Self::Closed => "closed",
            Self::Retired => "retired",
            Self::Shutdown => "shutdown",
            Self::Internal => "internal",
            Self::HttpFailed => "http-failed",
            Self::HttpTooLarge => "http-too-large",
            Self::TargetRefused => "target-refused",
            Self::TargetUnreachable => "target-unreachable",
            Self::TargetNotFound => "target-not-found",
            Self::TargetTimeout => "target-timeout",
            Self::TargetNotAllowed => "target-not-allowed",
            Self::TargetBlocked => "target-blocked",
            Self::TargetFailed => "target-failed",
            Self::NoSession => "no-session",
            Self::SessionTimeout => "session-timeout",
            Self::TooManyConnections => "too-many-connections",
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
    /// What failed.
    pub code: Code,
    /// One line: what failed and why, without advice.
    pub message: String,
    /// What a developer would want beside it.
    pub detail: Option<String>,
    /// An authenticated `ECHConfigList`, with `ech-rejected` only.
    pub retry_configs: Option<Vec<u8>>,
    /// So long the server, or what stands before it, asks to wait before the next try.
    pub retry_after: Option<Duration>,
    /// The server's name was not reached: ECH was rejected. With a certificate's failure it is the public name's.
    pub is_ech_rejected: bool,
}

impl Failure {
    /// A failure without detail.
    pub fn new(layer: Layer, code: Code, message: impl Into<String>) -> Self {
        Self {
            layer,
            code,
            message: message.into(),
            detail: None,
            retry_configs: None,
            retry_after: None,
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
            io::ErrorKind::ConnectionRefused => (Code::TcpRefused, "connection refused".to_owned()),
            io::ErrorKind::TimedOut => (Code::TcpTimeout, "no answer in time".to_owned()),
            io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => {
                (Code::TcpUnreachable, "no route to it".to_owned())
            }
            io::ErrorKind::ConnectionReset => (Code::TcpReset, "connection reset".to_owned()),
            _ => (Code::TcpFailed, error.to_string()),
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
            } => (Layer::Ech, Code::EchRejected, Some(configs)),
            HandshakeError::EchRejected {
                retry_configs: None,
                ..
            } => (Layer::Ech, Code::EchDisabled, None),
            HandshakeError::EchConfigInvalid { .. } => (Layer::Ech, Code::EchConfigInvalid, None),
            HandshakeError::EchNotAccepted => (Layer::Ech, Code::EchNotAccepted, None),
            HandshakeError::Certificate { ref problem, .. } => (
                Layer::Certificate,
                match problem {
                    CertificateProblem::UnknownIssuer => Code::CertificateUnknownIssuer,
                    CertificateProblem::Expired => Code::CertificateExpired,
                    CertificateProblem::NotYetValid => Code::CertificateNotYetValid,
                    CertificateProblem::NameMismatch => Code::CertificateName,
                    _ => Code::CertificateInvalid,
                },
                None,
            ),
            HandshakeError::Alert(_) => (Layer::Tls, Code::TlsAlert, None),
            HandshakeError::ResetAfterHello | HandshakeError::Closed => {
                (Layer::Tls, Code::TlsReset, None)
            }
            HandshakeError::TlsVersion => (Layer::Tls, Code::TlsVersion, None),
            HandshakeError::NotTls => (Layer::Tls, Code::TlsNotSpoken, None),
            HandshakeError::Unsupported(_) => (Layer::Tls, Code::TlsUnsupported, None),
            HandshakeError::ServerName => (Layer::Tls, Code::TlsServerName, None),
            // The connection broke, or BoringSSL has another word for it.
            _ => (Layer::Tls, Code::TlsFailed, None),
        };
        Self {
            layer,
            code,
            message,
            detail: None,
            retry_configs,
            retry_after: None,
            is_ech_rejected,
        }
    }

    /// The carrying connection broke while in use.
    pub fn transport(error: &io::Error) -> Self {
        let (code, why) = match error.kind() {
            io::ErrorKind::UnexpectedEof => (
                Code::TcpReset,
                "the connection was cut without a close".to_owned(),
            ),
            io::ErrorKind::ConnectionReset => {
                (Code::TcpReset, "the connection was reset".to_owned())
            }
            io::ErrorKind::TimedOut => (Code::TcpTimeout, "the connection timed out".to_owned()),
            _ => (Code::TcpFailed, error.to_string()),
        };
        Self::new(Layer::Tcp, code, why)
    }
}

/// How a session ended, or that it takes no new streams any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// It took no new streams any more, and its last one has ended.
    Retired,
    /// It was ended on this side.
    Shutdown,
    /// The server takes no new streams on it; those that are open go on.
    GoneAway,
    /// All of its stream ids are used up; the streams that are open go on.
    Exhausted,
    /// It broke, and its streams with it.
    Lost(Failure),
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Lost(failure)
    }
}

impl From<Ended> for Failure {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Retired => Self::new(Layer::Yamux, Code::Retired, "the session was retired"),
            Ended::Shutdown => Self::new(
                Layer::Local,
                Code::Shutdown,
                "the session was ended on this side",
            ),
            Ended::GoneAway => Self::new(
                Layer::Yamux,
                Code::YamuxGoAway,
                "the server takes no new streams on this session",
            ),
            Ended::Exhausted => Self::new(
                Layer::Yamux,
                Code::YamuxExhausted,
                "all stream ids of this session are used up",
            ),
            Ended::Lost(failure) => failure,
        }
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
            (rejected(Some(vec![1])), Layer::Ech, Code::EchRejected),
            (rejected(None), Layer::Ech, Code::EchDisabled),
            (
                HandshakeError::EchNotAccepted,
                Layer::Ech,
                Code::EchNotAccepted,
            ),
            (
                certificate(CertificateProblem::Expired),
                Layer::Certificate,
                Code::CertificateExpired,
            ),
            (
                certificate(CertificateProblem::Other("odd".to_owned())),
                Layer::Certificate,
                Code::CertificateInvalid,
            ),
            (HandshakeError::Alert(Alert(40)), Layer::Tls, Code::TlsAlert),
            (HandshakeError::ResetAfterHello, Layer::Tls, Code::TlsReset),
            (HandshakeError::TlsVersion, Layer::Tls, Code::TlsVersion),
            (HandshakeError::NotTls, Layer::Tls, Code::TlsNotSpoken),
            (
                HandshakeError::Unsupported(Unsupported::DelegatedCredential),
                Layer::Tls,
                Code::TlsUnsupported,
            ),
            (HandshakeError::ServerName, Layer::Tls, Code::TlsServerName),
            (
                HandshakeError::Tls("odd".to_owned()),
                Layer::Tls,
                Code::TlsFailed,
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
                matches!(code, Code::EchRejected | Code::EchDisabled)
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
