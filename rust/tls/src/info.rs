use ech_workers_boringssl::ssl::{NameType, SslCipherRef, SslRef};

/// What a handshake came to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HandshakeInfo {
    /// The server opened the encrypted ClientHello.
    pub ech_accepted: bool,
    /// The ECH configuration that the client used.
    pub ech_config_id: Option<u8>,
    /// The protocol chosen by ALPN.
    pub alpn: Option<Box<str>>,
    /// `TLSv1.3`.
    pub version: &'static str,
    /// The cipher suite's name, for example `TLS_AES_128_GCM_SHA256`.
    pub cipher: &'static str,
    /// The group of the key exchange, for example `X25519`.
    pub group: &'static str,
    /// A session was resumed.
    pub resumed: bool,
    /// A HelloRetryRequest took a round trip more.
    pub hello_retry: bool,
    /// The server's name: the inner one with ECH.
    pub server_name: Option<Box<str>>,
    /// The name that went in clear: with ECH the configuration's public name. A server sees what the client sent, if
    /// anything.
    pub public_name: Option<Box<str>>,
    /// Length of the ClientHello on the wire, record header included.
    pub hello_length: usize,
}

impl HandshakeInfo {
    pub(crate) fn of(ssl: &SslRef, hello_length: usize) -> Self {
        Self {
            ech_accepted: ssl.ech_accepted(),
            ech_config_id: None,
            alpn: ssl
                .selected_alpn_protocol()
                .map(|protocol| String::from_utf8_lossy(protocol).into()),
            version: ssl.version_str(),
            cipher: ssl
                .current_cipher()
                .and_then(SslCipherRef::standard_name)
                .unwrap_or(""),
            group: ssl.curve_name().unwrap_or(""),
            resumed: ssl.session_reused(),
            hello_retry: ssl.used_hello_retry_request(),
            server_name: ssl.servername(NameType::HOST_NAME).map(Into::into),
            public_name: None,
            hello_length,
        }
    }
}
