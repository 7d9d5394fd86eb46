//! What a client reports to its owner.

use std::net::SocketAddr;
use std::time::Duration;

use crate::client::dial::{Dialed, Learned};
use crate::client::fetch::Fetched;
use crate::failure::{Ended, Failure};

/// What the client reports.
#[derive(Debug)]
pub enum Event {
    /// A dial succeeded.
    SessionUp {
        /// The dial's number.
        dial: u64,
        /// The session's number.
        session: u64,
        /// The number of its server.
        upstream: u32,
        /// How it was made.
        dialed: Box<Dialed>,
    },
    /// A session takes no new streams any more.
    SessionLost {
        /// Its number.
        session: u64,
        /// The number of its server.
        upstream: u32,
        /// How it ended, or that the server takes no new streams on it.
        ended: Ended,
        /// How long it was there.
        age: Duration,
        /// Bytes of payload that came over it.
        received: u64,
    },
    /// A stream would have gone to this server, and each of its sessions has as many streams as the server allows. Told again
    /// once a second while that is so.
    SessionsFull {
        /// The number of the server.
        upstream: u32,
    },
    /// A dial failed; 0 is one made for a connection in simple mode.
    DialFailed {
        /// The dial's number.
        dial: u64,
        /// The number of the server.
        upstream: u32,
        /// Why.
        failure: Failure,
    },
    /// A dial to this server learned something worth keeping.
    Learned {
        /// The number of the server.
        upstream: u32,
        /// Its name.
        server_name: String,
        /// What.
        what: Learned,
    },
    /// A session has another number of bulk transfers.
    BulkChanged {
        /// Its number.
        session: u64,
        /// The number of its server.
        upstream: u32,
        /// How many.
        streams: u64,
        /// A stream moves so much that it may become one. Never on a short path.
        growing: bool,
    },
    /// A server was to send back 64 KiB.
    Echoed {
        /// The number that was given for it.
        echo: u64,
        /// The number of the server.
        upstream: u32,
        /// Where a connection of its own went to.
        address: Option<SocketAddr>,
        /// What came of it.
        outcome: Echo,
        /// Bytes of payload that have come over the session by then, this one's or others'.
        received: u64,
    },
    /// A server cannot reach a target, and the stream goes to another one.
    Unreached {
        /// The number of the server.
        upstream: u32,
        /// The kind of failure, as a word.
        kind: &'static str,
        /// The server's words, which name the target.
        reason: String,
        /// Every server that has said so of this target, to this stream.
        tried: Vec<u32>,
    },
    /// The addresses of this name are wanted, for connections that go straight to it. In lower case, without a final dot.
    NameWanted(String),
    /// An exchange succeeded.
    Fetched {
        /// Its number.
        fetch: u64,
        /// The answer.
        fetched: Fetched,
    },
    /// An exchange failed.
    FetchFailed {
        /// Its number.
        fetch: u64,
        /// Why.
        failure: Failure,
    },
}

/// What came of an exchange with the reserved target, to which a server sends back what it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Echo {
    /// Everything came back, in so much time from the first byte sent.
    Passed(Duration),
    /// It did not, and nothing else came from the server either.
    Stopped,
    /// It says nothing of the way: the server does not do this, the session ended, or it took too long.
    Failed,
    /// Nothing was sent: the session has streams.
    Busy,
}
