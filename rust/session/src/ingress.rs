//! From the carrier to the streams: what arrived is parsed where it lies, and all payload of one stream is handed on
//! together.

use std::ops::Range;
use std::time::Duration;

use ech_workers_yamux::{self as yamux, StreamId};

use crate::carrier::{Closed, Incoming};
use crate::end::LocalEnd;
use crate::event::Fault;
use crate::streams::Streams;
use crate::wire::Wire;
use crate::wire_event::WireEvent;

/// So many parts of a batch does a session keep memory for: what one full receive buffer has, unless its frames are tiny.
pub(crate) const PARTS_KEPT: usize = 256;

/// Payloads of one buffer, in the order of their arrival.
#[derive(Debug, Default)]
pub(crate) struct Ingress {
    deliveries: Vec<(StreamId, Range<usize>)>,
}

/// What else a buffer contained.
#[derive(Debug, Default)]
pub(crate) struct Arrived {
    /// Payload of messages: the other end of the session is alive.
    pub(crate) messages: bool,
    /// A round trip was measured from end to end.
    pub(crate) end_to_end: Option<Duration>,
    /// The peer closed the connection.
    pub(crate) closed: Option<Closed>,
}

impl Ingress {
    /// Takes what arrived, which lies in `buffer`.
    ///
    /// # Errors
    /// The peer broke the protocol.
    pub(crate) fn receive<L: LocalEnd>(
        &mut self,
        incoming: &[Incoming],
        buffer: &[u8],
        streams: &mut Streams<L>,
    ) -> Result<Arrived, Fault> {
        let mut arrived = Arrived::default();
        let outcome = incoming
            .iter()
            .try_for_each(|part| self.receive_part(part, buffer, streams, &mut arrived));
        // What came before a fault, or before the end, still reaches its stream.
        self.deliver(buffer, streams);
        outcome.map(|()| arrived)
    }

    fn receive_part<L: LocalEnd>(
        &mut self,
        part: &Incoming,
        buffer: &[u8],
        streams: &mut Streams<L>,
        arrived: &mut Arrived,
    ) -> Result<(), Fault> {
        match part {
            Incoming::Bytes(range) => {
                arrived.messages = true;
                self.receive_bytes(range.clone(), buffer, streams, arrived)
            }
            Incoming::Text { range, end } => {
                arrived.messages = true;
                let Wire::Simple(simple) = &mut streams.wire else {
                    // Texts mean nothing in yamux mode.
                    return Ok(());
                };
                let text = buffer.get(range.clone()).unwrap_or_default();
                if let Some(event) = simple.receive(text, *end).map_err(Fault::Text)? {
                    self.deliver(buffer, streams);
                    streams.handle_event(event);
                }
                Ok(())
            }
            // The session looks at these.
            Incoming::Pong(_) => Ok(()),
            Incoming::Closed(closed) => {
                arrived.closed = Some(closed.clone());
                Ok(())
            }
        }
    }

    fn receive_bytes<L: LocalEnd>(
        &mut self,
        mut range: Range<usize>,
        buffer: &[u8],
        streams: &mut Streams<L>,
        arrived: &mut Arrived,
    ) -> Result<(), Fault> {
        let connection = match &mut streams.wire {
            Wire::Yamux(connection) => connection,
            Wire::Simple(simple) => {
                if simple.may_receive() {
                    self.deliveries.push((crate::simple::STREAM, range));
                }
                return Ok(());
            }
        };
        let mut connection = connection;
        // Until no event comes: the end of a stream may be left to report when all bytes are taken.
        loop {
            let input = buffer.get(range.clone()).unwrap_or_default();
            let (used, event) = connection
                .receive(input, streams.now)
                .map_err(Fault::Yamux)?;
            let start = range.start;
            range.start += used;
            let event = match event {
                None => return Ok(()),
                Some(yamux::Event::Data {
                    stream,
                    range: payload,
                }) => {
                    self.deliveries
                        .push((stream, start + payload.start..start + payload.end));
                    continue;
                }
                Some(yamux::Event::Pong { round_trip }) => {
                    arrived.end_to_end = Some(round_trip);
                    continue;
                }
                Some(yamux::Event::Opened(id)) => WireEvent::Opened(id),
                Some(yamux::Event::Finished(id)) => WireEvent::Finished(id),
                Some(yamux::Event::Reset(id)) => WireEvent::Reset(id),
                Some(yamux::Event::Refused(id)) => WireEvent::Refused(id),
                Some(yamux::Event::Writable(id)) => WireEvent::Writable(id),
                Some(yamux::Event::GoAway(code)) => WireEvent::GoAway(code),
            };
            // What came before the end of a stream must reach it before the end does.
            self.deliver(buffer, streams);
            streams.handle_event(event);
            connection = match &mut streams.wire {
                Wire::Yamux(connection) => connection,
                Wire::Simple(_) => return Ok(()),
            };
        }
    }

    /// Hands the payloads gathered so far to their streams, all of one stream together.
    fn deliver<L: LocalEnd>(&mut self, buffer: &[u8], streams: &mut Streams<L>) {
        if self.deliveries.is_empty() {
            return;
        }
        // Stable: the payloads of one stream stay in order.
        self.deliveries.sort_by_key(|(id, _)| id.value());
        for group in self.deliveries.chunk_by(|(a, _), (b, _)| a == b) {
            if let Some((id, _)) = group.first() {
                streams.receive(*id, group, buffer);
            }
        }
        self.deliveries.clear();
        self.deliveries.shrink_to(PARTS_KEPT);
    }
}
