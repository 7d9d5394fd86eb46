//! What a session is made with.

use std::sync::Arc;
use std::time::Duration;

use ech_workers_yamux as yamux;

use crate::ledger::{Allowance, Ledger};

/// The protocol of a session.
#[derive(Debug, Clone)]
pub enum Mode {
    /// Many streams. Keep-alive pings are the session's own: those of the configuration are not used.
    Yamux(yamux::Config),
    /// One stream.
    Simple {
        /// Bytes that this side takes at a time. The server has announced that it has windows (client), or announces it (server):
        /// both directions have one. `None`: neither has.
        window: Option<usize>,
    },
}

/// How long things may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// From a client's request to the server's answer.
    pub answer: Duration,
    /// Without a byte either way, a stream ends.
    pub idle: Duration,
    /// The same for a stream with one direction ended. A half-close that is held back is sent then.
    pub half_closed_idle: Duration,
}

/// What a session is made with.
#[derive(Debug, Clone)]
pub struct Config {
    /// The protocol.
    pub mode: Mode,
    /// The server understands the extended forms (client), or announced them (server).
    pub extended: bool,
    /// Times.
    pub limits: Limits,
    /// The longest time between two keep-alive pings.
    pub ping_interval: Duration,
    /// How long the answer to one may take.
    pub ping_timeout: Duration,
    /// Memory held for peers, of the whole process.
    pub memory: Arc<Ledger>,
    /// What of it this session may hold before nothing more is read from its peer.
    pub memory_share: Allowance,
    /// A client's owner is told of a stream that moves so many bytes within some seconds, since that may become a bulk transfer.
    /// `None`: of bulk transfers alone.
    pub early_bulk: Option<u64>,
    /// For random numbers that protect nothing.
    pub seed: u64,
}
