//! Bytes that go out: from the sockets straight into the next records.

use std::io::IoSliceMut;
use std::task::{Context, Poll};

use ech_workers_tls::TlsStream;
use ech_workers_websocket::OpCode;
use ech_workers_yamux::StreamId;

use super::{Core, FRAME_HEADER, State};
use crate::failure::Failure;
use crate::stream::StreamEnded;

/// Records that a bulk stream may fill with one read: all that go out with one system call.
const BULK_RECORDS: usize = 16;
/// With less window than this, several records would not be filled anyway.
const BULK_WINDOW_MIN: usize = 16 * 1024;
/// Below this much room a record is sealed rather than filled with another stream's bytes.
const ROOM_MIN: usize = 1024;
/// Records sent before other sessions on the thread get their turn.
const TURN_RECORDS: usize = 64;
/// Streams that have little to send go before those that have much, but no more than this many in a row.
const PROMPT_MAX: u32 = 8;

impl Core {
    /// Fills records with control frames and with what the sockets give, until there is nothing left or no room.
    pub(super) fn send(
        &mut self,
        tls: &mut TlsStream,
        cx: &mut Context<'_>,
    ) -> Result<bool, Failure> {
        let broken = |error: std::io::Error| Failure::transport(&error);
        let mut records = 0;
        while records < TURN_RECORDS {
            if tls.poll_ready(cx).map_err(broken)?.is_pending() {
                return Ok(false);
            }
            if let Some(payload) = self.pong.take() {
                self.outgoing
                    .send_whole(tls, OpCode::Pong, &payload)
                    .map_err(broken)?;
                continue;
            }
            let many = self.fill_many(tls).map_err(broken)?;
            if many > 0 {
                records += many;
                continue;
            }
            self.fill(tls);
            if self.outgoing.used() == 0 {
                return Ok(false);
            }
            self.outgoing.send(tls, OpCode::Binary).map_err(broken)?;
            records += 1;
        }
        Ok(true)
    }

    /// The stream whose turn it is.
    fn next_sendable(&mut self) -> Option<StreamId> {
        if (self.prompt_turns < PROMPT_MAX || self.sendable.is_empty())
            && let Some(id) = self.prompt.pop_front()
        {
            self.prompt_turns += 1;
            return Some(id);
        }
        self.prompt_turns = 0;
        self.sendable.pop_front()
    }

    /// The bulk stream whose turn it is fills several records in one system call. Returns how many; 0: it is not the turn
    /// of one, or something has to go before.
    fn fill_many(&mut self, tls: &mut TlsStream) -> std::io::Result<usize> {
        if self.prompt_turns < PROMPT_MAX && !self.prompt.is_empty() {
            return Ok(0);
        }
        let Some(&id) = self.sendable.front() else {
            return Ok(0);
        };
        let Some(stream) = self.streams.get_mut(&id) else {
            return Ok(0);
        };
        let State::Connected(endpoint) = &stream.state else {
            return Ok(0);
        };
        let mut window = self.mux.poll_room(id, self.now);
        if !stream.bulk
            || !stream.first.is_empty()
            || stream.local_ended
            || !endpoint.is_transparent()
            || window <= BULK_WINDOW_MIN
            || self.mux.has_control()
        {
            return Ok(0);
        }
        let (mut whole, mut room) = (0, 0);
        let mut spaces = Vec::with_capacity(BULK_RECORDS);
        for space in self.outgoing.spaces(tls, BULK_RECORDS) {
            whole = whole.max(space.len() - FRAME_HEADER);
            let length = whole.min(window);
            window -= length;
            room += length;
            spaces.push(IoSliceMut::new(
                &mut space[FRAME_HEADER..FRAME_HEADER + length],
            ));
            if window == 0 {
                break;
            }
        }
        let mut context = Context::from_waker(stream.waker.waker());
        let mut rest = match endpoint.poll_read_vectored(&mut context, &mut spaces) {
            Poll::Ready(Ok(n)) => n,
            // The socket tells of its reset once: the next read would look like a clean end.
            Poll::Ready(Err(_)) => {
                self.sendable.pop_front();
                self.remove(id, true, StreamEnded::Reset);
                return Ok(0);
            }
            Poll::Pending => 0,
        };
        stream.bulk = rest == room;
        if rest == 0 {
            return Ok(0);
        }
        self.sendable.rotate_left(1);
        self.prompt_turns = 0;
        stream.active = self.now;
        self.sent += rest as u64;
        let mut records = 0;
        while rest > 0 {
            let length = whole.min(rest);
            rest -= length;
            let header = self.mux.data_header(id, length);
            self.outgoing.space(tls)[..FRAME_HEADER].copy_from_slice(&header);
            self.outgoing.add(FRAME_HEADER + length);
            self.outgoing.send(tls, OpCode::Binary)?;
            records += 1;
        }
        Ok(records)
    }

    fn fill(&mut self, tls: &mut TlsStream) {
        loop {
            let space = self.outgoing.space(tls);
            if space.len() < ROOM_MIN && self.outgoing.used() > 0 || space.len() <= FRAME_HEADER {
                return;
            }
            if let Some(frame) = self.mux.poll_control(self.now) {
                space[..FRAME_HEADER].copy_from_slice(&frame);
                self.outgoing.add(FRAME_HEADER);
                continue;
            }
            let Some(id) = self.next_sendable() else {
                return;
            };
            let Some(stream) = self.streams.get_mut(&id) else {
                continue;
            };
            stream.queued = false;
            let room = (space.len() - FRAME_HEADER).min(self.mux.poll_room(id, self.now));
            if !stream.first.is_empty() {
                let n = stream.first.len().min(room);
                if n < stream.first.len() && self.outgoing.used() > 0 {
                    // A preamble goes in one frame: a record of its own has the room.
                    stream.queued = true;
                    self.prompt.push_front(id);
                    return;
                }
                if n == 0 {
                    continue;
                }
                space[FRAME_HEADER..FRAME_HEADER + n].copy_from_slice(&stream.first[..n]);
                stream.first.drain(..n);
                stream.active = self.now;
                let header = self.mux.data_header(id, n);
                space[..FRAME_HEADER].copy_from_slice(&header);
                self.outgoing.add(FRAME_HEADER + n);
                if stream.first.is_empty() {
                    // Nothing is kept of it: an idle stream holds no buffer.
                    stream.first = Vec::new();
                }
                self.queue(id);
                continue;
            }
            if stream.local_ended {
                self.end_local(id);
                continue;
            }
            let draining = matches!(stream.state, State::Draining { .. });
            if room == 0 && !draining {
                // Event::Writable, or the end of its rest, brings it back.
                continue;
            }
            let (State::Connected(endpoint)
            | State::Answer { endpoint, .. }
            | State::Draining { endpoint, .. }) = &mut stream.state
            else {
                continue;
            };
            let window = if draining {
                &mut space[..]
            } else {
                &mut space[FRAME_HEADER..FRAME_HEADER + room]
            };
            let window_length = window.len();
            match endpoint.poll_read(&mut Context::from_waker(stream.waker.waker()), window) {
                Poll::Pending => {}
                Poll::Ready(Ok(0)) => {
                    stream.local_ended = true;
                    self.end_local(id);
                }
                Poll::Ready(Ok(n)) => {
                    stream.active = self.now;
                    stream.bulk = n == window_length;
                    if !draining {
                        let header = self.mux.data_header(id, n);
                        space[..FRAME_HEADER].copy_from_slice(&header);
                        self.outgoing.add(FRAME_HEADER + n);
                        self.sent += n as u64;
                    }
                    self.queue(id);
                }
                Poll::Ready(Err(_)) => self.remove(id, true, StreamEnded::Reset),
            }
        }
    }
}
