//! A request for a stream, before a session has taken it and when a session gives it back.

use std::time::Instant;

use crate::end::LocalEnd;

/// A stream to be opened by a client.
#[derive(Debug)]
pub struct Open<L> {
    /// The local end.
    pub end: L,
    /// The target, `host:port`.
    pub authority: Vec<u8>,
    /// Bytes for the target that were read from the end already.
    pub early: Vec<u8>,
    /// The end is told of success when the server confirms it, where the server does. Otherwise it is told at once.
    pub confirm: bool,
    /// Until when the stream must have been opened.
    pub deadline: Instant,
    /// The end was told of success already, on a session that gave the stream back.
    pub told: bool,
    /// The end gave all its bytes already; they are in `early`.
    pub ended: bool,
}

impl<L: LocalEnd> Open<L> {
    /// A request as it is made first.
    pub const fn new(end: L, authority: Vec<u8>, deadline: Instant) -> Self {
        Self {
            end,
            authority,
            early: Vec::new(),
            confirm: false,
            deadline,
            told: false,
            ended: false,
        }
    }
}

/// Why a session gives a stream back without having used it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Returned {
    /// The server takes no new streams on this session, or it is being retired.
    GoingAway,
    /// The session has as many streams as this side allows.
    Full,
    /// The server refused the stream before any acknowledgement: it has as many as it allows.
    Refused,
    /// All stream ids are used up.
    IdsExhausted,
    /// The session has ended.
    Ended,
}
