//! The session: frames in, events out; operations in, headers out.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};

use crate::config::{Config, Side};
use crate::error::{Error, OpenError};
use crate::frame::{Flags, GoAwayCode, HEADER_LEN, Header, Kind, StreamId};
use crate::identifiers::{IdHash, Use, UsedIds};
use crate::keepalive::KeepAlive;
use crate::stream::{Room, Sending, Stream};
use crate::window::{Bounds, Company, Growth};

/// Answers to pings that may wait to be sent. A peer that asks more often than it reads loses the oldest.
const PONGS_MAX: usize = 64;

/// Refusals of streams that may wait to be sent. A hashicorp client has at most 256 unacknowledged streams.
const REFUSALS_MAX: usize = 1024;

/// How long a stream rests for the peer to read what has arrived: what a busy reader takes for it, and a tenth of the shortest path
/// on which that pays.
const REST: Duration = Duration::from_millis(2);
const REST_PATH: Duration = Duration::from_millis(20);

/// One side of a session.
#[derive(Debug)]
pub struct Connection {
    side: Side,
    config: Config,
    streams: HashMap<u32, Stream, IdHash>,
    growth: Growth,
    company: Company,
    keep_alive: KeepAlive,
    /// Streams at rest, and until when; those at the front are the first.
    resting: VecDeque<(Instant, StreamId)>,

    reading: Reading,
    /// A stream whose FIN came in a frame that made another event first.
    ending: Option<StreamId>,
    last_received: Instant,
    /// The time of the last call that was given one.
    now: Instant,
    /// The stream whose acknowledgement measures the first round trip, and when its first frame was made.
    first_exchange: Option<(StreamId, Instant)>,
    used_ids: UsedIds,

    /// The id of the next stream that we open.
    next_id: Option<StreamId>,
    unacknowledged: usize,
    /// Streams with something to say.
    control: VecDeque<StreamId>,
    pongs: VecDeque<u32>,
    refusals: VecDeque<StreamId>,
    go_away_due: Option<GoAwayCode>,
    going_away: bool,
    peer_going_away: bool,
    failed: Option<Error>,

    received: u64,
    sent: u64,
    totals: Totals,
}

/// What the peer's bytes mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The peer opened a stream. It is accepted as it is; [`Connection::reset`] gets rid of it.
    Opened(StreamId),
    /// Payload. It counts against the stream's window until [`Connection::consumed`] says that it was taken.
    Data {
        /// The stream.
        stream: StreamId,
        /// Where the payload lies in the input of this call.
        range: Range<usize>,
    },
    /// The peer will send nothing more on the stream (FIN).
    Finished(StreamId),
    /// The peer reset the stream (RST): nothing more can be sent or will come. After [`Event::Finished`] this takes
    /// nothing back from what was received: a hashicorp peer that has closed a stream resets it when the other direction is
    /// not closed in time (`StreamCloseTimeout`).
    Reset(StreamId),
    /// The peer refused a stream that we opened, before anything showed that it knows the stream: nothing of it was used.
    Refused(StreamId),
    /// The stream's send window was empty and is no longer.
    Writable(StreamId),
    /// A ping was answered.
    Pong {
        /// From sending the ping to now.
        round_trip: Duration,
    },
    /// The peer takes no new streams; with another code than [`GoAwayCode::Normal`] it has given up on the session.
    GoAway(GoAwayCode),
}

/// A snapshot of the session's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// The last measured round trip.
    pub round_trip: Option<Duration>,
    /// Streams open now.
    pub streams: usize,
    /// Streams that we opened and the peer has not acknowledged.
    pub unacknowledged: usize,
    /// Streams that we opened, since the start.
    pub opened: u64,
    /// Streams that the peer opened, since the start.
    pub accepted: u64,
    /// Streams of the peer that were refused, since the start.
    pub refused: u64,
    /// Payload bytes received, those of streams already gone included.
    pub payload_received: u64,
    /// Payload bytes sent.
    pub payload_sent: u64,
    /// Bytes that the session's receive windows have grown by together, beyond the first 256 KiB of each.
    pub window_growth: usize,
    /// The largest receive window that a stream has had, in bytes.
    pub receive_window_peak: u32,
}

#[derive(Debug, Default)]
struct Totals {
    opened: u64,
    accepted: u64,
    refused: u64,
    payload_received: u64,
    payload_sent: u64,
    receive_window_peak: u32,
}

#[derive(Debug)]
enum Reading {
    Header {
        bytes: [u8; HEADER_LEN],
        filled: usize,
    },
    Payload {
        /// `None`: to be discarded.
        stream: Option<StreamId>,
        remaining: u32,
        fin: bool,
    },
}

const NEXT_HEADER: Reading = Reading::Header {
    bytes: [0; HEADER_LEN],
    filled: 0,
};

impl Connection {
    /// A session at its start.
    pub fn new(side: Side, config: Config, now: Instant) -> Self {
        Self {
            side,
            streams: HashMap::default(),
            growth: Growth::new(config.session_window_max, config.budget.clone()),
            company: Company::new(now),
            resting: VecDeque::new(),
            keep_alive: KeepAlive::new(config.ping_interval, config.ping_timeout, now),
            reading: NEXT_HEADER,
            ending: None,
            last_received: now,
            now,
            first_exchange: None,
            used_ids: UsedIds::default(),
            next_id: StreamId::new(match side {
                Side::Client => 1,
                Side::Server => 2,
            }),
            unacknowledged: 0,
            control: VecDeque::new(),
            pongs: VecDeque::new(),
            refusals: VecDeque::new(),
            go_away_due: None,
            going_away: false,
            peer_going_away: false,
            failed: None,
            received: 0,
            sent: 0,
            totals: Totals::default(),
            config,
        }
    }

    /// Reads `input` up to the next event. Returns how many bytes were taken and the event; no event means that all of
    /// the input was taken and that nothing is left to report. Call it until then: an event may need no further input.
    ///
    /// # Errors
    /// The peer broke the protocol. The session is over, every further call returns the same error, and
    /// [`Self::poll_control`] has a last go-away for the peer.
    pub fn receive(&mut self, input: &[u8], now: Instant) -> Result<(usize, Option<Event>), Error> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.now = now;
        if !input.is_empty() {
            self.last_received = now;
        }
        let mut taken = 0;
        loop {
            if let Some(id) = self.ending.take()
                && let Some(event) = self.end_receiving(id)
            {
                return Ok((taken, Some(event)));
            }
            let rest = input.get(taken..).unwrap_or_default();
            if rest.is_empty() {
                return Ok((taken, None));
            }
            let before = taken;
            let event = match &mut self.reading {
                Reading::Header { filled: 0, .. } if rest.len() >= HEADER_LEN => {
                    taken += HEADER_LEN;
                    // Whole, as headers mostly are: it is read where it lies.
                    match rest.first_chunk() {
                        Some(bytes) => {
                            let header = Header::decode(bytes)
                                .map_err(|malformed| self.fail(malformed.into()))?;
                            self.frame(header, now)?
                        }
                        None => None,
                    }
                }
                Reading::Header { bytes, filled } => {
                    let n = rest.len().min(HEADER_LEN - *filled);
                    if let Some(place) = bytes.get_mut(*filled..*filled + n)
                        && let Some(part) = rest.get(..n)
                    {
                        place.copy_from_slice(part);
                    }
                    *filled += n;
                    taken += n;
                    if *filled < HEADER_LEN {
                        None
                    } else {
                        let header = Header::decode(bytes);
                        self.reading = NEXT_HEADER;
                        let header = header.map_err(|malformed| self.fail(malformed.into()))?;
                        self.frame(header, now)?
                    }
                }
                Reading::Payload {
                    stream,
                    remaining,
                    fin,
                } => {
                    let n = rest.len().min(*remaining as usize);
                    taken += n;
                    *remaining -= n as u32;
                    let stream = *stream;
                    if *remaining == 0 {
                        if *fin {
                            self.ending = stream;
                        }
                        self.reading = NEXT_HEADER;
                    }
                    self.totals.payload_received += n as u64;
                    stream
                        .filter(|id| self.accepts_data(*id))
                        .map(|stream| Event::Data {
                            stream,
                            range: before..taken,
                        })
                }
            };
            self.received += (taken - before) as u64;
            if event.is_some() {
                return Ok((taken, event));
            }
        }
    }

    /// Opens a stream. Its first frame, be it data or control, opens it on the wire.
    ///
    /// # Errors
    /// Says whether waiting helps.
    pub fn open(&mut self) -> Result<StreamId, OpenError> {
        let id = self.open_with_data()?;
        self.enqueue(id);
        Ok(id)
    }

    /// Opens a stream for which the caller has data. It is opened on the wire by the first frame with that, which may come
    /// later; until then nothing of it shows.
    ///
    /// # Errors
    /// Says whether waiting helps.
    pub fn open_with_data(&mut self) -> Result<StreamId, OpenError> {
        if let Some(error) = self.failed {
            return Err(OpenError::Failed(error));
        }
        if self.going_away || self.peer_going_away {
            return Err(OpenError::GoingAway);
        }
        if self.streams.len() >= self.config.max_streams {
            return Err(OpenError::TooManyStreams(self.config.max_streams));
        }
        if self.unacknowledged >= self.config.accept_backlog {
            return Err(OpenError::Backlog(self.unacknowledged));
        }
        let id = self.next_id.ok_or(OpenError::IdsExhausted)?;
        self.next_id = id.value().checked_add(2).and_then(StreamId::new);
        self.streams.insert(id.value(), Stream::opened());
        self.unacknowledged += 1;
        self.totals.opened += 1;
        Ok(id)
    }

    /// Whether the stream exists. It does until both sides have closed it and everything received was consumed, or until
    /// either side has reset it.
    pub fn is_open(&self, id: StreamId) -> bool {
        self.streams
            .get(&id.value())
            .is_some_and(|stream| stream.sending != Sending::ResetDue)
    }

    /// How many bytes may be sent on the stream now. 0 for one that is closed for sending or gone.
    pub fn send_window(&self, id: StreamId) -> usize {
        self.streams
            .get(&id.value())
            .filter(|stream| stream.sending == Sending::Open)
            .map_or(0, |stream| stream.send_window as usize)
    }

    /// Whether the peer has taken a stream that we opened. It has not begun one that it has not acknowledged, if it ends the
    /// session in good order.
    pub fn is_acknowledged(&self, id: StreamId) -> bool {
        self.streams
            .get(&id.value())
            .is_none_or(|stream| !stream.unacknowledged)
    }

    /// Whether a frame of ours has named the stream, or the peer has opened it: the peer may know of it.
    pub fn is_announced(&self, id: StreamId) -> bool {
        self.streams
            .get(&id.value())
            .is_none_or(|stream| !stream.unannounced())
    }

    /// How many bytes may be sent on the stream before a frame has to end. 0: none until [`Event::Writable`] or
    /// [`Self::poll_rested`] says so.
    ///
    /// More may be left then ([`Self::send_window`]): hashicorp peers with large windows are given pauses in which to read up to
    /// where they give something back.
    pub fn poll_room(&mut self, id: StreamId, now: Instant) -> usize {
        self.now = now;
        let Some(stream) = self.streams.get_mut(&id.value()) else {
            return 0;
        };
        let rests = self
            .keep_alive
            .round_trip()
            .is_some_and(|path| path >= REST_PATH);
        match stream.room(rests) {
            Room::Bytes(bytes) => bytes as usize,
            Room::Rest => {
                self.resting.push_back((now + REST, id));
                0
            }
        }
    }

    /// A stream that has rested and may be sent on again, if there is one.
    pub fn poll_rested(&mut self, now: Instant) -> Option<StreamId> {
        while let Some(&(until, id)) = self.resting.front()
            && until <= now
        {
            self.resting.pop_front();
            if let Some(stream) = self.streams.get_mut(&id.value())
                && stream.rested()
            {
                return Some(id);
            }
        }
        None
    }

    /// The header of a data frame with `length` bytes, at most [`Self::send_window`], which must follow directly behind it.
    ///
    /// A frame with payload never carries FIN: hashicorp's implementation takes note of a FIN before it reads the payload,
    /// and a reader that wakes up in between misses it. [`Self::finish`] sends the FIN in a frame of its own.
    pub fn data_header(&mut self, id: StreamId, length: usize) -> [u8; HEADER_LEN] {
        debug_assert!(
            length <= self.send_window(id),
            "{length} bytes do not fit the send window of stream {id}"
        );
        self.totals.payload_sent += length as u64;
        self.sent += (HEADER_LEN + length) as u64;
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        match self.streams.get_mut(&id.value()) {
            Some(stream) => {
                if stream.unannounced() && self.keep_alive.round_trip().is_none() {
                    self.first_exchange.get_or_insert((id, self.now));
                }
                stream.data_header(id, length)
            }
            None => Header {
                kind: Kind::Data,
                flags: Flags::NONE,
                stream: id.value(),
                length,
            }
            .encode(),
        }
    }

    /// The application took `bytes` of what it received on the stream: they may be sent anew.
    pub fn consumed(&mut self, id: StreamId, bytes: usize, now: Instant) {
        let Some(stream) = self.streams.get_mut(&id.value()) else {
            return;
        };
        if stream.sending == Sending::ResetDue {
            return;
        }
        let bounds = Bounds::new(
            id.value(),
            self.config.window_max(),
            self.keep_alive.window_round_trip(),
            &mut self.company,
            now,
        );
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let update_due = stream.receive.consume(bytes, bounds, &mut self.growth, now);
        if stream.receive_ended {
            if stream.is_over() {
                self.remove(id);
            }
        } else if update_due {
            self.totals.receive_window_peak =
                self.totals.receive_window_peak.max(stream.receive.size());
            self.company.updated(id.value(), now);
            self.enqueue(id);
            self.keep_alive.refresh(now);
        }
    }

    /// Closes our direction of the stream once what was sent so far (FIN). The peer's direction stays open.
    pub fn finish(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id.value())
            && stream.sending == Sending::Open
        {
            stream.sending = Sending::FinDue;
            self.enqueue(id);
        }
    }

    /// Drops the stream at once, both directions (RST). Nothing more is reported about it.
    pub fn reset(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id.value()) else {
            return;
        };
        let unknown_to_peer = stream.unannounced();
        let over_for_peer = stream.sending == Sending::Ended && stream.receive_ended;
        if unknown_to_peer || over_for_peer {
            self.remove(id);
        } else if stream.sending != Sending::ResetDue {
            stream.sending = Sending::ResetDue;
            stream.receive_ended = true;
            stream.receive.close(&mut self.growth);
            self.enqueue(id);
        }
    }

    /// Makes a ping due, unless one is under way; its answer is reported as [`Event::Pong`].
    pub fn ping(&mut self, now: Instant) {
        self.keep_alive.request(now);
    }

    /// The last measured round trip: a ping's, or before the first one that of the first stream's acknowledgement.
    pub fn round_trip(&self) -> Option<Duration> {
        self.keep_alive.round_trip()
    }

    /// Nothing was read from the peer for a while, for reasons of our own: a ping under way has all its time again.
    pub fn excuse_ping(&mut self, now: Instant) {
        self.last_received = now;
        self.keep_alive.excuse(now);
    }

    /// Tells the peer that this session takes no new streams. Those that are open run on.
    pub fn go_away(&mut self, code: GoAwayCode) {
        if !self.going_away {
            self.going_away = true;
            self.go_away_due = Some(code);
        }
    }

    /// The next control frame to send, if there is one. Bounded work: what the peer can cause is limited.
    pub fn poll_control(&mut self, now: Instant) -> Option<[u8; HEADER_LEN]> {
        let frame = self.next_control(now)?;
        self.sent += HEADER_LEN as u64;
        Some(frame)
    }

    /// Whether a call to [`Self::poll_control`] may have something to send.
    pub fn has_control(&self) -> bool {
        self.go_away_due.is_some()
            || self.failed.is_none()
                && (!self.control.is_empty()
                    || !self.pongs.is_empty()
                    || !self.refusals.is_empty()
                    || self.keep_alive.is_due())
    }

    /// When [`Self::handle_timeout`] and [`Self::poll_rested`] are to be called. Changes with every other call. `None` is never.
    pub fn next_timeout(&self) -> Option<Instant> {
        if self.failed.is_some() {
            return None;
        }
        let ping = self.keep_alive.deadline(self.last_received);
        [self.next_rested(), ping].into_iter().flatten().min()
    }

    /// When [`Self::poll_rested`] alone is to be called. `None` is never.
    pub fn next_rested(&self) -> Option<Instant> {
        self.resting.front().map(|&(until, _)| until)
    }

    /// Makes a ping due when it is time for one.
    ///
    /// # Errors
    /// The peer did not answer the last one: the session is dead.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), Error> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        if self.keep_alive.check(self.last_received, now) {
            Ok(())
        } else {
            self.failed = Some(Error::PingTimeout);
            Err(Error::PingTimeout)
        }
    }

    /// The session's counters.
    pub fn stats(&self) -> Stats {
        Stats {
            round_trip: self.keep_alive.round_trip(),
            streams: self.streams.len(),
            unacknowledged: self.unacknowledged,
            opened: self.totals.opened,
            accepted: self.totals.accepted,
            refused: self.totals.refused,
            payload_received: self.totals.payload_received,
            payload_sent: self.totals.payload_sent,
            window_growth: self.growth.used(),
            receive_window_peak: self.totals.receive_window_peak,
        }
    }

    fn frame(&mut self, header: Header, now: Instant) -> Result<Option<Event>, Error> {
        match header.kind {
            Kind::Data | Kind::WindowUpdate => self.stream_frame(header),
            Kind::Ping => Ok(self.ping_frame(header, now)),
            Kind::GoAway => {
                self.peer_going_away = true;
                Ok(Some(Event::GoAway(GoAwayCode::from_wire(header.length))))
            }
        }
    }

    fn ping_frame(&mut self, header: Header, now: Instant) -> Option<Event> {
        if header.flags.contains(Flags::SYN) {
            if self.pongs.len() == PONGS_MAX {
                self.pongs.pop_front();
            }
            self.pongs.push_back(header.length);
            return None;
        }
        self.keep_alive
            .pong(header.length, self.received + self.sent, now)
            .map(|round_trip| Event::Pong { round_trip })
    }

    fn stream_frame(&mut self, header: Header) -> Result<Option<Event>, Error> {
        let id = StreamId::new(header.stream).ok_or_else(|| self.fail(Error::SessionStream))?;
        let data = header.kind == Kind::Data;
        let fin = header.flags.contains(Flags::FIN);
        if data && header.length > 0 {
            // Discarded, unless the stream turns out to want it.
            self.reading = Reading::Payload {
                stream: None,
                remaining: header.length,
                fin: false,
            };
        }
        let mut event = None;
        if header.flags.contains(Flags::SYN) {
            let credit = if data { 0 } else { header.length };
            if !self.accept(id, credit, header.flags)? {
                return Ok(None);
            }
            event = Some(Event::Opened(id));
        }
        let Some(stream) = self.streams.get_mut(&id.value()) else {
            // The peer may not know yet that the stream is gone.
            return Ok(None);
        };
        let introduction = std::mem::take(&mut stream.unacknowledged);
        if introduction {
            self.unacknowledged -= 1;
        }
        if header.flags.contains(Flags::RST) {
            let event = self.reset_by_peer(id);
            if introduction && !header.flags.contains(Flags::ACK) {
                return Ok(event.map(|_| Event::Refused(id)));
            }
            return Ok(event);
        }
        if introduction
            && let Some((first, sent)) = self.first_exchange
            && first == id
        {
            self.first_exchange = None;
            self.keep_alive
                .exchanged(self.now.saturating_duration_since(sent));
        }
        if stream.sending == Sending::ResetDue {
            return Ok(None);
        }
        if data {
            // A hashicorp peer that closes a stream while another of its threads writes sends data behind its FIN.
            if header.length > 0 && !stream.receive_ended {
                if let Err(window) = stream.receive.receive(header.length) {
                    return Err(self.fail(Error::WindowExceeded {
                        stream: id,
                        window,
                        length: header.length,
                    }));
                }
                self.reading = Reading::Payload {
                    stream: Some(id),
                    remaining: header.length,
                    fin,
                };
                return Ok(event);
            }
        } else if event.is_none() {
            let was_empty = stream.send_window == 0;
            if introduction {
                stream.introduced(header.length);
            } else {
                stream.grant(header.length);
            }
            if was_empty && stream.send_window > 0 && stream.sending == Sending::Open {
                event = Some(Event::Writable(id));
            }
        }
        if fin {
            if event.is_some() {
                self.ending = Some(id);
            } else {
                event = self.end_receiving(id);
            }
        }
        Ok(event)
    }

    /// A SYN: false if there is no stream to go on with.
    fn accept(&mut self, id: StreamId, credit: u32, flags: Flags) -> Result<bool, Error> {
        if id.is_odd() == (self.side == Side::Client) {
            return Err(self.fail(Error::StreamParity(id)));
        }
        let used = self.used_ids.mark(id.value());
        if used == Use::Again || self.streams.contains_key(&id.value()) {
            return Err(self.fail(Error::StreamReused(id)));
        }
        if flags.contains(Flags::RST) {
            return Ok(false);
        }
        if used == Use::TooOld || self.going_away || self.streams.len() >= self.config.max_streams {
            self.totals.refused += 1;
            if self.refusals.len() == REFUSALS_MAX {
                return Err(self.fail(Error::RefusedFlood));
            }
            self.refusals.push_back(id);
            return Ok(false);
        }
        self.streams.insert(id.value(), Stream::accepted(credit));
        self.totals.accepted += 1;
        self.enqueue(id);
        Ok(true)
    }

    fn accepts_data(&self, id: StreamId) -> bool {
        self.streams
            .get(&id.value())
            .is_some_and(|stream| !stream.receive_ended)
    }

    /// A FIN.
    fn end_receiving(&mut self, id: StreamId) -> Option<Event> {
        let stream = self.streams.get_mut(&id.value())?;
        if stream.receive_ended {
            return None;
        }
        stream.receive_ended = true;
        if stream.is_over() {
            self.remove(id);
        }
        Some(Event::Finished(id))
    }

    /// A RST.
    fn reset_by_peer(&mut self, id: StreamId) -> Option<Event> {
        let stream = self.streams.get_mut(&id.value())?;
        let silent = stream.sending == Sending::ResetDue
            || stream.sending == Sending::Ended && stream.receive_ended;
        if stream.receive_ended && stream.receive.held() > 0 && stream.sending != Sending::ResetDue
        {
            stream.sending = Sending::Ended;
        } else {
            self.remove(id);
        }
        (!silent).then_some(Event::Reset(id))
    }

    fn next_control(&mut self, now: Instant) -> Option<[u8; HEADER_LEN]> {
        let session = |kind, flags, length| {
            Header {
                kind,
                flags,
                stream: 0,
                length,
            }
            .encode()
        };
        if let Some(code) = self.go_away_due.take() {
            return Some(session(Kind::GoAway, Flags::NONE, code.to_wire()));
        }
        if self.failed.is_some() {
            return None;
        }
        if let Some(id) = self.pongs.pop_front() {
            return Some(session(Kind::Ping, Flags::ACK, id));
        }
        if let Some(id) = self.keep_alive.poll(self.received + self.sent, now) {
            return Some(session(Kind::Ping, Flags::SYN, id));
        }
        if let Some(id) = self.refusals.pop_front() {
            return Some(
                Header {
                    kind: Kind::WindowUpdate,
                    flags: Flags::RST,
                    stream: id.value(),
                    length: 0,
                }
                .encode(),
            );
        }
        while let Some(id) = self.control.pop_front() {
            let Some(stream) = self.streams.get_mut(&id.value()) else {
                continue;
            };
            let reset = stream.sending == Sending::ResetDue;
            if stream.unannounced() && self.keep_alive.round_trip().is_none() {
                self.first_exchange.get_or_insert((id, now));
            }
            let frame = stream.poll_control(id);
            if reset || stream.is_over() {
                self.remove(id);
            }
            if frame.is_some() {
                return frame;
            }
        }
        None
    }

    fn enqueue(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id.value())
            && !std::mem::replace(&mut stream.queued, true)
        {
            // Streams that ended while they were queued leave their ids behind.
            if self.control.len() > 2 * self.streams.len() + 64 {
                self.control
                    .retain(|id| self.streams.contains_key(&id.value()));
            }
            self.control.push_back(id);
        }
    }

    fn remove(&mut self, id: StreamId) {
        if self.first_exchange.is_some_and(|(first, _)| first == id) {
            self.first_exchange = None;
        }
        if let Some(mut stream) = self.streams.remove(&id.value()) {
            stream.receive.close(&mut self.growth);
            self.unacknowledged -= usize::from(stream.unacknowledged);
            if self.streams.is_empty() {
                // An idle session keeps no memory of a busy one.
                self.streams.shrink_to(16);
                self.control.shrink_to(16);
            }
        }
    }

    fn fail(&mut self, error: Error) -> Error {
        self.failed = Some(error);
        self.going_away = true;
        self.go_away_due = Some(GoAwayCode::ProtocolError);
        error
    }
}

#[cfg(test)]
mod tests;
