//! Composes TLS, WebSocket, yamux and the local proxy into a tunnel, client and server.
//!
//! The four protocols know nothing of one another; this crate is where they meet. A connection's way: the local port
//! ([`Client::listen`]) learns the target, the pool picks a session, the session's driver takes the socket and relays.
//! A [`Client`] dials when its owner says so and reports what happens as [`Event`]s; what to do about it is the
//! owner's to decide. A [`Server`] is the other end.

mod carrier;
mod client;
mod counters;
mod descriptors;
mod driver;
mod echo;
mod events;
mod extensions;
mod failure;
mod listen;
mod log;
mod os;
mod panics;
mod race;
mod reach;
mod runtime;
mod seldom;
mod server;
mod socket;
mod stream;

pub use client::{
    Carried, Client, ClientConfig, ClientLimits, ClientSettings, ConnectionSnapshot, DialPlan,
    Dialed, Done, Echo, Event, FetchPlan, Fetched, Learned, Listener, Mode, Pending, Resolved,
    SessionSnapshot, Snapshot, UpstreamSnapshot,
};
pub use counters::{ByConfigId, Counter, Traffic};
pub use driver::SessionStats;
pub use events::{About, Events, LogLine, Next};
pub use failure::{Code, Ended, Failure, Layer};
pub use os::{OwnedLocal, RawLocal, release};
pub use server::{
    ApplyError, FaceConfig, ServedSession, Server, ServerConfig, ServerLimits, ServerSettings,
    ServerStats, TokenStats,
};
pub use stream::{Ending, Stream, StreamEnded};
