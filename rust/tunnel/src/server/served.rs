//! A session as the server's operator and the server itself look at it: whose it is, what it carries, whether it would be missed.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::driver::SessionStats;
use crate::server::tokens::Holder;

/// A client that is there asks for a sign of life when nothing else has come for 28 s: after this time without a word the
/// streams of a session say nothing of whether anybody uses them.
const SILENT: Duration = Duration::from_secs(40);

/// A session, from the answer to its upgrade on.
#[derive(Debug)]
pub(crate) struct Served {
    peer: SocketAddr,
    /// Whose token it has.
    holder: Arc<Holder>,
    since: Instant,
    /// Known from the first message on.
    mode: OnceLock<&'static str>,
    pub(crate) stats: Arc<SessionStats>,
}

/// One session on the server at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedSession {
    /// Its number, which its log lines have too.
    pub session: u64,
    /// What the operator calls its token.
    pub label: String,
    /// The client's address.
    pub peer: SocketAddr,
    /// `yamux` or `simple`; `None` while the client has said nothing.
    pub mode: Option<&'static str>,
    /// Open streams.
    pub streams: u64,
    /// Streams so far.
    pub streams_total: u64,
    /// Bytes to targets.
    pub bytes_up: u64,
    /// Bytes from targets.
    pub bytes_down: u64,
    /// How long it is there.
    pub age: Duration,
}

impl Served {
    pub(crate) fn new(peer: SocketAddr, holder: Arc<Holder>) -> Self {
        Self {
            peer,
            holder,
            since: Instant::now(),
            mode: OnceLock::new(),
            stats: Arc::default(),
        }
    }

    pub(crate) const fn peer(&self) -> SocketAddr {
        self.peer
    }

    pub(crate) const fn holder(&self) -> &Arc<Holder> {
        &self.holder
    }

    /// The first message has said which mode it is.
    pub(crate) fn begin(&self, mode: &'static str) {
        // There is one first message.
        let _ = self.mode.set(mode);
    }

    /// Whether nobody would miss it: it has no stream, or its client has been silent for so long that it is gone.
    pub(crate) fn is_idle(&self, now: Instant) -> bool {
        let heard = self.stats.heard.moment().unwrap_or(self.since);
        self.stats.streams.value() == 0 || now.saturating_duration_since(heard) > SILENT
    }

    /// At this moment. `session`: its number.
    pub(crate) fn snapshot(&self, session: u64, now: Instant) -> ServedSession {
        let stats = &self.stats;
        ServedSession {
            session,
            label: self.holder.label.clone(),
            peer: self.peer,
            mode: self.mode.get().copied(),
            streams: stats.streams.value(),
            streams_total: stats.streams_total.value(),
            bytes_up: stats.traffic.up.value(),
            bytes_down: stats.traffic.down.value(),
            age: now.saturating_duration_since(self.since),
        }
    }
}
