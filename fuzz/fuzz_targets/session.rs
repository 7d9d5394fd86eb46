//! A peer that sends anything to a whole session, while local ends come, send, stop and go: no panic, no more memory held
//! than the session's share allows, no more streams than the limit, no byte that comes after an end's last one, and in simple
//! mode with windows none that the peer does not take.
#![no_main]

use std::io::{self, IoSlice, IoSliceMut};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use ech_workers_session::{
    Abort, Allowance, Carrier, CloseCode, Closed, Config, Connector, Incoming, Ledger, Limits,
    LocalEnd, Mode, Open, Refusal, Session, Status,
};
use ech_workers_yamux as yamux;
use libfuzzer_sys::fuzz_target;

const MAX_STREAMS: usize = 8;
const SHARE: usize = 1 << 20;
const RECORD: usize = 1024;
/// What a client may send before the server has said how much it takes.
const FIRST_WINDOW: usize = 256 << 10;

#[derive(Arbitrary, Debug)]
struct Run {
    server: bool,
    simple: bool,
    extended: bool,
    window: Option<u16>,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// A yamux frame.
    Frame {
        kind: u8,
        flags: u8,
        stream: u8,
        content: Content,
    },
    /// A stream's first bytes, as a client would send them.
    Preamble {
        stream: u8,
        form: u8,
        authority: Vec<u8>,
    },
    Bytes(Vec<u8>),
    Text {
        words: Text,
        split: u8,
    },
    Pong(Vec<u8>),
    Closed(Option<u16>),
    Open {
        authority: Vec<u8>,
        early: Vec<u8>,
        confirm: bool,
    },
    /// What ends do from now on.
    Ends {
        gives: u16,
        takes: u16,
        fails: bool,
        ended: bool,
    },
    Connected(u8),
    /// Whether the carrier takes anything.
    Full(bool),
    Wait(u16),
    Probe,
    Retire,
}

#[derive(Arbitrary, Debug)]
enum Content {
    Payload(Vec<u8>),
    Length(u32),
}

#[derive(Arbitrary, Debug)]
enum Text {
    Connect(Vec<u8>),
    Open(Vec<u8>),
    Connected,
    Failed(Vec<u8>),
    Error(Vec<u8>),
    Fin,
    Close,
    Window(u16),
    WindowOf(Vec<u8>),
    Any(Vec<u8>),
}

fuzz_target!(|run: Run| {
    let start = Instant::now();
    let clock = std::cell::Cell::new(start);
    let shared = Shared::default();
    let memory = Arc::new(Ledger::new(64 << 20));
    let config = Config {
        mode: if run.simple {
            Mode::Simple {
                window: run.window.map(usize::from),
            }
        } else {
            Mode::Yamux(yamux::Config {
                max_streams: MAX_STREAMS,
                ..yamux::Config::default()
            })
        },
        extended: run.extended,
        limits: Limits {
            answer: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            half_closed_idle: Duration::from_secs(20),
        },
        ping_interval: Duration::from_secs(20),
        ping_timeout: Duration::from_secs(10),
        memory: Arc::clone(&memory),
        memory_share: Allowance::Bytes(SHARE),
        early_bulk: None,
        seed: 1,
    };
    let carrier = Wire::new(shared.clone());
    let mut session = if run.server {
        Session::server(carrier, Box::new(Targets(shared.clone())), config, start)
    } else {
        Session::client(carrier, config, start)
    };
    let mut context = Context::from_waker(Waker::noop());
    for step in &run.steps {
        match step {
            Step::Open {
                authority,
                early,
                confirm,
            } if !run.server => {
                let end = End(shared.clone());
                let deadline = clock.get() + Duration::from_secs(8);
                let mut open = Open::new(end, authority.clone(), deadline);
                open.early.clone_from(early);
                open.confirm = *confirm;
                session.open(open, clock.get());
            }
            Step::Wait(milliseconds) => {
                clock.set(clock.get() + Duration::from_millis(u64::from(*milliseconds)));
            }
            Step::Probe => session.probe(clock.get()),
            Step::Retire => session.retire(),
            other => shared.lock().note(other),
        }
        let mut ended = None;
        // A turn is bounded; a few of them take all that a step gave.
        for _ in 0..4 {
            if let Poll::Ready(how) = session.poll(&mut context, &|| clock.get()) {
                ended = Some(how);
                break;
            }
        }
        assert!(session.streams() <= 256.max(MAX_STREAMS));
        // What arrived with the last batch is held beyond the share, at most.
        assert!(session.held() <= SHARE + BATCH, "{}", session.held());
        assert_eq!(session.held(), memory.held());
        if run.simple && run.extended && run.window.is_some() && !run.server {
            let state = shared.lock();
            assert!(state.sent <= FIRST_WINDOW.saturating_add(state.allowed));
        }
        while let Some(event) = session.poll_event() {
            drop(event);
        }
        if let Some(how) = ended {
            session.say_goodbye(&how);
            let _ = session.poll_close(&mut context);
            break;
        }
    }
    drop(session);
    assert_eq!(memory.held(), 0, "memory of a session that is gone");
});

/// What one batch of the carrier brings at most.
const BATCH: usize = 128 * 1024;

/// What the ends and the carrier do, and the bytes that wait for the session.
#[derive(Default)]
struct State {
    received: Vec<u8>,
    incoming: Vec<Incoming>,
    full: bool,
    gives: usize,
    takes: usize,
    fails: bool,
    ended: bool,
    connected: Option<Status>,
    /// Bytes that the texts of the peer allowed, and bytes of binary messages.
    allowed: usize,
    sent: usize,
}

type Shared = Arc<Lock>;

#[derive(Default)]
struct Lock(std::sync::Mutex<State>);

impl Lock {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

impl State {
    fn note(&mut self, step: &Step) {
        match step {
            Step::Frame {
                kind,
                flags,
                stream,
                content,
            } => {
                let (length, payload) = match content {
                    Content::Payload(bytes) => (bytes.len() as u32, bytes.as_slice()),
                    Content::Length(length) => (*length, &[][..]),
                };
                let mut frame = vec![0, kind % 5, 0, flags & 15];
                frame.extend(u32::from(*stream).to_be_bytes());
                frame.extend(length.to_be_bytes());
                frame.extend(payload);
                self.bytes(&frame);
            }
            Step::Preamble {
                stream,
                form,
                authority,
            } => {
                let mut payload = match form % 3 {
                    0 => authority.clone(),
                    flags => {
                        let [high, low] = (authority.len() as u16).to_be_bytes();
                        let mut extended = vec![2, 1, 1, flags - 1, high, low];
                        extended.extend(authority);
                        extended
                    }
                };
                if form % 3 == 0 {
                    payload.push(b'\n');
                }
                // SYN with the first data.
                let mut frame = vec![0, 0, 0, 1];
                frame.extend(u32::from(*stream).to_be_bytes());
                frame.extend((payload.len() as u32).to_be_bytes());
                frame.extend(payload);
                self.bytes(&frame);
            }
            Step::Bytes(bytes) => self.bytes(bytes),
            Step::Text { words, split } => {
                let mut text = match words {
                    Text::Connect(rest) => [b"CONNECT:", &rest[..]].concat(),
                    Text::Open(rest) => [b"OPEN:", &rest[..]].concat(),
                    Text::Connected => b"CONNECTED".to_vec(),
                    Text::Failed(rest) => [b"FAILED:", &rest[..]].concat(),
                    Text::Error(rest) => [b"ERROR:", &rest[..]].concat(),
                    Text::Fin => b"FIN".to_vec(),
                    Text::Close => b"CLOSE".to_vec(),
                    Text::Window(bytes) => {
                        self.allowed = self.allowed.saturating_add(usize::from(*bytes));
                        format!("WINDOW:{bytes}").into_bytes()
                    }
                    Text::WindowOf(digits) => {
                        // More than is sent in any run.
                        self.allowed = self.allowed.saturating_add(usize::MAX / 2);
                        [b"WINDOW:", &digits[..]].concat()
                    }
                    Text::Any(bytes) => {
                        if bytes.starts_with(b"WINDOW:") {
                            self.allowed = self.allowed.saturating_add(usize::MAX / 2);
                        }
                        bytes.clone()
                    }
                };
                let rest = text.split_off(usize::from(*split).min(text.len()));
                if !text.is_empty() {
                    let range = self.append(&text);
                    self.incoming.push(Incoming::Text { range, end: false });
                }
                let range = self.append(&rest);
                self.incoming.push(Incoming::Text { range, end: true });
            }
            Step::Pong(payload) => {
                let payload = payload[..payload.len().min(125)].to_vec();
                self.incoming.push(Incoming::Pong(payload));
            }
            Step::Closed(code) => self.incoming.push(Incoming::Closed(Closed {
                goodbye: code.is_some(),
                code: *code,
                description: String::new(),
            })),
            Step::Ends {
                gives,
                takes,
                fails,
                ended,
            } => {
                self.gives = usize::from(*gives);
                self.takes = usize::from(*takes);
                self.fails = *fails;
                self.ended = *ended;
            }
            Step::Connected(status) => {
                self.connected = match status % 4 {
                    0 => None,
                    1 => Some(Status::Succeeded),
                    2 => Some(Status::Refused),
                    _ => Some(Status::NameNotFound),
                };
            }
            Step::Full(full) => self.full = *full,
            Step::Open { .. } | Step::Wait(_) | Step::Probe | Step::Retire => {}
        }
    }

    fn append(&mut self, bytes: &[u8]) -> std::ops::Range<usize> {
        let start = self.received.len();
        self.received.extend_from_slice(bytes);
        start..self.received.len()
    }

    fn bytes(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            let range = self.append(bytes);
            self.incoming.push(Incoming::Bytes(range));
        }
    }
}

/// The carrier: what the steps say comes in, and nobody reads what goes out.
struct Wire {
    shared: Shared,
    buffer: Vec<u8>,
    record: Vec<u8>,
    filled: usize,
    /// Bytes that were committed and not flushed.
    committed: usize,
    closed: bool,
}

impl Wire {
    fn new(shared: Shared) -> Self {
        Self {
            shared,
            buffer: Vec::new(),
            record: vec![0; RECORD * 4],
            filled: 0,
            committed: 0,
            closed: false,
        }
    }
}

impl Carrier for Wire {
    type Error = io::Error;

    fn poll_receive(
        &mut self,
        _: &mut Context<'_>,
        incoming: &mut Vec<Incoming>,
    ) -> Poll<io::Result<&[u8]>> {
        let mut state = self.shared.lock();
        if state.incoming.is_empty() {
            incoming.clear();
            return Poll::Pending;
        }
        *incoming = std::mem::take(&mut state.incoming);
        self.buffer = std::mem::take(&mut state.received);
        drop(state);
        Poll::Ready(Ok(&self.buffer))
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.committed < 4 * RECORD {
            return Poll::Ready(Ok(()));
        }
        self.poll_flush(cx)
    }

    fn space(&mut self) -> &mut [u8] {
        &mut self.record[self.filled..RECORD]
    }

    fn spaces(&mut self, most: usize) -> impl Iterator<Item = &mut [u8]> {
        assert_eq!(self.filled, 0, "spaces inside a message");
        self.record.chunks_exact_mut(RECORD).take(most)
    }

    fn add(&mut self, n: usize) {
        self.filled += n;
        assert!(self.filled <= RECORD, "more than there was room for");
    }

    fn filled(&self) -> usize {
        self.filled
    }

    fn commit(&mut self, _: usize) -> io::Result<()> {
        assert!(!self.closed, "a message after the goodbye");
        self.shared.lock().sent += self.filled;
        self.committed += std::mem::take(&mut self.filled);
        Ok(())
    }

    fn text(&mut self, text: Vec<u8>) {
        assert!(!self.closed, "a text after the goodbye");
        assert_eq!(self.filled, 0, "a text inside a message");
        self.committed += text.len();
    }

    fn ping(&mut self, payload: &[u8]) {
        assert!(payload.len() <= 125);
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.shared.lock().full {
            return Poll::Pending;
        }
        self.committed = 0;
        Poll::Ready(Ok(()))
    }

    fn close(&mut self, _: CloseCode) {
        self.closed = true;
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

struct End(Shared);

impl LocalEnd for End {
    fn poll_connect(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        match self.0.lock().connected {
            None => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Some(Status::Succeeded) => Poll::Ready(Ok(())),
            Some(status) => Poll::Ready(Err(Refusal::new(status, "as the step says"))),
        }
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        spaces: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.0.lock();
        if state.fails {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if state.gives == 0 && !state.ended {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let room: usize = spaces.iter().map(|space| space.len()).sum();
        let length = room.min(state.gives);
        state.gives -= length;
        Poll::Ready(Ok(length))
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.0.lock();
        let length: usize = pieces.iter().map(|piece| piece.len()).sum();
        if state.takes == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let taken = length.min(state.takes);
        state.takes -= taken;
        Poll::Ready(Ok(taken))
    }

    fn finish(&mut self) {}

    fn close(self) {}

    fn abort(self, _: Abort) {}

    fn refuse(self, _: &Refusal) {}
}

struct Targets(Shared);

impl Connector for Targets {
    type End = End;

    fn connect(&mut self, authority: &[u8]) -> Result<End, Refusal> {
        if authority.is_empty() {
            return Err(Refusal::new(Status::NotAllowed, "no target"));
        }
        Ok(End(Arc::clone(&self.0)))
    }
}
