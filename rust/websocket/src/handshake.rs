//! The opening handshake (RFC 6455 section 4), both sides.
//!
//! The client's request is written from a [`RequestTemplate`], so that it can look like the browser whose TLS hello goes
//! before it. The server reads requests with a web server's own parser: here is only the check and what to answer.
//!
//! ```
//! use ech_workers_websocket::handshake::{ClientHandshake, Request, RequestTemplate};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let request = Request { host: "example.org", path: "/ws", token: Some("s3cret") };
//! let nonce = *b"the sample nonce"; // 16 random bytes
//! let mut handshake = ClientHandshake::new(&RequestTemplate::default(), request, nonce)?;
//! assert!(handshake.request().starts_with(b"GET /ws HTTP/1.1\r\nHost: example.org\r\nUpgrade: "));
//!
//! let received = b"HTTP/1.1 101 Switching Protocols\r\n\
//!     Upgrade: websocket\r\nConnection: Upgrade\r\n\
//!     Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\
//!     Sec-WebSocket-Protocol: s3cret\r\n\r\n\
//!     \x82\x05first";
//! let (taken, response) = handshake.receive(received)?.expect("a whole response");
//! assert_eq!(response.protocol.as_deref(), Some("s3cret"));
//! assert_eq!(received[taken..], *b"\x82\x05first");
//! # Ok(())
//! # }
//! ```

mod client;
mod server;
mod template;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest as _, Sha1};

pub use client::{
    ClientHandshake, HandshakeError, MAX_HEAD, MAX_REFUSAL_BODY, Refusal, Request, RequestError,
    Response,
};
pub use server::{Upgrade, UpgradeError, validate_upgrade};
pub use template::{RequestTemplate, TemplateError};

/// Section 1.3: what the server appends to the key.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The Sec-WebSocket-Accept that answers a Sec-WebSocket-Key (section 4.2.2).
pub fn accept_key(key: &str) -> String {
    STANDARD.encode(Sha1::new().chain_update(key).chain_update(GUID).finalize())
}

/// Whether a comma-separated list holds `token`, in whatever case (RFC 9110 section 5.6.1).
fn list_holds(list: &[u8], token: &str) -> bool {
    list.split(|&byte| byte == b',')
        .any(|element| element.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_section_1_3_is_accepted_as_printed() {
        assert_eq!(
            accept_key("dGhlIHNhbXBsZSBub25jZQ=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
    }

    #[test]
    fn a_token_is_found_anywhere_in_a_list() {
        assert!(list_holds(b"keep-alive,\tUPGRADE ", "upgrade"));
        assert!(!list_holds(b"upgrades, not-upgrade", "upgrade"));
        assert!(!list_holds(b"", "upgrade"));
    }
}
