//! A local connection that goes straight to its target: the same program's end as in a session, and a socket.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{IoSlice, IoSliceMut};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use ech_workers_session::{Abort, LocalEnd, Refusal, Status};
use tokio::net::TcpStream;
use tokio::time::{Sleep, timeout_at};

use crate::client::program::Program;
use crate::socket::Socket;

/// What is read at a time, and held at most, for each direction.
const BUFFER: usize = 64 << 10;
/// Buffers that a thread keeps for the next ones.
const SPARE_MAX: usize = 4;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// When a connection without traffic ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DirectLimits {
    pub(crate) idle: Duration,
    /// The same when one direction has ended.
    pub(crate) half_closed: Duration,
}

/// Waits for the attempt to reach the target, until `deadline`, and then relays to the end. `early`: bytes for the target
/// that were read from the program already. `Err`: why there was no connection; the program has been told.
pub(crate) async fn run(
    mut program: Program,
    early: Vec<u8>,
    attempt: impl Future<Output = Result<TcpStream, Refusal>>,
    deadline: Instant,
    limits: DirectLimits,
) -> Result<(), Refusal> {
    program.begun();
    let reached = tokio::select! {
        biased;
        reached = timeout_at(deadline.into(), attempt) => reached,
        () = poll_fn(|cx| program.poll_abandoned(cx)) => return Ok(()),
    };
    let reached = reached.unwrap_or_else(|_| {
        let why = "the target did not answer in time";
        Err(Refusal::new(Status::TimedOut, why))
    });
    let tcp = match reached {
        Ok(tcp) => tcp,
        Err(refusal) => {
            program.refuse(&refusal);
            return Err(refusal);
        }
    };
    program.begun();
    let first = program.opened();
    let mut relay = Relay {
        program,
        target: Socket::from(tcp),
        up: Pipe::new(early),
        down: Pipe::new(first),
        active: Instant::now(),
        limits,
        timer: Box::pin(tokio::time::sleep(limits.idle.min(limits.half_closed))),
    };
    match poll_fn(|cx| relay.poll(cx)).await {
        Ok(()) => {
            relay.program.close();
            relay.target.close();
        }
        // The target's socket is reset by its drop.
        Err(why) => relay.program.abort(why),
    }
    Ok(())
}

struct Relay {
    program: Program,
    target: Socket,
    up: Pipe,
    down: Pipe,
    /// When a byte last went either way.
    active: Instant,
    limits: DirectLimits,
    timer: Pin<Box<Sleep>>,
}

/// One direction.
struct Pipe {
    /// What was read and not written, from `start` to `end`.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Nothing more will be read.
    ended: bool,
    /// The other side was told.
    told: bool,
}

impl Relay {
    /// Moves what can be moved. Ready when both directions have ended.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Abort>> {
        if self.program.is_cut() {
            return Poll::Ready(Err(Abort::Local));
        }
        if let Err(why) = self.move_up(cx).and_then(|()| self.move_down(cx)) {
            return Poll::Ready(Err(why));
        }
        if self.up.told && self.down.told {
            return Poll::Ready(Ok(()));
        }
        self.keep_time(cx)
    }

    fn move_up(&mut self, cx: &mut Context<'_>) -> Result<(), Abort> {
        let Self {
            program,
            target,
            up,
            active,
            ..
        } = self;
        loop {
            if !up.is_empty() {
                match target.poll_write(cx, &[IoSlice::new(up.held())]) {
                    Poll::Ready(written) => up.take(written.map_err(|_| Abort::Reset)?),
                    Poll::Pending => return Ok(()),
                }
            } else if up.ended {
                if !up.told {
                    up.told = true;
                    target.finish();
                }
                return Ok(());
            } else {
                match program.poll_read(cx, &mut [IoSliceMut::new(up.space())]) {
                    Poll::Ready(read) => up.put(read.map_err(|_| Abort::Local)?),
                    Poll::Pending => {
                        up.release();
                        return Ok(());
                    }
                }
            }
            *active = Instant::now();
        }
    }

    fn move_down(&mut self, cx: &mut Context<'_>) -> Result<(), Abort> {
        let Self {
            program,
            target,
            down,
            active,
            ..
        } = self;
        loop {
            if !down.is_empty() {
                match program.poll_write(cx, &[IoSlice::new(down.held())]) {
                    Poll::Ready(written) => down.take(written.map_err(|_| Abort::Local)?),
                    Poll::Pending => return Ok(()),
                }
            } else if program
                .poll_flush(cx)
                .map_err(|_| Abort::Local)?
                .is_pending()
            {
                return Ok(());
            } else if down.ended {
                if !down.told {
                    down.told = true;
                    program.finish();
                }
                return Ok(());
            } else {
                match target.poll_read(cx, &mut [IoSliceMut::new(down.space())]) {
                    Poll::Ready(read) => down.put(read.map_err(|_| Abort::Reset)?),
                    Poll::Pending => {
                        down.release();
                        return Ok(());
                    }
                }
            }
            *active = Instant::now();
        }
    }

    /// A timer that is due too early costs a look; to move it with each byte would cost more.
    fn keep_time(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Abort>> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let half_closed = self.up.told || self.down.told;
            let limit = if half_closed {
                self.limits.half_closed
            } else {
                self.limits.idle
            };
            let now = Instant::now();
            let due = self.active + limit;
            if now >= due {
                return Poll::Ready(Err(Abort::Idle));
            }
            // One direction may end meanwhile.
            let next = due.min(now + self.limits.half_closed);
            self.timer.as_mut().reset(next.into());
        }
        Poll::Pending
    }
}

impl Pipe {
    /// With bytes that go first.
    fn new(first: Vec<u8>) -> Self {
        Self {
            start: 0,
            end: first.len(),
            buffer: first,
            ended: false,
            told: false,
        }
    }

    const fn is_empty(&self) -> bool {
        self.start == self.end
    }

    fn held(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    fn take(&mut self, bytes: usize) {
        self.start += bytes;
    }

    /// Room to read into; there is nothing held.
    fn space(&mut self) -> &mut [u8] {
        if self.buffer.len() != BUFFER {
            let spare = SPARE.with_borrow_mut(Vec::pop);
            self.buffer = spare.unwrap_or_else(|| vec![0; BUFFER]);
        }
        &mut self.buffer
    }

    /// What was read into the room; nothing is the end.
    fn put(&mut self, bytes: usize) {
        self.start = 0;
        self.end = bytes;
        if bytes == 0 {
            self.ended = true;
            self.release();
        }
    }

    /// A connection that waits holds no buffer.
    fn release(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        (self.start, self.end) = (0, 0);
        if buffer.len() == BUFFER {
            SPARE.with_borrow_mut(|spare| {
                if spare.len() < SPARE_MAX {
                    spare.push(buffer);
                }
            });
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.release();
    }
}
