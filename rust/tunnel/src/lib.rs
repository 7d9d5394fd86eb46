//! Composes TLS, WebSocket, yamux and the local proxy into a tunnel, client and server.
//!
//! The four protocols know nothing of one another; this crate is where they meet. A connection's way: the local port
//! ([`Client::listen`]) learns the target, the pool picks a session, the session's driver takes the socket and relays.
//! A [`Client`] dials when its owner says so and reports what happens as [`Event`]s; what to do about it is the
//! owner's to decide. A [`Server`] is the other end.

mod accept;
mod addresses;
mod admission;
mod carrier;
mod cause;
mod client;
mod connect;
mod connections;
mod counters;
mod descriptors;
mod desk;
mod dial;
mod direct;
mod driver;
mod events;
mod extensions;
mod failure;
mod fetch;
mod lanes;
mod listen;
mod local;
mod log;
mod names;
mod opening;
mod os;
mod panics;
mod patience;
mod pending;
mod permits;
mod pool;
mod program;
mod race;
mod refusal;
mod reply;
mod resolve;
mod runtime;
mod seldom;
mod served;
mod server;
mod sessions;
mod snapshot;
mod sniff;
mod socket;
mod stream;
mod target;
mod target_end;
mod tokens;
mod turns;
mod unreached;
mod ways;
mod web;

pub use client::{Client, ClientConfig, ClientLimits, ClientSettings, Event, Listener};
pub use connections::{Carried, ConnectionSnapshot};
pub use counters::{ByConfigId, Counter, Traffic};
pub use dial::{DialPlan, Dialed, Learned, Mode};
pub use driver::SessionStats;
pub use events::{Events, LogLine, Next};
pub use failure::{Code, Ended, Failure, Layer};
pub use fetch::{FetchPlan, Fetched};
pub use names::Resolved;
pub use os::{OwnedLocal, RawLocal, release};
pub use pending::{Done, Pending};
pub use served::ServedSession;
pub use server::{
    ApplyError, Server, ServerConfig, ServerLimits, ServerSettings, ServerStats, TokenStats,
};
pub use snapshot::{SessionSnapshot, Snapshot};
pub use stream::{Ending, Stream, StreamEnded};
pub use web::FaceConfig;
