//! What a local program asked for, and how it is answered.

use std::fmt;

use crate::http::Reply;
use crate::{Exchange, Target, socks5};

/// A complete request of a local program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Where to connect.
    pub target: Target,
    /// The protocol that the request came in, and the answer goes out.
    pub kind: RequestKind,
    /// The first bytes for the target: what the program sent behind its request, and before that, of a
    /// forwarded HTTP request, the rewritten head.
    pub early: Vec<u8>,
    /// What may pass behind these, in both directions, of a forwarded HTTP request; of another one everything does.
    pub exchange: Option<Box<Exchange>>,
    pub(crate) bodiless_answer: bool,
}

/// How a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestKind {
    /// SOCKS5 CONNECT (RFC 1928).
    Socks5,
    /// HTTP CONNECT (RFC 9110 section 9.3.6).
    HttpConnect,
    /// A plain HTTP request to a proxy (RFC 9112 section 3.2.2), passed on in origin form.
    HttpForward,
}

impl RequestKind {
    /// A short name for logs and counters: `socks5`, `connect`, `http`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Socks5 => "socks5",
            Self::HttpConnect => "connect",
            Self::HttpForward => "http",
        }
    }
}

impl fmt::Display for RequestKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Request {
    /// The answer once the target is connected, or taken to be; empty for a forwarded HTTP request,
    /// whose answer is the target's own.
    #[must_use]
    pub fn success(&self) -> Vec<u8> {
        match self.kind {
            RequestKind::Socks5 => socks5::reply(socks5::SUCCEEDED),
            RequestKind::HttpConnect => b"HTTP/1.1 200 Connection established\r\n\r\n".to_vec(),
            RequestKind::HttpForward => Vec::new(),
        }
    }

    /// The answer when the target cannot be had; the connection is closed after it.
    ///
    /// HTTP clients get a text; SOCKS5 has room for a code only. `cause` may be empty. Whoever can reach the port reads
    /// it, and text that is in the program from the start can name neither the server nor what it said.
    #[must_use]
    pub fn failure(&self, failure: Failure, cause: &'static str) -> Vec<u8> {
        if self.kind == RequestKind::Socks5 {
            return socks5::reply(failure.socks5_reply());
        }
        let mut text = format!("ech-workers: {failure}");
        if !cause.is_empty() {
            text.push_str(": ");
            text.push_str(cause);
        }
        let (status, error_type) = failure.http_status();
        let field = format!("Proxy-Status: ech-workers; error={error_type}\r\n");
        Reply {
            status,
            field: &field,
            text: &text,
        }
        .into_bytes(self.bodiless_answer)
    }
}

/// Why a target cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// None of the others.
    General,
    /// Forbidden by the far end's rules.
    NotAllowed,
    /// No route to the target's network.
    NetworkUnreachable,
    /// No route to the target.
    HostUnreachable,
    /// The target refused the connection.
    ConnectionRefused,
    /// A packet's time to live ran out on the way.
    TtlExpired,
    /// The command is not supported.
    CommandNotSupported,
    /// The kind of address is not supported.
    AddressTypeNotSupported,
    /// The target did not answer in time.
    TimedOut,
    /// The target's name does not resolve.
    NameNotFound,
    /// There is no session to a server.
    TunnelDown,
    /// Forbidden by this proxy's own rules.
    Blocked,
}

impl Failure {
    /// The reply field of RFC 1928 section 6. What it has no code for gets the nearest one: a name
    /// that does not resolve is an unreachable host, a time-out is an expired TTL, as Tor has it.
    #[must_use]
    pub fn socks5_reply(self) -> u8 {
        match self {
            Self::General | Self::TunnelDown => socks5::GENERAL_FAILURE,
            Self::NotAllowed | Self::Blocked => 2,
            Self::NetworkUnreachable => 3,
            Self::HostUnreachable | Self::NameNotFound => 4,
            Self::ConnectionRefused => 5,
            Self::TtlExpired | Self::TimedOut => 6,
            Self::CommandNotSupported => socks5::COMMAND_NOT_SUPPORTED,
            Self::AddressTypeNotSupported => socks5::ADDRESS_TYPE_NOT_SUPPORTED,
        }
    }

    /// The status line's end and the error type of RFC 9209 section 2.3.
    fn http_status(self) -> (&'static str, &'static str) {
        match self {
            Self::General => ("502 Bad Gateway", "destination_unavailable"),
            Self::NotAllowed => ("403 Forbidden", "destination_ip_prohibited"),
            Self::NetworkUnreachable | Self::HostUnreachable | Self::TtlExpired => {
                ("502 Bad Gateway", "destination_ip_unroutable")
            }
            Self::ConnectionRefused => ("502 Bad Gateway", "connection_refused"),
            Self::CommandNotSupported | Self::AddressTypeNotSupported => {
                ("501 Not Implemented", "http_request_denied")
            }
            Self::TimedOut => ("504 Gateway Timeout", "connection_timeout"),
            Self::NameNotFound => ("502 Bad Gateway", "dns_error"),
            Self::TunnelDown => ("503 Service Unavailable", "proxy_internal_error"),
            Self::Blocked => ("403 Forbidden", "http_request_denied"),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::General => "the target cannot be reached",
            Self::NotAllowed => "the server does not allow this target",
            Self::NetworkUnreachable => "the target's network is unreachable",
            Self::HostUnreachable => "the target is unreachable",
            Self::ConnectionRefused => "the target refused the connection",
            Self::TtlExpired => "the time to live expired on the way to the target",
            Self::CommandNotSupported => "the command is not supported",
            Self::AddressTypeNotSupported => "the kind of address is not supported",
            Self::TimedOut => "the target did not answer in time",
            Self::NameNotFound => "the target's name does not resolve",
            Self::TunnelDown => "no connection to a server",
            Self::Blocked => "a rule blocks this target",
        })
    }
}
