//! Local programs and targets that send and take bytes at their own pace, and look at each byte they get.

use std::io::{self, IoSlice, IoSliceMut};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use ech_workers_session::{Abort, Connector, LocalEnd, Refusal, Status};

use crate::link::Clock;
use crate::random::{Random, pattern};

/// What a slow end takes at a time, in bytes.
const SLOW_BITE: usize = 4000;

/// How an end behaves.
#[derive(Debug, Clone)]
pub(crate) struct Script {
    /// Bytes that it sends, of this pattern.
    pub(crate) seed: u64,
    pub(crate) sends: usize,
    /// Bytes that it should get, of this pattern.
    pub(crate) expects_seed: u64,
    pub(crate) expects: usize,
    /// It takes nothing for so long, once.
    pub(crate) stops_reading: Duration,
    /// It takes little at a time, and nothing for so long behind that.
    pub(crate) slow: Duration,
    /// It fails when it has sent so many bytes.
    pub(crate) fails_after: Option<usize>,
    /// It sends its data only when it got all that it expects.
    pub(crate) answers_at_the_end: bool,
    pub(crate) connect_takes: Duration,
    pub(crate) refuses: Option<Status>,
    /// It never ends its direction by itself.
    pub(crate) stays: bool,
}

/// What became of an end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    Open,
    Closed,
    Aborted(Abort),
    Refused(Status),
    /// It was dropped without a word.
    Dropped,
}

#[derive(Debug)]
pub(crate) struct EndState {
    pub(crate) script: Script,
    pub(crate) sent: usize,
    pub(crate) got: usize,
    pub(crate) opened: u32,
    pub(crate) finished: bool,
    pub(crate) fate: Fate,
    /// The end of its data was read.
    pub(crate) ended: bool,
    /// It gives nothing, and takes nothing, until then.
    gives_at: Instant,
    takes_at: Instant,
    stopped: bool,
    stopped_until: Instant,
    waker: Option<Waker>,
    random: Random,
    own: usize,
}

impl EndState {
    pub(crate) fn new(script: Script, clock: &Clock, random: Random) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self {
            script,
            sent: 0,
            got: 0,
            opened: 0,
            finished: false,
            fate: Fate::Open,
            ended: false,
            gives_at: clock.now(),
            takes_at: clock.now(),
            stopped: false,
            stopped_until: clock.now(),
            waker: None,
            random,
            own: 0,
        }))
    }

    /// When it moves on.
    pub(crate) fn next_move(&self) -> Option<Instant> {
        self.waker
            .as_ref()
            .map(|_| self.gives_at.min(self.takes_at))
    }

    pub(crate) fn wake(&mut self, now: Instant) {
        if self.next_move().is_some_and(|at| at <= now)
            && let Some(waker) = &self.waker
        {
            waker.wake_by_ref();
            let never = now + Duration::from_secs(86_400);
            for at in [&mut self.gives_at, &mut self.takes_at] {
                if *at <= now {
                    *at = never;
                }
            }
        }
    }

    fn give_at(&mut self, cx: &mut Context<'_>, at: Instant) {
        self.gives_at = at;
        self.waker = Some(cx.waker().clone());
    }

    fn take_at(&mut self, cx: &mut Context<'_>, at: Instant) {
        self.takes_at = at;
        self.waker = Some(cx.waker().clone());
    }
}

/// An end in the hands of a session.
#[derive(Debug)]
pub(crate) struct End {
    clock: Clock,
    state: Arc<Mutex<EndState>>,
    connected_at: Instant,
}

/// What a client's end is told first.
pub(crate) const REPLY: &[u8] = b"+ok\n";

impl End {
    pub(crate) fn new(clock: &Clock, state: &Arc<Mutex<EndState>>) -> Self {
        let takes = state.lock().unwrap().script.connect_takes;
        Self {
            clock: clock.clone(),
            state: Arc::clone(state),
            connected_at: clock.now() + takes,
        }
    }

    /// These are all the bytes that the end has given.
    pub(crate) fn assert_all_is_in(&self, early: &[u8]) {
        let state = self.state.lock().unwrap();
        assert_eq!(early.len(), state.sent, "bytes of a program are missing");
        for (offset, &byte) in early.iter().enumerate() {
            assert_eq!(byte, pattern(state.script.seed, offset));
        }
    }
}

impl LocalEnd for End {
    fn poll_connect(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        let mut state = self.state.lock().unwrap();
        if self.clock.now() < self.connected_at {
            let until = self.connected_at;
            state.give_at(cx, until);
            return Poll::Pending;
        }
        Poll::Ready(match state.script.refuses {
            Some(status) => Err(Refusal::new(status, "as the script says")),
            None => Ok(()),
        })
    }

    fn opened(&mut self) -> Vec<u8> {
        let mut state = self.state.lock().unwrap();
        state.opened += 1;
        assert_eq!(state.opened, 1, "success was told twice");
        state.own = REPLY.len();
        REPLY.to_vec()
    }

    fn reads_many(&self) -> bool {
        true
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        spaces: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let now = self.clock.now();
        let mut state = self.state.lock().unwrap();
        if state
            .script
            .fails_after
            .is_some_and(|after| state.sent >= after)
        {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let answers = !state.script.answers_at_the_end || state.finished;
        if !answers || state.sent == state.script.sends && state.script.stays && !state.finished {
            // Something will come, and with it a call.
            state.give_at(cx, now + Duration::from_millis(5));
            return Poll::Pending;
        }
        if state.random.once_in(4) {
            let pause = Duration::from_micros(state.random.range(1, 3000));
            state.give_at(cx, now + pause);
            return Poll::Pending;
        }
        let most = state.random.range(1, 70_000) as usize;
        let left = (state.script.sends - state.sent).min(most);
        let mut n = 0;
        for space in spaces {
            for byte in space.iter_mut() {
                if n == left {
                    break;
                }
                *byte = pattern(state.script.seed, state.sent + n);
                n += 1;
            }
        }
        state.sent += n;
        if n == 0 {
            state.ended = true;
        }
        Poll::Ready(Ok(n))
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let now = self.clock.now();
        let mut state = self.state.lock().unwrap();
        assert!(!state.finished, "bytes came after the end of the data");
        if now < state.stopped_until {
            let until = state.stopped_until;
            state.take_at(cx, until);
            return Poll::Pending;
        }
        if !state.stopped && state.got * 2 >= state.script.expects {
            state.stopped = true;
            let until = now + state.script.stops_reading;
            state.stopped_until = until;
            state.take_at(cx, until);
            return Poll::Pending;
        }
        if state.random.once_in(5) {
            let pause = Duration::from_micros(state.random.range(1, 2000));
            state.take_at(cx, now + pause);
            return Poll::Pending;
        }
        let mut most = state.random.range(1, 100_000) as usize;
        if !state.script.slow.is_zero() {
            most = SLOW_BITE;
            state.stopped_until = now + state.script.slow;
        }
        let mut n = 0;
        for byte in pieces.iter().flat_map(|piece| piece.iter()).take(most) {
            if state.own > 0 {
                assert_eq!(
                    *byte,
                    REPLY[REPLY.len() - state.own],
                    "the reply comes first"
                );
                state.own -= 1;
            } else {
                assert_eq!(
                    *byte,
                    pattern(state.script.expects_seed, state.got),
                    "byte {} is another one",
                    state.got
                );
                state.got += 1;
            }
            n += 1;
        }
        Poll::Ready(Ok(n))
    }

    fn finish(&mut self) {
        let mut state = self.state.lock().unwrap();
        assert!(!state.finished, "the end of the data was told twice");
        state.finished = true;
    }

    fn close(self) {
        let mut state = self.state.lock().unwrap();
        state.finished = true;
        state.fate = Fate::Closed;
    }

    fn abort(self, why: Abort) {
        self.state.lock().unwrap().fate = Fate::Aborted(why);
    }

    fn refuse(self, refusal: &Refusal) {
        let mut state = self.state.lock().unwrap();
        state.fate = if state.opened > 0 {
            Fate::Aborted(Abort::Reset)
        } else {
            Fate::Refused(refusal.status)
        };
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let Ok(mut state) = self.state.lock() else {
            return;
        };
        if state.fate == Fate::Open {
            state.fate = Fate::Dropped;
        }
        state.waker = None;
    }
}

/// Connects to the targets of a plan by their number.
pub(crate) struct Targets {
    pub(crate) clock: Clock,
    pub(crate) scripts: Vec<Script>,
    pub(crate) made: Arc<Mutex<Vec<Arc<Mutex<EndState>>>>>,
    pub(crate) random: Random,
}

impl Connector for Targets {
    type End = End;

    fn connect(&mut self, authority: &[u8]) -> Result<End, Refusal> {
        let text = std::str::from_utf8(authority).unwrap();
        let number: usize = text.strip_suffix(".test:1").unwrap().parse().unwrap();
        let state = EndState::new(
            self.scripts[number].clone(),
            &self.clock,
            self.random.fork(),
        );
        let end = End::new(&self.clock, &state);
        self.made.lock().unwrap().push(state);
        Ok(end)
    }
}
