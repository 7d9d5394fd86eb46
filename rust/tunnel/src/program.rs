//! The client's end of a stream: a local program's connection, and how the program is told what came of its request.

use std::io::{self, IoSlice, IoSliceMut};
use std::task::{Context, Poll, Waker, ready};

use ech_workers_proxy::{self as proxy, Exchange};
use ech_workers_session::{Abort, LocalEnd, Refusal, Status};

use crate::local::Place;
use crate::pool::Ticket;
use crate::reply::{self, Reply};
use crate::socket::Socket;
use crate::stream::StreamEnded;

/// The connection of a local program, or the other end of one that the API gave out.
#[derive(Debug)]
pub(crate) struct Program {
    socket: Socket,
    /// Until the program was told.
    reply: Option<Reply>,
    /// A forwarded HTTP request, which decides what passes.
    forwarded: Option<Forwarded>,
    /// The place among the limited local connections, given up with the connection.
    _place: Option<Place>,
    /// The place in a session, once it was assigned to one.
    ticket: Option<Ticket>,
    /// The servers that could not reach the target, and what the last of them said.
    tried: Option<Box<Tried>>,
}

/// Servers that answered that they cannot reach a target.
#[derive(Debug)]
struct Tried {
    upstreams: Vec<u32>,
    refusal: Refusal,
}

/// A forwarded HTTP request on its way.
#[derive(Debug)]
struct Forwarded {
    exchange: Box<Exchange>,
    /// Whom to wake when the answer has said whether what was held back may go to the target.
    holding: Option<Waker>,
    /// What was held back and has not gone yet.
    held: Vec<u8>,
    /// Our own head of the answer, as far as the program has not got it.
    head: Vec<u8>,
    /// Bytes at the front of what the tunnel brings that were looked at and are for the program.
    passing: usize,
    /// And behind these, bytes that are not.
    dropping: usize,
    /// The program has been told that the answer is complete.
    end_told: bool,
}

impl Program {
    pub(crate) fn new(
        socket: Socket,
        reply: Reply,
        exchange: Option<Box<Exchange>>,
        place: Option<Place>,
    ) -> Self {
        Self {
            socket,
            reply: Some(reply),
            forwarded: exchange.map(|exchange| Forwarded {
                exchange,
                holding: None,
                held: Vec::new(),
                head: Vec::new(),
                passing: 0,
                dropping: 0,
                end_told: false,
            }),
            _place: place,
            ticket: None,
            tried: None,
        }
    }

    /// A server cannot reach the target. False if it had said so before.
    pub(crate) fn note_unreached(&mut self, upstream: u32, refusal: Refusal) -> bool {
        let mut upstreams = self
            .tried
            .take()
            .map_or(Vec::new(), |tried| tried.upstreams);
        let is_new = !upstreams.contains(&upstream);
        if is_new {
            upstreams.push(upstream);
        }
        self.tried = Some(Box::new(Tried { upstreams, refusal }));
        is_new
    }

    /// The servers that cannot reach the target.
    pub(crate) fn tried(&self) -> &[u32] {
        self.tried.as_ref().map_or(&[], |tried| &tried.upstreams)
    }

    /// What the last of them said.
    pub(crate) fn take_refusal(&mut self) -> Option<Refusal> {
        self.tried.take().map(|tried| tried.refusal)
    }

    /// Holds the place in a session from now on, and gives up the one that it held before.
    pub(crate) fn hold(&mut self, ticket: Ticket) {
        self.ticket = Some(ticket);
    }

    /// Tells the program that its request failed, unless it was told of success; then the connection is reset. A local
    /// program hears the `cause`, which may be empty and names nobody, the API's user the `reason`.
    pub(crate) fn fail(mut self, failure: proxy::Failure, cause: &'static str, reason: &str) {
        match self.reply.take() {
            Some(Reply::Local(request)) => {
                let bytes = request.failure(failure, cause);
                let mut cx = Context::from_waker(Waker::noop());
                // A few bytes into a fresh socket's empty buffer: there is nothing to wait for.
                let _ = self.socket.poll_write(&mut cx, &[IoSlice::new(&bytes)]);
                self.socket.finish();
                self.socket.close();
            }
            Some(Reply::Api) => self.socket.refuse(reply::api_failure(failure, reason)),
            None => {}
        }
    }
}

impl LocalEnd for Program {
    fn poll_abandoned(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.socket.poll_abandoned(cx)
    }

    fn begun(&mut self) {
        self.socket.begin();
    }

    fn opened(&mut self) -> Vec<u8> {
        match self.reply.take() {
            Some(Reply::Local(request)) => request.success(),
            Some(Reply::Api) => {
                // A stream that could not be handed over shows it at the first read.
                let _ = self.socket.opened();
                Vec::new()
            }
            None => Vec::new(),
        }
    }

    fn reads_many(&self) -> bool {
        self.forwarded.is_none()
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        spaces: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            let Some(forwarded) = &mut self.forwarded else {
                return self.socket.poll_read(cx, spaces);
            };
            if !forwarded.held.is_empty() {
                let n = spaces.first_mut().map_or(0, |space| {
                    let n = forwarded.held.len().min(space.len());
                    space
                        .iter_mut()
                        .zip(forwarded.held.drain(..n))
                        .for_each(|(to, from)| *to = from);
                    n
                });
                return Poll::Ready(Ok(n));
            }
            if forwarded.exchange.is_pipe() && forwarded.head.is_empty() && forwarded.passing == 0 {
                self.forwarded = None;
                continue;
            }
            if forwarded.exchange.is_holding() {
                forwarded.holding = Some(cx.waker().clone());
                // The end of the program is no byte to hold back.
                return match ready!(self.socket.poll_peek(cx)) {
                    Ok(0) => Poll::Ready(Ok(0)),
                    Ok(_) => Poll::Pending,
                    Err(error) => Poll::Ready(Err(error)),
                };
            }
            let n = ready!(self.socket.poll_read(cx, spaces))?;
            let read = spaces
                .first()
                .and_then(|space| space.get(..n))
                .unwrap_or_default();
            let of_request = forwarded
                .exchange
                .accept_request(read)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            if n == 0 || of_request > 0 {
                return Poll::Ready(Ok(of_request));
            }
        }
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Some(forwarded) = &mut self.forwarded else {
            return self.socket.poll_write(cx, pieces);
        };
        let Some(piece) = pieces.iter().find(|piece| !piece.is_empty()) else {
            return Poll::Ready(Ok(0));
        };
        let mut skipped = 0;
        if forwarded.passing == 0 && forwarded.dropping == 0 {
            let passage = forwarded.exchange.accept_answer(piece);
            forwarded.held.append(&mut forwarded.exchange.take_held());
            if !forwarded.exchange.is_holding()
                && let Some(reader) = forwarded.holding.take()
            {
                reader.wake();
            }
            forwarded.head.extend_from_slice(&passage.head);
            skipped = passage.body.start;
            forwarded.passing = passage.body.len();
            forwarded.dropping = piece.len() - passage.body.end;
        }
        let flushed = forwarded.write_head(&mut self.socket, cx)?;
        let mut done = skipped;
        if flushed.is_ready() && forwarded.passing > 0 {
            let end = (skipped + forwarded.passing).min(piece.len());
            let content = piece.get(skipped..end).unwrap_or_default();
            if let Poll::Ready(written) = self.socket.poll_write(cx, &[IoSlice::new(content)]) {
                let written = written?;
                forwarded.passing -= written;
                done += written;
            }
        }
        if forwarded.passing == 0 {
            let dropped = forwarded.dropping.min(piece.len() - done);
            forwarded.dropping -= dropped;
            done += dropped;
        }
        if done == 0 {
            return Poll::Pending;
        }
        forwarded.tell_end(&self.socket);
        Poll::Ready(Ok(done))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(forwarded) = &mut self.forwarded {
            ready!(forwarded.write_head(&mut self.socket, cx)?);
            forwarded.tell_end(&self.socket);
        }
        Poll::Ready(Ok(()))
    }

    fn is_complete(&self) -> bool {
        self.forwarded
            .as_ref()
            .is_some_and(|forwarded| forwarded.exchange.is_over())
    }

    fn finish(&mut self) {
        self.say_end();
        self.socket.finish();
    }

    fn close(mut self) {
        self.say_end();
        self.socket.close();
    }

    fn abort(self, why: Abort) {
        self.socket.abort(match why {
            Abort::Reset | Abort::Local | Abort::Memory => StreamEnded::Reset,
            Abort::SessionLost => StreamEnded::SessionLost,
            Abort::Idle => StreamEnded::Idle,
        });
    }

    fn refuse(self, refusal: &Refusal) {
        let cause = match refusal.status {
            Status::SessionLost => "the session was lost before the answer came",
            _ => "",
        };
        self.fail(reply::failure(refusal.status), cause, &refusal.reason);
    }
}

impl Program {
    /// The tunnel brings no more: a program that waits for an answer is told that there will be none.
    fn say_end(&mut self) {
        if let Some(forwarded) = &mut self.forwarded {
            let reply = forwarded.exchange.end_of_answer();
            if !reply.is_empty() {
                let mut cx = Context::from_waker(Waker::noop());
                // A program that is gone shows it at the next read.
                let _ = self.socket.poll_write(&mut cx, &[IoSlice::new(&reply)]);
            }
        }
    }
}

impl Forwarded {
    /// Writes our own head of the answer.
    fn write_head(&mut self, socket: &mut Socket, cx: &mut Context<'_>) -> io::Result<Poll<()>> {
        while !self.head.is_empty() {
            match socket.poll_write(cx, &[IoSlice::new(&self.head)]) {
                Poll::Ready(written) => {
                    self.head.drain(..written?);
                }
                Poll::Pending => return Ok(Poll::Pending),
            }
        }
        self.head = Vec::new();
        Ok(Poll::Ready(()))
    }

    /// Tells the program of a complete answer's end, once it has all of it.
    fn tell_end(&mut self, socket: &Socket) {
        if self.exchange.is_over() && !self.end_told && self.head.is_empty() && self.passing == 0 {
            self.end_told = true;
            socket.finish();
        }
    }
}
