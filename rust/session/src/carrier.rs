//! What carries a session: a connection that transports messages inside records.

use std::fmt;
use std::ops::Range;
use std::task::{Context, Poll};

/// Something that arrived. Ranges lie in the buffer that [`Carrier::poll_receive`] returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    /// A part of a binary message.
    Bytes(Range<usize>),
    /// A part of a text message.
    Text {
        /// Where it lies.
        range: Range<usize>,
        /// These are the message's last bytes.
        end: bool,
    },
    /// The answer to a ping, with its payload.
    Pong(Vec<u8>),
    /// The peer closed the connection. Nothing follows.
    Closed(Closed),
}

/// How the peer closed the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// It said so; otherwise its bytes just ended, as TLS announced.
    pub goodbye: bool,
    /// The code it gave, if any (RFC 6455 section 7.4).
    pub code: Option<u16>,
    /// One line for people.
    pub description: String,
}

/// Why we close the connection. The numbers are those of RFC 6455 section 7.4.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseCode {
    /// The purpose of the connection is fulfilled.
    Normal = 1000,
    /// This end goes away: it is being stopped.
    GoingAway = 1001,
    /// The peer broke the protocol.
    ProtocolError = 1002,
    /// A message was too big.
    TooBig = 1009,
    /// Something failed on this end.
    InternalError = 1011,
}

/// A connection that carries one session.
///
/// The session writes straight into the outgoing records: it asks for space with [`space`](Self::space) or
/// [`spaces`](Self::spaces), fills it from the front, says how much it filled with [`add`](Self::add), and ends the
/// message with [`commit`](Self::commit). The borders of such messages mean nothing. What arrived is lent out as ranges of one
/// buffer. Neither way copies a byte.
///
/// A carrier answers the peer's pings by itself.
pub trait Carrier {
    /// Why the connection broke.
    type Error: fmt::Debug + fmt::Display;

    /// Opens what has arrived, up to one full buffer. `incoming` is cleared and gets what it consists of, in order; it
    /// may stay empty. The buffer is valid until the next call of any method.
    ///
    /// # Errors
    /// The connection broke, or the peer broke its protocol.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        incoming: &mut Vec<Incoming>,
    ) -> Poll<Result<&[u8], Self::Error>>;

    /// Ready when [`space`](Self::space) has room that is worth filling. What is gathered goes out first if need be.
    ///
    /// # Errors
    /// The connection broke.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>>;

    /// The free space of the message being filled, behind what was added to it already. Empty when there is none.
    fn space(&mut self) -> &mut [u8];

    /// The spaces of the next messages, at most `most`, each a record of its own. Only when nothing is being filled.
    /// Every one but the last must be filled to its end and committed, in order, for the next one to be where it is.
    fn spaces(&mut self, most: usize) -> impl Iterator<Item = &mut [u8]>;

    /// How many [`spaces`](Self::spaces) one message may fill, beginning with the first of them. More than 1 where the peer
    /// prefers few long messages.
    fn spaces_per_message(&self) -> usize {
        1
    }

    /// Says that `n` more bytes of the space belong to the message.
    fn add(&mut self, n: usize);

    /// Bytes in the message being filled.
    fn filled(&self) -> usize;

    /// Ends the message being filled. Messages that are committed one after the other share a record where they fit.
    ///
    /// `following`: it goes on with so many bytes, which the next [`spaces`](Self::spaces) have, as far as
    /// [`spaces_per_message`](Self::spaces_per_message) allows. They are added and committed next, before anything else is
    /// done.
    ///
    /// # Errors
    /// The connection broke.
    fn commit(&mut self, following: usize) -> Result<(), Self::Error>;

    /// Sends a control text of simple mode as one message of its own, however small the records are, before everything that
    /// is committed from now on. Only when nothing is being filled.
    fn text(&mut self, text: Vec<u8>);

    /// Sends a ping with `payload` (at most 125 bytes) with the next record.
    fn ping(&mut self, payload: &[u8]);

    /// Sends all that is committed.
    ///
    /// # Errors
    /// The connection broke.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>>;

    /// Puts a goodbye with `code` behind all that is committed, once. If the peer broke the carrier's own protocol, the
    /// carrier says so instead; if the peer closed with a code, that is echoed.
    fn close(&mut self, code: CloseCode);

    /// Sends what is left and ends the connection.
    ///
    /// # Errors
    /// The connection broke.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>>;
}
