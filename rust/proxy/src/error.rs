//! Why a local program was turned away.

use crate::TargetError;

/// Why a negotiation ended without a request.
///
/// The messages are for the log; none repeats what the program sent beyond a number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The first byte belongs to no protocol served here.
    #[error("neither SOCKS5 nor HTTP: the first byte is {0:#04x}")]
    UnknownProtocol(u8),
    /// The first byte is that of SOCKS4.
    #[error("SOCKS4 is not supported: set the program to SOCKS5")]
    Socks4,
    /// The first byte is that of a TLS record: the program takes this for an HTTPS proxy or a web server.
    #[error("TLS on the proxy port: set the program to a SOCKS5 or HTTP proxy, not HTTPS")]
    Tls,
    /// A SOCKS5 request that begins with another version.
    #[error("the SOCKS5 request has version {0} instead of 5")]
    SocksVersion(u8),
    /// The program offers no SOCKS5 authentication method that would do.
    #[error("the program offers no usable SOCKS5 authentication method{}", if *.credentials_required { " (a user name and password are required)" } else { "" })]
    NoAcceptableMethod {
        /// Whether the proxy asks for a user name and a password.
        credentials_required: bool,
    },
    /// A username/password message with another version than 1 (RFC 1929 section 2).
    #[error("the SOCKS5 username/password message has version {0} instead of 1")]
    AuthenticationVersion(u8),
    /// An HTTP request without `Proxy-Authorization` where credentials are set.
    #[error("the program sent no proxy user name and password")]
    AuthenticationRequired,
    /// A wrong user name or password.
    #[error("the proxy user name or password is wrong")]
    AuthenticationFailed,
    /// A SOCKS5 command other than CONNECT.
    #[error("the SOCKS5 command {} is not supported", match .0 { 2 => "BIND".to_owned(), 3 => "UDP ASSOCIATE".to_owned(), other => other.to_string() })]
    CommandNotSupported(u8),
    /// A SOCKS5 address type other than IPv4, IPv6 and domain name.
    #[error("the SOCKS5 address type {0} is not supported")]
    AddressTypeNotSupported(u8),
    /// The target is no host and port.
    #[error("invalid target: {0}")]
    InvalidTarget(#[from] TargetError),
    /// The HTTP request head, or the framing of its content, breaks RFC 9112.
    #[error("malformed HTTP request: {0}")]
    MalformedRequest(&'static str),
    /// The HTTP request head is longer than [`MAX_HEAD`](crate::MAX_HEAD), or has too many fields.
    #[error("the HTTP request head is too large")]
    HeadTooLarge,
    /// A request as to a web server: a browser opened the proxy port itself.
    #[error("a plain web request to the proxy port")]
    NotAProxyRequest,
    /// A scheme other than `http` and `ws` in the request target.
    #[error(
        "the scheme of the request is not supported: only http, or CONNECT for everything else"
    )]
    UnsupportedScheme,
    /// Another HTTP version than 1.0 and 1.1.
    #[error("the HTTP version is not supported: only 1.0 and 1.1")]
    UnsupportedVersion,
    /// The program did not finish its request in time.
    #[error("the program did not finish its request in time")]
    TimedOut,
    /// The program closed the connection in the middle of its request.
    #[error("the program closed the connection before its request was complete")]
    EndOfInput,
    /// The negotiation has yielded its result already.
    #[error("the negotiation is over")]
    Finished,
}
