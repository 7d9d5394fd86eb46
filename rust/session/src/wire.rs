//! What is spoken over the carrier: yamux with many streams, or simple mode with one.

use std::time::{Duration, Instant};

use ech_workers_yamux::{self as yamux, Connection, GoAwayCode, StreamId};

use crate::simple::{self, Simple};

/// The protocol of a session.
#[derive(Debug)]
pub(crate) enum Wire {
    Yamux(Box<Connection>),
    Simple(Simple),
}

impl Wire {
    /// Bytes in front of a stream's payload.
    pub(crate) const fn header_len(&self) -> usize {
        match self {
            Self::Yamux(_) => yamux::HEADER_LEN,
            Self::Simple(_) => 0,
        }
    }

    pub(crate) const fn is_simple(&self) -> bool {
        matches!(self, Self::Simple(_))
    }

    /// Opens a stream. In simple mode that is the request, too; in yamux the stream's first bytes are.
    pub(crate) fn open(&mut self, authority: &[u8]) -> Result<StreamId, yamux::OpenError> {
        match self {
            Self::Yamux(connection) => connection.open_with_data(),
            Self::Simple(simple) => simple
                .open(authority)
                .then_some(simple::STREAM)
                .ok_or(yamux::OpenError::IdsExhausted),
        }
    }

    /// How many bytes may be sent on the stream before a message has to end.
    pub(crate) fn poll_room(&mut self, id: StreamId, now: Instant) -> usize {
        match self {
            Self::Yamux(connection) => connection.poll_room(id, now),
            Self::Simple(simple) => simple.room(),
        }
    }

    /// Writes what goes before `length` bytes of the stream to the front of `space`, which has the first of them. Returns how
    /// many bytes of both make the message: all of them, or fewer where the message may not be whole.
    pub(crate) fn begin_message(&mut self, id: StreamId, length: usize, space: &mut [u8]) -> usize {
        match self {
            Self::Yamux(connection) => {
                let header = connection.data_header(id, length);
                if let Some(place) = space.get_mut(..yamux::HEADER_LEN) {
                    place.copy_from_slice(&header);
                }
                yamux::HEADER_LEN + length
            }
            Self::Simple(simple) => {
                simple.note_sent(length);
                // What does not fit into the space is none of the texts.
                space.get(..length).map_or(length, simple::sendable)
            }
        }
    }

    /// The end took bytes of the stream.
    pub(crate) fn consumed(&mut self, id: StreamId, bytes: usize, now: Instant) {
        match self {
            Self::Yamux(connection) => connection.consumed(id, bytes, now),
            Self::Simple(simple) => simple.consumed(bytes),
        }
    }

    /// Ends our direction of the stream.
    pub(crate) fn finish(&mut self, id: StreamId) {
        match self {
            Self::Yamux(connection) => connection.finish(id),
            Self::Simple(simple) => simple.finish(),
        }
    }

    /// Cuts the stream off.
    pub(crate) fn reset(&mut self, id: StreamId) {
        match self {
            Self::Yamux(connection) => connection.reset(id),
            Self::Simple(simple) => simple.reset(),
        }
    }

    /// Whether [`poll_control`](Self::poll_control) or [`poll_text`](Self::poll_text) may have something.
    pub(crate) fn has_control(&self) -> bool {
        match self {
            Self::Yamux(connection) => connection.has_control(),
            Self::Simple(simple) => simple.has_text(),
        }
    }

    /// Writes the next control frame to the front of `space`, and returns its length.
    pub(crate) fn poll_control(&mut self, space: &mut [u8], now: Instant) -> Option<usize> {
        match self {
            Self::Yamux(connection) => {
                let place = space.get_mut(..yamux::HEADER_LEN)?;
                place.copy_from_slice(&connection.poll_control(now)?);
                Some(yamux::HEADER_LEN)
            }
            Self::Simple(_) => None,
        }
    }

    /// The next control text.
    pub(crate) fn poll_text(&mut self) -> Option<Vec<u8>> {
        match self {
            Self::Yamux(_) => None,
            Self::Simple(simple) => simple.poll_text(),
        }
    }

    /// Says that this side takes no new streams, or, at the end, that the session is over.
    pub(crate) fn go_away(&mut self, code: GoAwayCode) {
        if let Self::Yamux(connection) = self {
            connection.go_away(code);
        }
    }

    /// The last words before the carrier's own goodbye.
    pub(crate) fn say_goodbye(&mut self) {
        match self {
            Self::Yamux(connection) => connection.go_away(GoAwayCode::Normal),
            Self::Simple(simple) => simple.say_goodbye(),
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) and [`poll_rested`](Self::poll_rested) are to be called.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        match self {
            Self::Yamux(connection) => connection.next_timeout(),
            Self::Simple(_) => None,
        }
    }

    /// When [`poll_rested`](Self::poll_rested) alone is to be called.
    pub(crate) fn next_rested(&self) -> Option<Instant> {
        match self {
            Self::Yamux(connection) => connection.next_rested(),
            Self::Simple(_) => None,
        }
    }

    /// # Errors
    /// The other end of the session did not answer a ping in time.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Result<(), yamux::Error> {
        match self {
            Self::Yamux(connection) => connection.handle_timeout(now),
            Self::Simple(_) => Ok(()),
        }
    }

    /// A stream that may be sent on again after a rest.
    pub(crate) fn poll_rested(&mut self, now: Instant) -> Option<StreamId> {
        match self {
            Self::Yamux(connection) => connection.poll_rested(now),
            Self::Simple(_) => None,
        }
    }

    /// Asks the other end of the session for a proof of life. Simple mode has no way to.
    pub(crate) fn ask_for_proof(&mut self, now: Instant) {
        if let Self::Yamux(connection) = self {
            connection.ping(now);
        }
    }

    /// Nothing was read for a while, so a ping under way has all its time again.
    pub(crate) fn excuse_ping(&mut self, now: Instant) {
        if let Self::Yamux(connection) = self {
            connection.excuse_ping(now);
        }
    }

    /// The last round trip measured from end to end.
    pub(crate) fn round_trip(&self) -> Option<Duration> {
        match self {
            Self::Yamux(connection) => connection.round_trip(),
            Self::Simple(_) => None,
        }
    }
}
