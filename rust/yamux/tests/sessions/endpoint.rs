//! An application at one end of a session that checks everything it is told.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;
use std::time::Instant;

use ech_workers_yamux::{
    Config, Connection, Event, HEADER_LEN, INITIAL_WINDOW, OpenError, Side, StreamId,
};

pub(crate) struct Endpoint {
    pub(crate) side: Side,
    pub(crate) connection: Connection,
    pub(crate) streams: BTreeMap<StreamId, Stream>,
    /// Bytes for the peer, in order.
    pub(crate) wire: Vec<u8>,
    /// Window credit sent for each stream, the first 256 KiB included.
    granted: HashMap<StreamId, u64>,
    window_max: u64,
}

/// What the application knows of a stream.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    pub(crate) sent: u64,
    pub(crate) finished: bool,
    pub(crate) received: u64,
    pub(crate) unconsumed: usize,
    pub(crate) ended: bool,
    pub(crate) reset: bool,
}

impl Endpoint {
    pub(crate) fn new(side: Side, config: Config, now: Instant) -> Self {
        Self {
            side,
            window_max: u64::from(config.receive_window_max),
            connection: Connection::new(side, config, now),
            streams: BTreeMap::new(),
            wire: Vec::new(),
            granted: HashMap::new(),
        }
    }

    pub(crate) fn open(&mut self) -> Result<StreamId, OpenError> {
        let id = self.connection.open()?;
        self.streams.insert(id, Stream::default());
        Ok(id)
    }

    /// Sends up to `length` bytes; how many the window took.
    pub(crate) fn send(&mut self, id: StreamId, length: usize) -> usize {
        let length = length.min(self.connection.send_window(id));
        let stream = self.streams.get_mut(&id).unwrap();
        if length > 0 {
            assert!(!stream.finished, "a window on a finished stream");
            self.wire
                .extend_from_slice(&self.connection.data_header(id, length));
            write(&mut self.wire, id.value(), self.side, stream.sent, length);
            stream.sent += length as u64;
        }
        length
    }

    pub(crate) fn finish(&mut self, id: StreamId) {
        self.connection.finish(id);
        self.streams.get_mut(&id).unwrap().finished = true;
    }

    pub(crate) fn reset(&mut self, id: StreamId) {
        self.connection.reset(id);
        assert!(!self.connection.is_open(id));
        self.streams.get_mut(&id).unwrap().reset = true;
    }

    pub(crate) fn consume(&mut self, id: StreamId, length: usize, now: Instant) {
        let stream = self.streams.get_mut(&id).unwrap();
        let length = length.min(stream.unconsumed);
        stream.unconsumed -= length;
        self.connection.consumed(id, length, now);
    }

    /// Puts the pending control frames on the wire; how many there were.
    pub(crate) fn flush(&mut self, now: Instant) -> usize {
        let mut frames = 0;
        while let Some(frame) = self.connection.poll_control(now) {
            frames += 1;
            self.note_credit(frame);
            self.wire.extend_from_slice(&frame);
        }
        assert!(!self.connection.has_control());
        frames
    }

    /// What came from the peer.
    pub(crate) fn deliver(&mut self, mut input: &[u8], now: Instant) {
        loop {
            let (n, event) = self.connection.receive(input, now).unwrap();
            let Some(event) = event else {
                assert_eq!(n, input.len());
                return;
            };
            match event {
                Event::Opened(id) => {
                    let known = self.streams.insert(id, Stream::default());
                    assert!(known.is_none(), "{id} was opened twice");
                }
                Event::Data { stream: id, range } => {
                    assert!(!range.is_empty());
                    self.take_data(id, &input[range]);
                }
                Event::Finished(id) => {
                    let stream = self.streams.get_mut(&id).unwrap();
                    assert!(!stream.ended && !stream.reset);
                    stream.ended = true;
                }
                Event::Reset(id) | Event::Refused(id) => {
                    let stream = self.streams.get_mut(&id).unwrap();
                    assert!(!stream.reset, "{id} was reset already");
                    stream.reset = true;
                }
                Event::Writable(id) => assert!(self.connection.send_window(id) > 0),
                Event::Pong { .. } | Event::GoAway(_) => {}
            }
            input = &input[n..];
        }
    }

    fn take_data(&mut self, id: StreamId, payload: &[u8]) {
        let peer = match self.side {
            Side::Client => Side::Server,
            Side::Server => Side::Client,
        };
        let stream = self.streams.get_mut(&id).unwrap();
        assert!(
            !stream.ended && !stream.reset,
            "data behind the end of {id}"
        );
        check(payload, id.value(), peer, stream.received);
        stream.received += payload.len() as u64;
        stream.unconsumed += payload.len();
        let granted = self
            .granted
            .get(&id)
            .copied()
            .unwrap_or(u64::from(INITIAL_WINDOW));
        assert!(stream.received <= granted, "{id} overran its window");
    }

    fn note_credit(&mut self, frame: [u8; HEADER_LEN]) {
        let [_, kind, _, _, s0, s1, s2, s3, l0, l1, l2, l3] = frame;
        if kind != 1 {
            return;
        }
        let id = StreamId::new(u32::from_be_bytes([s0, s1, s2, s3])).unwrap();
        let granted = self.granted.entry(id).or_insert(INITIAL_WINDOW.into());
        *granted += u64::from(u32::from_be_bytes([l0, l1, l2, l3]));
        // A refused stream is not among them.
        let consumed = self
            .streams
            .get(&id)
            .map_or(0, |stream| stream.received - stream.unconsumed as u64);
        assert!(
            *granted - consumed <= self.window_max,
            "stream {id} may hold more than its window"
        );
    }
}

/// What `from` sends on a stream, from byte `at` on, in pieces: a slip, a loss or a mix-up of streams shows.
fn content(id: u32, from: Side, at: u64) -> impl Iterator<Item = &'static [u8]> {
    /// A prime, so that no power of two of bytes can be lost unseen.
    const PERIOD: usize = 65_521;
    static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mut state = 1u64;
        std::iter::repeat_with(|| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        })
        .take(PERIOD)
        .collect()
    });
    let start = u64::from(id) * 7919 + (from as u64) * 31 + at;
    let first = &PATTERN[(start % PERIOD as u64) as usize..];
    std::iter::once(first).chain(std::iter::repeat(&PATTERN[..]))
}

/// Appends `length` bytes of it.
pub(crate) fn write(buffer: &mut Vec<u8>, id: u32, from: Side, at: u64, mut length: usize) {
    for piece in content(id, from, at) {
        let n = piece.len().min(length);
        buffer.extend_from_slice(&piece[..n]);
        length -= n;
        if length == 0 {
            return;
        }
    }
}

/// Whether `payload` is what it should be.
pub(crate) fn check(mut payload: &[u8], id: u32, from: Side, at: u64) {
    for piece in content(id, from, at) {
        let n = piece.len().min(payload.len());
        assert!(
            payload[..n] == piece[..n],
            "wrong bytes on {id} behind {at}"
        );
        payload = &payload[n..];
        if payload.is_empty() {
            return;
        }
    }
}
