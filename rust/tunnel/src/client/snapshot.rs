//! The client's numbers at one moment, for whoever shows them.

use std::net::SocketAddr;
use std::time::Duration;

/// One session at one moment.
#[derive(Debug, Clone)]
pub struct SessionSnapshot {
    /// Its number.
    pub session: u64,
    /// The number of its server.
    pub upstream: u32,
    /// The server's address.
    pub address: SocketAddr,
    /// It takes no new streams.
    pub retiring: bool,
    /// Open streams.
    pub streams: u64,
    /// Streams so far.
    pub streams_total: u64,
    /// How long it is there.
    pub age: Duration,
    /// The last measured round trip.
    pub rtt: Option<Duration>,
    /// The round trip of the path, with little of the queue that the session's own bytes make on it.
    pub path: Option<Duration>,
    /// Bytes to targets.
    pub bytes_up: u64,
    /// Bytes from targets.
    pub bytes_down: u64,
    /// How long ago the last byte came from the server.
    pub heard: Duration,
    /// For how long nothing came after the server was asked for a sign of life; `None` when nothing is waited for.
    pub unanswered: Option<Duration>,
}

/// What was counted for one server so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UpstreamSnapshot {
    /// The number of the server.
    pub upstream: u32,
    /// Dials.
    pub dials_total: u64,
    /// Dials that failed.
    pub dials_failed: u64,
    /// ECH rejections met with retry configurations.
    pub ech_retries: u64,
    /// How long the server took to be connected to in the last dial that came so far: a round trip, or more if a packet was
    /// lost.
    pub connect: Option<Duration>,
    /// Bytes to targets.
    pub bytes_up: u64,
    /// Bytes from targets.
    pub bytes_down: u64,
}

/// The client's counters at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// How long the client is there.
    pub uptime: Duration,
    /// Local connections now.
    pub connections: u64,
    /// Local connections so far.
    pub connections_total: u64,
    /// Requests that could not be served.
    pub connections_failed: u64,
    /// Those of them whose target the server could not reach.
    pub targets_failed: u64,
    /// The last such target, and why.
    pub last_target_failure: Option<String>,
    /// Local connections waiting for a session.
    pub connections_waiting: u64,
    /// Connections so far that went straight to their target.
    pub direct_total: u64,
    /// Connections so far that a rule has blocked.
    pub blocked_total: u64,
    /// Bytes to targets.
    pub bytes_up: u64,
    /// Bytes from targets.
    pub bytes_down: u64,
    /// Dials so far.
    pub dials_total: u64,
    /// Dials that failed.
    pub dials_failed: u64,
    /// ECH rejections met with retry configurations.
    pub ech_retries: u64,
    /// What of these belongs to which server, of those that were dialled.
    pub upstreams: Vec<UpstreamSnapshot>,
    /// The sessions.
    pub sessions: Vec<SessionSnapshot>,
}
