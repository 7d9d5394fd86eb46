//! What a session tells its owner: what happened, and how it ended.

use std::fmt;

use ech_workers_yamux::{self as yamux, GoAwayCode};

use crate::bulk::BulkLoad;
use crate::carrier::Closed;
use crate::end::Refusal;
use crate::open::{Open, Returned};

/// What happened while a session ran.
#[derive(Debug)]
pub enum Event<L> {
    /// The peer takes no new streams. Those that are open go on.
    GoneAway(GoAwayCode),
    /// A target could not be reached.
    TargetFailed(Refusal),
    /// A stream that was not begun, to be placed elsewhere.
    Returned(Open<L>, Returned),
    /// A client's streams move much, or do not any more.
    BulkChanged(BulkLoad),
    /// The server did not connect a stream's target, and another server may. The stream is to be placed there, or its end to
    /// be refused: nothing was said to it of this.
    Unreached(Open<L>, Refusal),
}

/// How a session ended.
#[derive(Debug)]
pub enum Ended<E> {
    /// It was retired, and its last stream has ended.
    Retired,
    /// This side ended it.
    Shutdown,
    /// It broke.
    Lost(Lost<E>),
}

/// Why a session broke.
#[derive(Debug)]
pub enum Lost<E> {
    /// The carrier broke.
    Carrier(E),
    /// The peer closed the carrier.
    Closed(Closed),
    /// The peer broke the protocol of the session.
    Fault(Fault),
    /// The peer did not answer a ping in time.
    PingTimeout,
}

/// How the peer broke the protocol of the session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The yamux protocol.
    Yamux(yamux::Error),
    /// A text of simple mode.
    Text(&'static str),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Yamux(error) => write!(f, "{error}"),
            Self::Text(why) => f.write_str(why),
        }
    }
}
