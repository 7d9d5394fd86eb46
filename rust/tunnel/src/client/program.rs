//! The client's end of a stream: a local program's connection, and how the program is told what came of its request.

use std::io::{self, IoSlice, IoSliceMut};
use std::task::{Context, Poll, Waker, ready};

use ech_workers_proxy::{self as proxy, Exchange};
use ech_workers_session::{Abort, LocalEnd, Refusal, Status};

use crate::client::connections::{Carried, Listed};
use crate::client::load::Ticket;
use crate::client::local::LocalPlace;
use crate::client::reply::{self, Reply};
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
    _place: Option<LocalPlace>,
    /// The place in a session, once it was assigned to one.
    ticket: Option<Ticket>,
    /// The servers that could not reach the target, and what the last of them said.
    tried: Option<Box<Tried>>,
    /// The place among the connections that a user can see.
    listed: Option<Listed>,
    /// The only server that may carry it.
    only: Option<u32>,
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

/// Pieces that are written with one system call: those of a session, and our own head.
const SLOTS: usize = 17;

/// The bytes of `pieces` from `start` on, `length` at the most.
fn range_of<'a>(
    pieces: &'a [IoSlice<'a>],
    mut start: usize,
    mut length: usize,
) -> impl Iterator<Item = &'a [u8]> {
    pieces.iter().filter_map(move |piece| {
        let from = start.min(piece.len());
        start -= from;
        let bytes = piece.get(from..)?;
        let bytes = bytes.get(..length.min(bytes.len()))?;
        length -= bytes.len();
        (!bytes.is_empty()).then_some(bytes)
    })
}

impl Program {
    pub(crate) fn new(
        socket: Socket,
        reply: Reply,
        exchange: Option<Box<Exchange>>,
        place: Option<LocalPlace>,
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
            listed: None,
            only: None,
        }
    }

    /// Shows it to the user from now on.
    pub(crate) fn list(&mut self, listed: Listed) {
        self.listed = Some(listed);
    }

    /// Has no other server than this one carry it.
    pub(crate) fn restrict(&mut self, server: u32) {
        self.only = Some(server);
    }

    /// The only server that may carry it, if a rule says so.
    pub(crate) const fn only(&self) -> Option<u32> {
        self.only
    }

    /// It is no program's: it has one session, and no other will do.
    pub(crate) const fn is_echo(&self) -> bool {
        matches!(self.socket, Socket::Echo(_))
    }

    /// What carries it from now on, for the user.
    pub(crate) fn carried_by(&self, carried: Carried) {
        if let Some(listed) = &self.listed {
            listed.carried_by(carried);
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
        self.carried_by(ticket.carried());
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
        if let Some(listed) = &mut self.listed {
            listed.unwatch();
            listed.watch(cx.waker());
            if listed.is_cut() {
                return Poll::Ready(());
            }
        }
        self.socket.poll_abandoned(cx)
    }

    fn is_cut(&self) -> bool {
        self.listed.as_ref().is_some_and(Listed::is_cut)
    }

    fn may_be_bulk(&self) -> bool {
        !self.is_echo()
    }

    fn begun(&mut self) {
        if let Some(listed) = &mut self.listed {
            listed.unwatch();
        }
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
        if let Some(listed) = &mut self.listed {
            listed.watch(cx.waker());
            if listed.is_cut() {
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            }
        }
        let read = ready!(self.poll_read_of_program(cx, spaces))?;
        if let Some(listed) = &self.listed {
            listed.sent(read);
        }
        Poll::Ready(Ok(read))
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(self.poll_write_to_program(cx, pieces))?;
        if let Some(listed) = &self.listed {
            listed.received(written);
        }
        Poll::Ready(Ok(written))
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
    fn poll_read_of_program(
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

    fn poll_write_to_program(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Some(forwarded) = &mut self.forwarded else {
            return self.socket.poll_write(cx, pieces);
        };
        let written = forwarded.write_answer(&mut self.socket, cx, pieces);
        if written.is_ready() {
            forwarded.tell_end(&self.socket);
        }
        written
    }

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
    /// Looks at what the tunnel brought, as far as that was not looked at before. Returns how many bytes at its front are for nobody,
    /// such as the head that our own replaces.
    fn look_at(&mut self, pieces: &[IoSlice<'_>]) -> usize {
        let mut absorbed = 0;
        let mut looked_at = self.passing + self.dropping;
        for piece in pieces {
            let Some(piece) = piece.get(looked_at..) else {
                looked_at -= piece.len();
                continue;
            };
            looked_at = 0;
            let passage = self.exchange.accept_answer(piece);
            self.held.append(&mut self.exchange.take_held());
            if !self.exchange.is_holding()
                && let Some(reader) = self.holding.take()
            {
                reader.wake();
            }
            self.head.extend_from_slice(&passage.head);
            if self.passing == 0 && self.dropping == 0 {
                absorbed += passage.body.start;
            } else {
                // The answer is over: nothing passes any more.
                self.dropping += passage.body.start;
            }
            self.passing += passage.body.len();
            self.dropping += piece.len() - passage.body.end;
        }
        absorbed
    }

    /// Writes what the program gets of `pieces`, behind our own head. Returns how many of their bytes are done with.
    fn write_answer(
        &mut self,
        socket: &mut Socket,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let absorbed = self.look_at(pieces);
        let mut passed = 0;
        while !self.head.is_empty() || self.passing > 0 {
            let mut slots = [IoSlice::new(&[]); SLOTS];
            let mut count = 0;
            let content = range_of(pieces, absorbed + passed, self.passing);
            for (slot, bytes) in slots.iter_mut().zip(
                std::iter::once(self.head.as_slice())
                    .filter(|head| !head.is_empty())
                    .chain(content),
            ) {
                *slot = IoSlice::new(bytes);
                count += 1;
            }
            if count == 0 {
                // All that came of the content has passed.
                break;
            }
            match socket.poll_write(cx, slots.get(..count).unwrap_or_default()) {
                Poll::Ready(written) => {
                    let written = written?;
                    let of_head = written.min(self.head.len());
                    self.head.drain(..of_head);
                    self.passing -= written - of_head;
                    passed += written - of_head;
                }
                Poll::Pending => break,
            }
        }
        let mut done = absorbed + passed;
        if self.passing == 0 {
            let length: usize = pieces.iter().map(|piece| piece.len()).sum();
            let dropped = self.dropping.min(length - done);
            self.dropping -= dropped;
            done += dropped;
        }
        if done == 0 {
            return Poll::Pending;
        }
        Poll::Ready(Ok(done))
    }

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

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use ech_workers_proxy::{Negotiation, Progress};
    use tokio::io::AsyncReadExt as _;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const ANSWER: &[u8] =
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789and what is not asked for";

    /// A program that has asked for a page, and its own end of the connection.
    async fn asked() -> (Program, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let theirs = TcpStream::connect(listener.local_addr().unwrap());
        let (ours, theirs) = tokio::join!(listener.accept(), theirs);
        let request = b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n";
        let Progress::Request(mut request) = Negotiation::new(None).advance(request) else {
            panic!("it is a whole request");
        };
        let exchange = request.exchange.take();
        let socket = Socket::from(ours.unwrap().0);
        let mut program = Program::new(socket, Reply::Local(request), exchange, None);
        assert!(program.opened().is_empty());
        (program, theirs.unwrap())
    }

    /// Writes all pieces; in how many calls, and what arrived.
    async fn written(pieces: &[&[u8]]) -> (usize, Vec<u8>) {
        let (mut program, mut theirs) = asked().await;
        let mut calls = 0;
        let mut left: Vec<u8> = pieces.concat();
        let mut slices: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        loop {
            let taken = poll_fn(|cx| program.poll_write(cx, &slices)).await.unwrap();
            calls += 1;
            left.drain(..taken);
            if left.is_empty() {
                break;
            }
            slices = vec![IoSlice::new(&left)];
        }
        poll_fn(|cx| program.poll_flush(cx)).await.unwrap();
        program.close();
        let mut arrived = Vec::new();
        theirs.read_to_end(&mut arrived).await.unwrap();
        (calls, arrived)
    }

    #[tokio::test]
    async fn all_pieces_of_an_answer_are_written_at_once_wherever_they_are_split() {
        let (_, whole) = written(&[ANSWER]).await;
        assert!(whole.starts_with(b"HTTP/1.1 200 OK\r\n"));
        assert!(whole.ends_with(b"\r\n\r\n0123456789"), "{whole:?}");
        for first in (0..ANSWER.len()).step_by(3) {
            for second in (first..ANSWER.len()).step_by(5) {
                let pieces = [&ANSWER[..first], &ANSWER[first..second], &ANSWER[second..]];
                let (calls, arrived) = written(&pieces).await;
                assert_eq!(arrived, whole, "split at {first} and {second}");
                assert_eq!(calls, 1, "split at {first} and {second}");
            }
        }
    }

    #[tokio::test]
    async fn an_answer_that_comes_in_many_calls_arrives_whole() {
        let (_, whole) = written(&[ANSWER]).await;
        let (mut program, mut theirs) = asked().await;
        for byte in ANSWER {
            let taken = poll_fn(|cx| program.poll_write(cx, &[IoSlice::new(&[*byte])])).await;
            assert_eq!(taken.unwrap(), 1);
        }
        program.close();
        let mut arrived = Vec::new();
        theirs.read_to_end(&mut arrived).await.unwrap();
        assert_eq!(arrived, whole);
    }
}
