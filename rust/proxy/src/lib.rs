//! What local programs speak: SOCKS5, HTTP CONNECT and plain HTTP proxying, without I/O.
//!
//! One port serves all of them; the first byte tells which one it is. A [`Negotiation`] is fed the
//! bytes as they arrive and says what to do next, until it yields the [`Request`] of the local
//! program (where to connect, and which bytes go there first) or a rejection with the reply in the
//! program's own protocol. A forwarded HTTP request comes with an [`Exchange`], which follows it and its answer.
//!
//! ```
//! use ech_workers_proxy::{Negotiation, Progress, RequestKind};
//!
//! let mut negotiation = Negotiation::new(None);
//! let head = b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n";
//! let Progress::Request(request) = negotiation.advance(head) else { unreachable!() };
//! assert_eq!(request.kind, RequestKind::HttpConnect);
//! assert_eq!(request.target.authority(), "example.org:443");
//! assert_eq!(request.success(), b"HTTP/1.1 200 Connection established\r\n\r\n");
//! ```

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

mod answer;
mod body;
mod credentials;
mod error;
mod exchange;
mod http;
mod negotiation;
mod request;
mod socks5;
mod target;

pub use answer::MAX_ANSWER_HEAD;
pub use credentials::{Credentials, CredentialsError};
pub use error::Error;
pub use exchange::{Exchange, Passage};
pub use http::MAX_HEAD;
pub use negotiation::{Negotiation, Progress};
pub use request::{Failure, Request, RequestKind};
pub use target::{Host, Target, TargetError};
