//! How streams end: half-closes, resets, and the end of the session.

use std::task::Context;
use std::time::Duration;

use ech_workers_proxy as proxy;
use ech_workers_tls::TlsStream;
use ech_workers_websocket::OpCode;
use ech_workers_yamux::{self as yamux, StreamId};

use super::{Core, End, FRAME_HEADER, State};
use crate::preamble::Status;
use crate::stream::StreamEnded;

/// How long a local program may go on sending after the server has closed both directions.
const DRAIN: Duration = Duration::from_secs(5);

impl Core {
    /// The socket gives no more: tell the peer now, or, to a server that would cut off the answer, when that has ended.
    pub(super) fn end_local(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if matches!(stream.state, State::Draining { .. }) {
            self.forget(id);
            return;
        }
        let is_over = matches!(&stream.state, State::Connected(endpoint) if endpoint.is_over());
        let held = matches!(
            self.end,
            End::Client {
                extended: false,
                ..
            }
        ) && !stream.remote_finished
            && !is_over;
        if !held {
            self.finish(id);
        }
    }

    pub(super) fn finish(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if !stream.finished {
            stream.finished = true;
            stream.active = self.now;
            self.mux.finish(id);
        }
        self.settle(id);
    }

    /// Ends what has come to its end: called when the backlog, or either direction, may have.
    pub(super) fn settle(&mut self, id: StreamId) {
        let half_close = !matches!(
            self.end,
            End::Client {
                extended: false,
                ..
            }
        );
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if !stream.remote_finished {
            return;
        }
        match &stream.state {
            State::Connected(endpoint) if !endpoint.backlog.is_empty() => return,
            // When our end is sent too, the close says it.
            State::Connected(endpoint) if !stream.finished && !stream.end_told => {
                stream.end_told = true;
                endpoint.socket.finish();
            }
            State::Connected(_) => {}
            // The peer ended before its target was known: nothing is left to do for it.
            State::Preamble(_) if !stream.local_ended => {
                self.remove(id, true, StreamEnded::Reset);
                return;
            }
            State::Preamble(_) => {}
            // The end came instead of an answer.
            State::Answer { .. } => {
                self.answered(
                    id,
                    Status::General,
                    "the server closed the stream without an answer",
                    0,
                );
                return;
            }
            State::Connecting { .. } | State::Draining { .. } => return,
        }
        if stream.finished {
            self.close(id);
        } else if !half_close {
            // A deployed server has closed both directions: what the local program still sends would go nowhere.
            stream.finished = true;
            self.mux.finish(id);
            if stream.local_ended {
                self.close(id);
            } else if let State::Connected(endpoint) =
                std::mem::replace(&mut stream.state, State::Preamble(Vec::new()))
            {
                stream.state = State::Draining {
                    endpoint,
                    until: self.now + DRAIN,
                };
                self.queue(id);
            }
        }
    }

    /// Ends a stream at once: the socket is reset, so that nobody takes it for the end of the data.
    pub(super) fn remove(&mut self, id: StreamId, tell_peer: bool, why: StreamEnded) {
        if tell_peer {
            self.mux.reset(id);
        }
        let Some(stream) = self.streams.remove(&id) else {
            return;
        };
        self.stats.streams.sub(1);
        match stream.state {
            State::Connected(endpoint) => endpoint.socket.abort(why),
            State::Answer {
                endpoint,
                reply: Some(reply),
                ..
            } => {
                let (failure, cause, reason) = match why {
                    StreamEnded::SessionLost => (
                        proxy::Failure::TunnelDown,
                        "the session was lost before the answer came",
                        "the session was lost before the answer came",
                    ),
                    _ => (proxy::Failure::General, "", "the server ended the stream"),
                };
                reply.refuse(endpoint, failure, cause, reason);
            }
            State::Answer {
                endpoint,
                reply: None,
                ..
            } => endpoint.socket.abort(why),
            State::Preamble(_) | State::Connecting { .. } | State::Draining { .. } => {}
        }
    }

    /// Ends a stream whose data has ended in both directions.
    fn close(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.remove(&id) {
            self.stats.streams.sub(1);
            if let State::Connected(endpoint) = stream.state {
                endpoint.socket.close();
            }
        }
    }

    /// Lets go of a stream that has nothing at its end any more.
    pub(super) fn forget(&mut self, id: StreamId) {
        if self.streams.remove(&id).is_some() {
            self.stats.streams.sub(1);
        }
    }

    /// Says goodbye when the driver ends: a go-away, as far as the peer takes it.
    pub(super) fn part(&mut self, tls: &mut TlsStream) -> std::io::Result<()> {
        self.mux.go_away(yamux::GoAwayCode::Normal);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        if tls.poll_ready(&mut cx)?.is_ready() {
            while let Some(frame) = self.mux.poll_control(self.now) {
                let space = self.outgoing.space(tls);
                if space.len() < FRAME_HEADER {
                    break;
                }
                space[..FRAME_HEADER].copy_from_slice(&frame);
                self.outgoing.add(FRAME_HEADER);
            }
            if self.outgoing.used() > 0 {
                self.outgoing.send(tls, OpCode::Binary)?;
            }
            if tls.poll_ready(&mut cx)?.is_ready() {
                self.outgoing
                    .send_whole(tls, OpCode::Close, &1000_u16.to_be_bytes())?;
            }
        }
        Ok(())
    }
}
