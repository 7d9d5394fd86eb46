//! TLS 1.3 with Encrypted Client Hello, client and server, in a browser's ClientHello.
//!
//! [`connect`] and [`accept`] make a handshake over a TCP socket and give a [`TlsStream`]. With [`Ech::List`] the server's
//! name is never sent in clear: no configuration, a malformed one or a rejected one is an error, and a rejection carries
//! the authenticated retry configurations ([`HandshakeError::EchRejected`]).
//!
//! BoringSSL makes the handshakes and is not seen outside; the records are this crate's own (see [`TlsStream`]).

// What a peer sends decides nothing about where we look: an index that is out of bounds would be a panic.
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

mod buffer;
mod certificate;
mod client;
mod compression;
mod error;
mod handshake;
mod info;
mod record;
mod server;
mod stream;
mod tickets;
mod wire;

pub mod authority;
pub mod ech;
pub mod fingerprint;
pub mod hello;
pub mod profile;

pub use certificate::{CertificateFacts, inspect};
#[cfg(fuzzing)]
#[doc(hidden)]
pub use stream::fuzzing;

pub use client::{ClientContext, ClientParameters, Ech, Trust, connect};
pub use ech_workers_boringssl::REVISION as BORINGSSL_REVISION;
pub use error::{
    Alert, CertificateProblem, HandshakeError, ReplaceError, ServerError, TrustError, Unsupported,
};
pub use info::HandshakeInfo;
pub use profile::{HelloForm, Http2, Priority, Profile};
pub use server::{Identity, ServerContext, accept};
pub use stream::{BATCH_MAX, RECORD_MAX, TlsStream};
pub use tickets::{TicketKey, TicketKeys};
