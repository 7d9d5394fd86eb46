//! What a session may use, and how it is kept alive.

use std::sync::Arc;
use std::time::Duration;

use crate::frame::INITIAL_WINDOW;
use crate::window::WindowBudget;

/// Which side of the session we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Opens streams with odd ids.
    Client,
    /// Opens streams with even ids.
    Server,
}

/// Limits and times of a session. Clones share the `budget`.
#[derive(Clone, Debug)]
pub struct Config {
    /// The largest receive window of one stream, in bytes; between 256 KiB, which the specification gives every stream,
    /// and 1 GiB.
    pub receive_window_max: u32,
    /// What the windows of all streams of the session may hold together beyond their first 256 KiB each, in bytes.
    pub session_window_max: usize,
    /// The same for all sessions of the process.
    pub budget: Arc<WindowBudget>,
    /// Streams that may be open at a time, of both sides together. Those that the peer opens beyond are refused.
    pub max_streams: usize,
    /// Streams that may wait for the peer's acknowledgement at a time. A hashicorp peer resets what exceeds its own
    /// `AcceptBacklog`, 256 unless set otherwise.
    pub accept_backlog: usize,
    /// Time from one keep-alive ping to the next. `Duration::MAX`: no pings but those that somebody asks for.
    pub ping_interval: Duration,
    /// A ping without an answer for this long, during which nothing else arrived either, ends the session. While other
    /// bytes arrive the answer may be queued behind them and has four times as long.
    pub ping_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            receive_window_max: 16 << 20,
            session_window_max: 64 << 20,
            budget: Arc::new(WindowBudget::new(256 << 20)),
            max_streams: 4096,
            accept_backlog: 256,
            ping_interval: Duration::from_secs(20),
            ping_timeout: Duration::from_secs(15),
        }
    }
}

impl Config {
    /// `receive_window_max` within what arithmetic and the specification allow.
    pub(crate) fn window_max(&self) -> u32 {
        self.receive_window_max.clamp(INITIAL_WINDOW, 1 << 30)
    }
}
