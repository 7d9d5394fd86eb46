//! Bytes that come in: from decrypted records to the sockets.

use std::io::IoSlice;
use std::ops::Range;
use std::task::Context;

use ech_workers_websocket::{self as websocket, MessageKind};
use ech_workers_yamux::{self as yamux, StreamId};

use super::{Core, End, State, yamux_failure};
use crate::endpoint::Backlog;
use crate::failure::{Code, Ended, Failure, Layer};
use crate::preamble::{self, Preamble, Status};
use crate::stream::StreamEnded;

/// The most payloads of one stream handed to its socket in one system call.
const DELIVER_PIECES: usize = 16;

impl Core {
    /// Takes the contents of decrypted records, which lie in `bytes`: parses them in place and hands the payloads to the
    /// sockets, all of one stream in one go.
    pub(super) fn absorb(
        &mut self,
        bytes: &mut [u8],
        records: &[Range<usize>],
    ) -> Result<(), Failure> {
        for record in records {
            self.absorb_record(bytes, record.clone())?;
        }
        self.deliver(bytes);
        Ok(())
    }

    fn absorb_record(&mut self, bytes: &mut [u8], record: Range<usize>) -> Result<(), Failure> {
        let mut at = record.start;
        while at < record.end {
            let (used, event) =
                self.decoder
                    .decode(&mut bytes[at..record.end])
                    .map_err(|error| {
                        Failure::new(
                            Layer::WebSocket,
                            Code::WebSocketProtocol,
                            format!("the peer broke RFC 6455: {error}"),
                        )
                    })?;
            match event {
                Some(websocket::Event::Data {
                    kind: MessageKind::Binary,
                    range,
                    ..
                }) => {
                    self.absorb_frames(bytes, at + range.start..at + range.end)?;
                }
                Some(websocket::Event::Ping(payload)) => self.pong = Some(payload),
                Some(websocket::Event::Close(reason)) => {
                    self.deliver(bytes);
                    return Err(closed_by_peer(reason.as_ref()));
                }
                // Texts and pongs mean nothing in this mode.
                Some(websocket::Event::Data { .. } | websocket::Event::Pong(_)) | None => {}
            }
            at += used;
        }
        Ok(())
    }

    fn absorb_frames(&mut self, bytes: &[u8], mut range: Range<usize>) -> Result<(), Failure> {
        // Until no event comes: the end of a stream may be left to report when all bytes are taken.
        loop {
            let (used, event) = self
                .mux
                .receive(&bytes[range.clone()], self.now)
                .map_err(|error| yamux_failure(&error))?;
            match event {
                Some(yamux::Event::Data {
                    stream,
                    range: payload,
                }) => {
                    self.deliveries.push((
                        stream,
                        range.start + payload.start..range.start + payload.end,
                    ));
                }
                Some(other) => {
                    // What came before the end of a stream must reach it before the end does.
                    self.deliver(bytes);
                    self.heed(&other);
                }
                None => return Ok(()),
            }
            range.start += used;
        }
    }

    fn heed(&mut self, event: &yamux::Event) {
        match *event {
            yamux::Event::Opened(id) => {
                let waker = self.readiness.waker(id);
                self.insert(id, waker, State::Preamble(Vec::new()), Vec::new());
            }
            yamux::Event::Finished(id) => {
                if let Some(stream) = self.streams.get_mut(&id) {
                    stream.remote_finished = true;
                    stream.active = self.now;
                    if let State::Connected(endpoint) = &mut stream.state {
                        // A program that is gone shows it at the next read.
                        let _ =
                            endpoint.end_of_tunnel(&mut Context::from_waker(stream.waker.waker()));
                    }
                    self.settle(id);
                }
            }
            yamux::Event::Reset(id) => self.reset(id),
            yamux::Event::Writable(id) => self.queue(id),
            yamux::Event::Pong { round_trip } => {
                self.stats.rtt_us.set(round_trip.as_micros().max(1) as u64);
            }
            yamux::Event::GoAway(code) => {
                self.retiring = true;
                if let End::Client { observer, .. } = &self.end {
                    observer.refused(gone_away(code));
                }
            }
            yamux::Event::Data { .. } => {}
        }
    }

    pub(super) fn reset(&mut self, id: StreamId) {
        match self.streams.get_mut(&id) {
            // The peer had sent everything: what waits is still delivered.
            Some(stream) if stream.remote_finished => {
                stream.finished = true;
                self.settle(id);
            }
            _ => self.remove(id, false, StreamEnded::Reset),
        }
    }

    /// Hands the payloads gathered so far to their streams, all of one stream in one go.
    fn deliver(&mut self, bytes: &[u8]) {
        if self.deliveries.is_empty() {
            return;
        }
        let mut deliveries = std::mem::take(&mut self.deliveries);
        deliveries.sort_by_key(|(id, _)| *id);
        for group in deliveries.chunk_by(|a, b| a.0 == b.0) {
            self.deliver_to(group[0].0, group, bytes);
        }
        deliveries.clear();
        self.deliveries = deliveries;
    }

    fn deliver_to(&mut self, id: StreamId, pieces: &[(StreamId, Range<usize>)], bytes: &[u8]) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        stream.active = self.now;
        if let State::Connected(endpoint) = &mut stream.state {
            let mut written = 0;
            self.received += pieces
                .iter()
                .map(|(_, range)| range.len() as u64)
                .sum::<u64>();
            for pieces in pieces.chunks(DELIVER_PIECES) {
                let mut slices = [IoSlice::new(&[]); DELIVER_PIECES];
                for (slot, (_, range)) in slices.iter_mut().zip(pieces) {
                    *slot = IoSlice::new(&bytes[range.clone()]);
                }
                match endpoint.deliver(
                    &mut Context::from_waker(stream.waker.waker()),
                    &slices[..pieces.len()],
                ) {
                    Ok(n) => written += n,
                    Err(_) => {
                        self.remove(id, true, StreamEnded::Reset);
                        return;
                    }
                }
            }
            self.mux.consumed(id, written, self.now);
            return;
        }
        for (_, range) in pieces {
            self.deliver_early(id, &bytes[range.clone()]);
        }
    }

    /// Bytes for a stream whose beginning is not over.
    fn deliver_early(&mut self, id: StreamId, bytes: &[u8]) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        match &mut stream.state {
            State::Preamble(_) if stream.local_ended => {
                self.mux.consumed(id, bytes.len(), self.now);
            }
            State::Preamble(partial) => {
                partial.extend_from_slice(bytes);
                match preamble::read(partial) {
                    Preamble::Partial => {}
                    Preamble::Invalid(why) => {
                        tracing::debug!("stream refused: {why}");
                        self.remove(id, true, StreamEnded::Reset);
                    }
                    Preamble::Whole {
                        target,
                        extended,
                        used,
                    } => {
                        let mut waiting = Backlog::default();
                        waiting.push(&partial[used..]);
                        self.received += waiting.len() as u64;
                        stream.state = State::Connecting { waiting, extended };
                        self.mux.consumed(id, used, self.now);
                        if let End::Server {
                            connector,
                            commands,
                        } = &self.end
                        {
                            connector.connect(id, target, commands.clone());
                        }
                    }
                }
            }
            State::Connecting { waiting, .. } => {
                self.received += bytes.len() as u64;
                waiting.push(bytes);
            }
            State::Answer { partial, .. } => {
                partial.extend_from_slice(bytes);
                match preamble::read_answer(partial) {
                    Ok(None) => {}
                    Ok(Some((status, reason, used))) => self.answered(id, status, &reason, used),
                    Err(why) => self.answered(id, Status::General, why, 0),
                }
            }
            State::Connected(endpoint) => {
                self.received += bytes.len() as u64;
                match endpoint.deliver(
                    &mut Context::from_waker(stream.waker.waker()),
                    &[IoSlice::new(bytes)],
                ) {
                    Ok(written) => self.mux.consumed(id, written, self.now),
                    Err(_) => self.remove(id, true, StreamEnded::Reset),
                }
            }
            State::Draining { .. } => self.mux.consumed(id, bytes.len(), self.now),
        }
    }

    pub(super) fn answered(&mut self, id: StreamId, status: Status, reason: &str, used: usize) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        let draining = State::Preamble(Vec::new());
        let State::Answer {
            mut endpoint,
            reply,
            partial,
        } = std::mem::replace(&mut stream.state, draining)
        else {
            return;
        };
        self.mux.consumed(id, used, self.now);
        if status == Status::Succeeded {
            let rest = &partial[used..];
            self.received += rest.len() as u64;
            let mut context = Context::from_waker(stream.waker.waker());
            let outcome = reply
                .map_or(Ok(()), |reply| reply.succeed(&mut endpoint, &mut context))
                .and_then(|()| endpoint.deliver(&mut context, &[IoSlice::new(rest)]));
            stream.state = State::Connected(endpoint);
            match outcome {
                Ok(written) => {
                    self.mux.consumed(id, written, self.now);
                    // A stream of the API has its socket from now on.
                    self.queue(id);
                }
                Err(_) => self.remove(id, true, StreamEnded::Reset),
            }
            return;
        }
        if let End::Client { observer, .. } = &self.end {
            observer.target_failed(reason);
        }
        self.forget(id);
        self.mux.reset(id);
        match reply {
            Some(reply) => reply.refuse(endpoint, status.into(), "", reason),
            None => endpoint.socket.abort(StreamEnded::Reset),
        }
    }
}

/// A go-away: the server stops, or it has found fault with us.
fn gone_away(code: yamux::GoAwayCode) -> Ended {
    match code {
        yamux::GoAwayCode::Normal => Ended::GoneAway,
        broken => Ended::Lost(Failure::new(
            Layer::Yamux,
            Code::YamuxProtocol,
            format!("the server gave up the session: {broken:?}"),
        )),
    }
}

fn closed_by_peer(reason: Option<&websocket::CloseReason>) -> Failure {
    let message = match reason {
        Some(reason) => format!("the other end closed the WebSocket: {reason}"),
        None => "the other end closed the WebSocket".to_owned(),
    };
    Failure::new(Layer::WebSocket, Code::WebSocketClosed, message)
}
