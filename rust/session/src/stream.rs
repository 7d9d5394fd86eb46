//! One stream: what it waits for, which directions have ended, and what waits to go either way.

use std::io::{self, IoSlice};
use std::task::{Context, Poll};
use std::time::Instant;

use ech_workers_yamux::StreamId;

use crate::backlog::Backlog;
use crate::bulk::Pace;
use crate::end::{Abort, LocalEnd, Overflow, Refusal, Status};
use crate::open::Open;
use crate::preamble::Extended;
use crate::readiness::SocketWaker;

/// What a client sends of a stream before the server's answer, and keeps to send it anew on another session. A server
/// that is still connecting holds no more than that for a client of ours.
pub(crate) const BEFORE_ANSWER_MAX: usize = 16 * 1024;
/// The most pieces handed to an end in one call.
const PIECES: usize = 16;

/// Where a stream is in its life.
#[derive(Debug)]
pub(crate) enum State {
    Client(ClientState),
    Server(ServerState),
}

/// A stream that this side opened.
#[derive(Debug)]
pub(crate) enum ClientState {
    /// The server will say what became of the request.
    Unanswered(Box<Request>),
    /// The server gives no answer: the stream counts as connected. The request is kept until it is known that the server
    /// took it, so that it can be placed anew.
    Unacknowledged(Box<Request>),
    Relaying,
    /// The server has closed both directions. What the local program still sends is read and dropped until then.
    Draining(Instant),
}

/// A stream that the peer opened.
#[derive(Debug)]
pub(crate) enum ServerState {
    /// The preamble is not whole.
    Preamble(Vec<u8>),
    /// The target is being connected; what came for it is in the backlog.
    Connecting(Option<Extended>),
    Relaying,
    /// The target was not connected. The status is on its way, and what the peer sends is dropped.
    Refusing,
}

/// What was asked for, as long as it may have to be asked for anew.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) authority: Vec<u8>,
    /// How much of the preamble has not been sent.
    pub(crate) preamble: usize,
    /// Bytes for the target that were sent.
    pub(crate) sent: Vec<u8>,
    /// The part of the answer that came.
    pub(crate) answer: Vec<u8>,
    /// The local program was told of success already.
    pub(crate) told: bool,
    pub(crate) deadline: Instant,
}

impl Request {
    fn note_sent(&mut self, bytes: &[u8]) {
        let preamble = self.preamble.min(bytes.len());
        self.preamble -= preamble;
        self.sent
            .extend_from_slice(bytes.get(preamble..).unwrap_or_default());
    }
}

/// The direction from the local end to the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outbound {
    Open,
    /// The local end gives no more. The peer is not told yet.
    Ended,
    /// The peer was told.
    Finished,
}

/// The direction from the peer to the local end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inbound {
    Open,
    /// The peer sends no more. The local end is not told yet.
    Finished,
    /// The local end was told.
    Told,
}

/// What is to be done about a stream whose directions may have ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settled {
    /// Nothing yet.
    Waits,
    /// Both directions have ended: it can go.
    Over,
    /// The end came before the stream had begun: it is to be reset.
    Cut,
    /// The end came instead of an answer.
    NoAnswer,
    /// The peer has closed both directions: ours is to be finished, and what comes for it dropped.
    Drain,
}

#[derive(Debug)]
pub(crate) struct Stream<L> {
    pub(crate) waker: SocketWaker<StreamId>,
    pub(crate) state: State,
    /// A server's stream has none before the preamble and after a refusal.
    pub(crate) end: Option<L>,
    /// What came from the peer and the end has not taken.
    pub(crate) backlog: Backlog,
    /// Bytes at the front of the backlog that did not come from the peer, and earn it no window.
    own: usize,
    /// Bytes that go to the peer before those of the end: a preamble with early data, or a status.
    pub(crate) first: Vec<u8>,
    /// Until when these may wait for bytes of the end to travel with.
    pub(crate) hold_until: Option<Instant>,
    /// Bytes that came from the peer while they waited.
    pub(crate) received_meanwhile: usize,
    pub(crate) outbound: Outbound,
    pub(crate) inbound: Inbound,
    /// The end filled all the space that it was given the last time.
    pub(crate) bulk: bool,
    /// How much it moves: small streams do well to keep away from one that moves much.
    pub(crate) pace: Pace,
    /// It is among the streams that may have something to send.
    pub(crate) queued: bool,
    /// When a byte last went either way.
    pub(crate) active: Instant,
}

impl<L: LocalEnd> Stream<L> {
    pub(crate) fn new(
        waker: SocketWaker<StreamId>,
        state: State,
        end: Option<L>,
        first: Vec<u8>,
        now: Instant,
    ) -> Self {
        Self {
            waker,
            state,
            end,
            backlog: Backlog::default(),
            own: 0,
            first,
            hold_until: None,
            received_meanwhile: 0,
            outbound: Outbound::Open,
            inbound: Inbound::Open,
            bulk: false,
            pace: Pace::default(),
            queued: false,
            active: now,
        }
    }

    /// Payload goes straight to the end.
    pub(crate) const fn is_relaying(&self) -> bool {
        matches!(
            self.state,
            State::Client(ClientState::Relaying) | State::Server(ServerState::Relaying)
        )
    }

    /// The target is being connected.
    pub(crate) const fn is_connecting(&self) -> bool {
        matches!(self.state, State::Server(ServerState::Connecting(_)))
    }

    /// How many bytes of the end may be sent, given how many the peer takes.
    pub(crate) fn readable(&self, room: usize) -> usize {
        match &self.state {
            State::Client(ClientState::Unanswered(request)) if request.told => {
                room.min(BEFORE_ANSWER_MAX.saturating_sub(request.sent.len()))
            }
            State::Client(ClientState::Relaying | ClientState::Unacknowledged(_))
            | State::Server(ServerState::Relaying) => room,
            State::Client(ClientState::Unanswered(_) | ClientState::Draining(_))
            | State::Server(
                ServerState::Preamble(_) | ServerState::Connecting(_) | ServerState::Refusing,
            ) => 0,
        }
    }

    /// Keeps what is sent before the stream is known to be taken.
    pub(crate) fn note_sent(&mut self, bytes: &[u8]) {
        match &mut self.state {
            State::Client(ClientState::Unanswered(request)) => request.note_sent(bytes),
            State::Client(ClientState::Unacknowledged(request)) => {
                request.note_sent(bytes);
                if request.sent.len() > BEFORE_ANSWER_MAX {
                    // Too much to be sent anew.
                    self.state = State::Client(ClientState::Relaying);
                }
            }
            State::Client(_) | State::Server(_) => {}
        }
    }

    /// The request, to be placed on another session, if it can be.
    pub(crate) fn take_open(&mut self) -> Option<Open<L>> {
        let state = std::mem::replace(&mut self.state, State::Client(ClientState::Relaying));
        let State::Client(ClientState::Unanswered(request) | ClientState::Unacknowledged(request)) =
            state
        else {
            self.state = state;
            return None;
        };
        let Request {
            authority,
            preamble,
            sent: mut early,
            told,
            deadline,
            ..
        } = *request;
        early.extend_from_slice(self.first.get(preamble..).unwrap_or_default());
        Some(Open {
            end: self.end.take()?,
            authority,
            early,
            told,
            confirm: !told,
            deadline,
            ended: self.outbound != Outbound::Open,
        })
    }

    /// A client's stream that has no answer, and of whose payload nothing was sent.
    pub(crate) fn is_unsent(&self) -> bool {
        matches!(
            &self.state,
            State::Client(ClientState::Unanswered(request)) if request.sent.is_empty()
        )
    }

    /// Nobody waits for it to be opened any more.
    pub(crate) fn is_abandoned(&mut self) -> bool {
        let State::Client(ClientState::Unanswered(request)) = &self.state else {
            return false;
        };
        let mut cx = Context::from_waker(self.waker.waker());
        !request.told
            && self
                .end
                .as_mut()
                .is_some_and(|end| end.poll_abandoned(&mut cx).is_ready())
    }

    /// Memory that is held for the peer, in bytes.
    pub(crate) fn held(&self) -> usize {
        let partial = match &self.state {
            State::Server(ServerState::Preamble(partial)) => partial.capacity(),
            State::Server(_) | State::Client(_) => 0,
        };
        self.backlog.allocated() + partial
    }

    /// Puts bytes of our own before everything that comes for the end.
    pub(crate) fn tell(&mut self, bytes: &[u8]) {
        debug_assert!(self.backlog.is_empty());
        self.own += bytes.len();
        self.backlog.push(bytes);
    }

    /// Delivers `pieces` as far as the end takes them; the rest waits. Returns how many bytes are done with.
    ///
    /// # Errors
    /// The local connection broke.
    pub(crate) fn deliver(&mut self, mut pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let Some(end) = &mut self.end else {
            return Ok(pieces.iter().map(|piece| piece.len()).sum());
        };
        let mut cx = Context::from_waker(self.waker.waker());
        let mut done = 0;
        // Bytes of the first piece that were taken.
        let mut skip = 0;
        while self.backlog.is_empty() {
            let polled = match pieces {
                [] => break,
                [first, ..] if skip > 0 => end.poll_write(
                    &mut cx,
                    &[IoSlice::new(first.get(skip..).unwrap_or_default())],
                ),
                _ => end.poll_write(&mut cx, pieces.get(..PIECES).unwrap_or(pieces)),
            };
            let Poll::Ready(taken) = polled else { break };
            let mut taken = taken?;
            done += taken;
            while let [first, rest @ ..] = pieces {
                let left = first.len() - skip;
                if taken < left {
                    skip += taken;
                    break;
                }
                taken -= left;
                skip = 0;
                pieces = rest;
            }
        }
        let drops = end.overflow() == Overflow::Drop;
        for piece in pieces {
            let rest = piece.get(skip..).unwrap_or_default();
            if drops {
                done += rest.len();
            } else {
                self.backlog.push(rest);
            }
            skip = 0;
        }
        Ok(done)
    }

    /// Delivers what waits. Returns how many bytes of the peer are done with.
    ///
    /// # Errors
    /// The local connection broke.
    pub(crate) fn flush(&mut self) -> io::Result<usize> {
        let Some(end) = &mut self.end else {
            return Ok(0);
        };
        let mut cx = Context::from_waker(self.waker.waker());
        let mut done = 0;
        while !self.backlog.is_empty() {
            let mut slots = [IoSlice::new(&[]); PIECES];
            let count = self.backlog.pieces(&mut slots);
            match end.poll_write(&mut cx, slots.get(..count).unwrap_or_default()) {
                Poll::Ready(taken) => {
                    let taken = taken?;
                    done += taken;
                    self.backlog.advance(taken);
                }
                Poll::Pending => break,
            }
        }
        if let Poll::Ready(flushed) = end.poll_flush(&mut cx) {
            flushed?;
        }
        let own = self.own.min(done);
        self.own -= own;
        Ok(done - own)
    }

    /// Nothing waits for the end any more, nor in it.
    fn is_drained(&mut self) -> bool {
        let mut cx = Context::from_waker(self.waker.waker());
        self.backlog.is_empty()
            && self
                .end
                .as_mut()
                .is_none_or(|end| end.poll_flush(&mut cx).is_ready())
    }

    /// Looks at both directions. `half_close`: the peer ends one without the other.
    pub(crate) fn settle(&mut self, half_close: bool) -> Settled {
        if self.inbound == Inbound::Open {
            return Settled::Waits;
        }
        match &self.state {
            State::Client(ClientState::Unanswered(_)) => return Settled::NoAnswer,
            State::Server(ServerState::Preamble(_)) => return Settled::Cut,
            State::Client(ClientState::Draining(_)) | State::Server(ServerState::Connecting(_)) => {
                return Settled::Waits;
            }
            State::Server(ServerState::Refusing)
            | State::Client(ClientState::Relaying | ClientState::Unacknowledged(_))
            | State::Server(ServerState::Relaying) => {}
        }
        if !self.is_drained() {
            return Settled::Waits;
        }
        if self.outbound == Outbound::Finished {
            return Settled::Over;
        }
        if self.inbound == Inbound::Finished {
            self.inbound = Inbound::Told;
            if let Some(end) = &mut self.end {
                end.finish();
            }
        }
        if half_close {
            Settled::Waits
        } else {
            Settled::Drain
        }
    }

    /// Ends it so that nobody takes that for the end of the data, or tells the local program that there is no stream.
    pub(crate) fn abort(mut self, why: Abort) {
        let Some(end) = self.end.take() else { return };
        match self.state {
            State::Client(ClientState::Unanswered(request)) if !request.told => {
                let (status, reason) = match why {
                    Abort::Idle => (Status::TimedOut, "the server did not answer in time"),
                    Abort::SessionLost => (
                        Status::SessionLost,
                        "the session was lost before the answer came",
                    ),
                    Abort::Reset | Abort::Local | Abort::Memory => {
                        (Status::General, "the server ended the stream")
                    }
                };
                end.refuse(&Refusal::new(status, reason));
            }
            _ => end.abort(why),
        }
    }
}
