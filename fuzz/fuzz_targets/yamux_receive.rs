//! A peer that sends anything while we do what applications do: no panic, no window overrun, bounded answers, and the
//! same events however the bytes are cut.
#![no_main]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use ech_workers_yamux::{
    Config, Connection, Error, Event, GoAwayCode, HEADER_LEN, INITIAL_WINDOW, Side, StreamId,
    WindowBudget,
};
use libfuzzer_sys::fuzz_target;

const MAX_STREAMS: usize = 6;

/// More control frames than these operations can ever make due at once.
const CONTROL_MAX: usize = 2048;

#[derive(Arbitrary, Debug)]
struct Session {
    server: bool,
    operations: Vec<Operation>,
}

#[derive(Arbitrary, Debug)]
enum Operation {
    /// A frame that is well-formed, but for its meaning perhaps.
    Frame {
        kind: u8,
        flags: u8,
        stream: u8,
        content: Content,
    },
    /// Any bytes.
    Bytes(Vec<u8>),
    Open,
    Send {
        stream: u8,
        length: u16,
    },
    Consume {
        stream: u8,
        length: u32,
    },
    Finish(u8),
    Reset(u8),
    Ping,
    GoAway,
    Wait {
        milliseconds: u16,
    },
}

#[derive(Arbitrary, Debug)]
enum Content {
    Payload(Vec<u8>),
    /// The length field alone: a window credit, or a payload that does not come.
    Length(u32),
}

fuzz_target!(|session: Session| {
    let now = Instant::now();
    let side = if session.server {
        Side::Server
    } else {
        Side::Client
    };
    let mut whole = Endpoint::new(side, now, usize::MAX);
    let mut single = Endpoint::new(side, now, 1);
    let mut clock = now;
    for operation in &session.operations {
        if let Operation::Wait { milliseconds } = operation {
            clock += Duration::from_millis(u64::from(*milliseconds));
        }
        whole.perform(operation, clock);
        single.perform(operation, clock);
        assert_eq!(whole.heard, single.heard);
        assert_eq!(whole.error, single.error);
        assert_eq!(
            whole.connection.stats().payload_received,
            single.connection.stats().payload_received
        );
        if whole.error.is_some() {
            break;
        }
    }
});

struct Endpoint {
    connection: Connection,
    side: Side,
    /// The length of the pieces in which bytes arrive.
    piece: usize,
    streams: BTreeMap<StreamId, Stream>,
    heard: Vec<Heard>,
    error: Option<Error>,
}

/// What the application and the wire know of a stream.
struct Stream {
    received: u64,
    granted: u64,
    unconsumed: usize,
    /// Whether the peer has ended it.
    ended: bool,
}

#[derive(Debug, PartialEq)]
enum Heard {
    Data { stream: StreamId, bytes: Vec<u8> },
    Other(Event),
}

impl Endpoint {
    fn new(side: Side, now: Instant, piece: usize) -> Self {
        let config = Config {
            receive_window_max: 1 << 20,
            session_window_max: 2 << 20,
            budget: Arc::new(WindowBudget::new(4 << 20)),
            max_streams: MAX_STREAMS,
            ..Config::default()
        };
        Self {
            connection: Connection::new(side, config, now),
            side,
            piece,
            streams: BTreeMap::new(),
            heard: Vec::new(),
            error: None,
        }
    }

    fn perform(&mut self, operation: &Operation, now: Instant) {
        match *operation {
            Operation::Frame {
                kind,
                flags,
                stream,
                ref content,
            } => {
                let (length, payload) = match content {
                    Content::Payload(payload) => (payload.len() as u32, &payload[..]),
                    Content::Length(length) => (*length, &[][..]),
                };
                let mut frame = vec![0, kind % 4, 0, flags % 16, 0, 0, 0, stream % 16];
                frame.extend(length.to_be_bytes());
                frame.extend(payload);
                self.receive(&frame, now);
            }
            Operation::Bytes(ref bytes) => self.receive(bytes, now),
            Operation::Open => {
                if let Ok(id) = self.connection.open() {
                    self.note_opened(id);
                }
            }
            Operation::Send { stream, length } => {
                if let Some(id) = self.pick(stream) {
                    let length = self.connection.send_window(id).min(usize::from(length));
                    if length > 0 {
                        let header = self.connection.data_header(id, length);
                        assert_eq!(header[8..], (length as u32).to_be_bytes());
                    }
                }
            }
            Operation::Consume { stream, length } => {
                if let Some(id) = self.pick(stream)
                    && let Some(known) = self.streams.get_mut(&id)
                {
                    let length = known.unconsumed.min(length as usize);
                    known.unconsumed -= length;
                    self.connection.consumed(id, length, now);
                }
            }
            Operation::Finish(stream) => {
                if let Some(id) = self.pick(stream) {
                    self.connection.finish(id);
                    assert_eq!(self.connection.send_window(id), 0);
                }
            }
            Operation::Reset(stream) => {
                if let Some(id) = self.pick(stream) {
                    self.connection.reset(id);
                    assert!(!self.connection.is_open(id));
                    self.streams.remove(&id);
                }
            }
            Operation::Ping => self.connection.ping(now),
            Operation::GoAway => self.connection.go_away(GoAwayCode::Normal),
            Operation::Wait { .. } => {
                if let Err(error) = self.connection.handle_timeout(now) {
                    self.error = Some(error);
                }
                assert!(
                    self.error.is_some()
                        || self.connection.next_timeout().is_none_or(|at| at > now)
                );
            }
        }
        self.flush(now);
        assert!(self.connection.stats().streams <= 2 * MAX_STREAMS);
    }

    fn receive(&mut self, bytes: &[u8], now: Instant) {
        for piece in bytes.chunks(self.piece) {
            let mut rest = piece;
            loop {
                let (taken, event) = match self.connection.receive(rest, now) {
                    Ok(read) => read,
                    Err(error) => {
                        assert_eq!(
                            self.connection.receive(rest, now),
                            Err(error),
                            "an error that passes"
                        );
                        self.error = Some(error);
                        return;
                    }
                };
                let Some(event) = event else {
                    assert_eq!(taken, rest.len(), "bytes left over without an event");
                    break;
                };
                self.note(event, rest);
                rest = &rest[taken..];
            }
        }
    }

    fn note(&mut self, event: Event, input: &[u8]) {
        match &event {
            Event::Data { stream: id, range } => {
                let payload = &input[range.clone()];
                assert!(!payload.is_empty());
                let stream = self
                    .streams
                    .get_mut(id)
                    .expect("data on a stream that is open");
                assert!(!stream.ended, "data behind the end");
                stream.received += payload.len() as u64;
                stream.unconsumed += payload.len();
                assert!(stream.received <= stream.granted, "the window was overrun");
                if let Some(Heard::Data { stream, bytes }) = self.heard.last_mut()
                    && stream == id
                {
                    bytes.extend_from_slice(payload);
                } else {
                    self.heard.push(Heard::Data {
                        stream: *id,
                        bytes: payload.to_vec(),
                    });
                }
                return;
            }
            Event::Opened(id) => {
                assert_eq!(
                    id.value() % 2 == 1,
                    self.side == Side::Server,
                    "an id of our own parity"
                );
                self.note_opened(*id);
            }
            Event::Finished(id) => {
                let stream = self
                    .streams
                    .get_mut(id)
                    .expect("the end of a stream that is open");
                assert!(!stream.ended, "a stream ended twice");
                stream.ended = true;
            }
            Event::Reset(id) | Event::Refused(id) => {
                self.streams
                    .remove(id)
                    .expect("the reset of a stream that is open");
            }
            Event::Writable(id) => assert!(self.connection.send_window(*id) > 0),
            Event::Pong { .. } | Event::GoAway(_) => {}
        }
        self.heard.push(Heard::Other(event));
    }

    fn note_opened(&mut self, id: StreamId) {
        let granted = u64::from(INITIAL_WINDOW);
        let stream = Stream {
            received: 0,
            granted,
            unconsumed: 0,
            ended: false,
        };
        assert!(
            self.streams.insert(id, stream).is_none(),
            "a stream was opened twice"
        );
    }

    /// Takes all control frames, and notes the credit in them.
    fn flush(&mut self, now: Instant) {
        for count in 0.. {
            let Some(frame) = self.connection.poll_control(now) else {
                break;
            };
            assert!(count < CONTROL_MAX, "control frames without end");
            let [0, kind, _, _, a, b, c, d, e, f, g, h] = frame else {
                panic!("a frame of another version");
            };
            let stream = u32::from_be_bytes([a, b, c, d]);
            if kind == 1
                && let Some((_, known)) =
                    self.streams.iter_mut().find(|(id, _)| id.value() == stream)
            {
                known.granted += u64::from(u32::from_be_bytes([e, f, g, h]));
            }
        }
        assert!(!self.connection.has_control());
        const { assert!(HEADER_LEN == 12) };
    }

    /// One of the streams known, gone ones among them.
    fn pick(&self, index: u8) -> Option<StreamId> {
        let count = self.streams.len().max(1);
        self.streams.keys().nth(usize::from(index) % count).copied()
    }
}
