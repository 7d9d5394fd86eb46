//! A virtual link: bytes that arrive late, split or merged, sockets that are full, and cuts.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use ech_workers_session::{Carrier, CloseCode, Closed, Incoming};

use crate::random::Random;

const HEADER: usize = 5;
const READ_MAX: usize = 128 * 1024;

/// The time that everybody sees.
#[derive(Debug, Clone)]
pub(crate) struct Clock(Arc<Mutex<Instant>>);

impl Clock {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    pub(crate) fn now(&self) -> Instant {
        *self.0.lock().unwrap()
    }

    pub(crate) fn advance_to(&self, time: Instant) {
        let mut now = self.0.lock().unwrap();
        *now = time.max(*now);
    }
}

/// One direction.
#[derive(Debug)]
pub(crate) struct Pipe {
    /// Bytes under way, and when they arrive.
    under_way: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    capacity: usize,
    delay: Duration,
    cut: bool,
    ended: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
    random: Random,
}

impl Pipe {
    pub(crate) fn new(capacity: usize, delay: Duration, random: Random) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self {
            under_way: VecDeque::new(),
            bytes: 0,
            capacity,
            delay,
            cut: false,
            ended: false,
            reader: None,
            writer: None,
            random,
        }))
    }

    /// The connection breaks.
    pub(crate) fn cut(&mut self) {
        self.cut = true;
        for waker in [self.reader.take(), self.writer.take()]
            .into_iter()
            .flatten()
        {
            waker.wake();
        }
    }

    /// When the next bytes arrive.
    pub(crate) fn next_arrival(&self) -> Option<Instant> {
        self.reader.as_ref()?;
        self.under_way.front().map(|(at, _)| *at)
    }

    /// Wakes the reader if something has arrived.
    pub(crate) fn wake(&mut self, now: Instant) {
        if self.next_arrival().is_some_and(|at| at <= now)
            && let Some(reader) = self.reader.take()
        {
            reader.wake();
        }
    }

    /// Puts a message into it, as a peer would.
    pub(crate) fn put(&mut self, kind: u8, payload: &[u8], now: Instant) {
        let mut message = vec![kind];
        message.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        message.extend_from_slice(payload);
        assert_eq!(
            self.write(&message, now),
            message.len(),
            "the pipe is too small"
        );
    }

    /// Takes all whole messages out of it, as their kind and payload.
    pub(crate) fn messages(&mut self) -> Vec<(u8, Vec<u8>)> {
        let bytes: Vec<u8> = self
            .under_way
            .drain(..)
            .flat_map(|(_, bytes)| bytes)
            .collect();
        self.bytes = 0;
        let mut rest = bytes.as_slice();
        let mut messages = Vec::new();
        while let Some((header, behind)) = rest.split_at_checked(HEADER) {
            let length = u32::from_be_bytes(header[1..].try_into().unwrap()) as usize;
            let (payload, next) = behind.split_at(length);
            messages.push((header[0], payload.to_vec()));
            rest = next;
        }
        messages
    }

    fn write(&mut self, bytes: &[u8], now: Instant) -> usize {
        let n = bytes
            .len()
            .min(self.capacity - self.bytes.min(self.capacity));
        let mut rest = &bytes[..n];
        while !rest.is_empty() {
            let piece = if self.random.once_in(3) {
                self.random.range(1, rest.len() as u64 + 1) as usize
            } else {
                rest.len()
            };
            let jitter = Duration::from_micros(self.random.range(0, 300));
            let mut at = now + self.delay + jitter;
            if let Some((last, _)) = self.under_way.back() {
                at = at.max(*last);
            }
            self.under_way.push_back((at, rest[..piece].to_vec()));
            rest = &rest[piece..];
        }
        self.bytes += n;
        n
    }

    fn read(&mut self, into: &mut Vec<u8>, now: Instant) -> usize {
        let mut n = 0;
        while let Some((at, bytes)) = self.under_way.front_mut()
            && *at <= now
            && n < READ_MAX
        {
            let take = bytes.len().min(READ_MAX - n);
            into.extend(bytes.drain(..take));
            n += take;
            if bytes.is_empty() {
                self.under_way.pop_front();
            }
        }
        self.bytes -= n;
        if n > 0
            && let Some(writer) = self.writer.take()
        {
            writer.wake();
        }
        n
    }
}

/// One end of the link.
#[derive(Debug)]
pub(crate) struct Link {
    clock: Clock,
    outgoing: Arc<Mutex<Pipe>>,
    incoming: Arc<Mutex<Pipe>>,
    record: usize,
    records: usize,
    /// Messages that wait for the pipe.
    sealed: Vec<u8>,
    filled: usize,
    /// Bytes of the message that are still to be committed.
    following: usize,
    spaces_per_message: usize,
    /// Spaces of the next records. The first of them is being filled.
    spaces: VecDeque<Vec<u8>>,
    received: Vec<u8>,
    buffer: Vec<u8>,
    controls: VecDeque<(u8, Vec<u8>)>,
    closed: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Cut;

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the link was cut")
    }
}

impl Link {
    pub(crate) fn new(
        clock: Clock,
        outgoing: Arc<Mutex<Pipe>>,
        incoming: Arc<Mutex<Pipe>>,
        random: &mut Random,
    ) -> Self {
        let record = [300, 1500, 4096, 16384][random.range(0, 4) as usize];
        Self {
            clock,
            outgoing,
            incoming,
            record,
            records: random.range(1, 17) as usize,
            sealed: Vec::new(),
            filled: 0,
            following: 0,
            spaces_per_message: random.range(1, 5) as usize,
            spaces: VecDeque::from([vec![0; record]]),
            received: Vec::new(),
            buffer: Vec::new(),
            controls: VecDeque::new(),
            closed: false,
        }
    }

    fn frame(&mut self, kind: u8, payload: &[u8]) {
        self.sealed.push(kind);
        self.sealed
            .extend_from_slice(&(payload.len() as u32).to_be_bytes());
        self.sealed.extend_from_slice(payload);
    }

    fn drain(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Cut>> {
        let mut pipe = self.outgoing.lock().unwrap();
        if pipe.cut {
            return Poll::Ready(Err(Cut));
        }
        let n = pipe.write(&self.sealed, self.clock.now());
        self.sealed.drain(..n);
        if self.sealed.is_empty() {
            return Poll::Ready(Ok(()));
        }
        pipe.writer = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Carrier for Link {
    type Error = Cut;

    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        incoming: &mut Vec<Incoming>,
    ) -> Poll<Result<&[u8], Cut>> {
        incoming.clear();
        let mut pipe = self.incoming.lock().unwrap();
        if pipe.cut {
            return Poll::Ready(Err(Cut));
        }
        if pipe.read(&mut self.received, self.clock.now()) == 0 {
            if pipe.ended && pipe.under_way.is_empty() {
                incoming.push(Incoming::Closed(Closed {
                    goodbye: false,
                    code: None,
                    description: String::new(),
                }));
                return Poll::Ready(Ok(&[]));
            }
            pipe.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        self.buffer.clear();
        let mut used = 0;
        while let Some(header) = self.received.get(used..used + HEADER) {
            let length = u32::from_be_bytes(header[1..].try_into().unwrap()) as usize;
            let kind = header[0];
            let Some(payload) = self.received.get(used + HEADER..used + HEADER + length) else {
                break;
            };
            let start = self.buffer.len();
            self.buffer.extend_from_slice(payload);
            let range = start..self.buffer.len();
            match kind {
                0 => incoming.push(Incoming::Bytes(range)),
                1 => incoming.push(Incoming::Text { range, end: true }),
                2 => self.controls.push_back((3, payload.to_vec())),
                3 => incoming.push(Incoming::Pong(payload.to_vec())),
                _ => incoming.push(Incoming::Closed(Closed {
                    goodbye: true,
                    code: Some(u16::from_be_bytes([payload[0], payload[1]])),
                    description: String::new(),
                })),
            }
            used += HEADER + length;
        }
        self.received.drain(..used);
        Poll::Ready(Ok(&self.buffer))
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Cut>> {
        assert_eq!(self.following, 0, "a message is not whole");
        if self.sealed.len() >= self.records * self.record {
            match self.drain(cx) {
                Poll::Ready(outcome) => outcome?,
                Poll::Pending if self.sealed.len() >= self.records * self.record => {
                    return Poll::Pending;
                }
                Poll::Pending => {}
            }
        }
        Poll::Ready(Ok(()))
    }

    fn space(&mut self) -> &mut [u8] {
        &mut self.spaces[0][self.filled..]
    }

    fn spaces(&mut self, most: usize) -> impl Iterator<Item = &mut [u8]> {
        assert_eq!(self.filled, 0, "spaces were asked for inside a message");
        let room = (self.records * self.record).saturating_sub(self.sealed.len()) / self.record;
        let offered = most.min(room);
        self.spaces.resize(offered.max(1), vec![0; self.record]);
        self.spaces.iter_mut().map(Vec::as_mut_slice).take(offered)
    }

    fn add(&mut self, n: usize) {
        self.filled += n;
        assert!(
            self.filled <= self.record,
            "more was added than there is space for"
        );
    }

    fn filled(&self) -> usize {
        self.filled
    }

    fn spaces_per_message(&self) -> usize {
        self.spaces_per_message
    }

    fn commit(&mut self, following: usize) -> Result<(), Cut> {
        assert!(
            self.following == 0 || self.filled + following == self.following,
            "a message was announced longer, or shorter, than it is"
        );
        assert!(
            following <= (self.spaces_per_message - 1) * self.record,
            "a message fills more spaces than it may"
        );
        self.following = following;
        let mut payload = self.spaces.pop_front().unwrap();
        payload.truncate(self.filled);
        self.filled = 0;
        if self.spaces.is_empty() {
            self.spaces.push_back(vec![0; self.record]);
        }
        self.frame(0, &payload);
        Ok(())
    }

    fn text(&mut self, text: Vec<u8>) {
        assert_eq!(
            (self.filled, self.following),
            (0, 0),
            "a text inside a message"
        );
        self.frame(1, &text);
    }

    fn ping(&mut self, payload: &[u8]) {
        assert!(payload.len() <= 125);
        self.controls.push_back((2, payload.to_vec()));
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Cut>> {
        assert_eq!(self.following, 0, "a message is not whole");
        while let Some((kind, payload)) = self.controls.pop_front() {
            self.frame(kind, &payload);
        }
        self.drain(cx)
    }

    fn close(&mut self, code: CloseCode) {
        if !self.closed {
            self.closed = true;
            self.controls
                .push_back((4, (code as u16).to_be_bytes().to_vec()));
        }
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Cut>> {
        match self.poll_flush(cx) {
            Poll::Ready(Ok(())) => {}
            other => return other,
        }
        let mut pipe = self.outgoing.lock().unwrap();
        pipe.ended = true;
        if let Some(reader) = pipe.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(()))
    }
}
