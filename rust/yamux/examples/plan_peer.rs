//! One side of a session over TCP that follows a plan which another implementation follows too:
//! `plan_peer ADDRESS client|server PLAN`
//!
//! Each line of the file PLAN is a stream: who opens it (`ours` or `theirs`), how many bytes we send and then half-close, how
//! many milliseconds we take nothing of what comes, and after how many received bytes we reset it (-1: never). When all
//! streams are over, a JSON line a stream says what happened.

mod wire;

use std::collections::{BTreeMap, VecDeque};
use std::error::Error;
use std::time::{Duration, Instant};

use ech_workers_yamux::{Config, Connection, Event, OpenError, Side, StreamId};
use sha2::{Digest as _, Sha256};

use wire::{FRAME_MAX, Wire};

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [address, side, plan] = &words[..] else {
        return Err("usage: plan_peer ADDRESS client|server PLAN".into());
    };
    let side = match side.as_str() {
        "client" => Side::Client,
        "server" => Side::Server,
        other => return Err(format!("no side is called {other}").into()),
    };
    let plan = std::fs::read_to_string(plan)?;
    let streams = plan.lines().map(Plan::parse).collect::<Result<_, _>>()?;
    let mut peer = Peer::connect(address, side, streams)?;
    while peer.turn()? {}
    peer.report()
}

/// What is to happen on a stream.
#[derive(Clone, Copy)]
struct Plan {
    opened_by_us: bool,
    bytes: u64,
    stopped: Duration,
    reset_after: Option<u64>,
}

impl Plan {
    fn parse(line: &str) -> Result<Self, Box<dyn Error>> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [opener, bytes, stopped, reset_after] = words[..] else {
            return Err(format!("not the plan of a stream: {line}").into());
        };
        Ok(Self {
            opened_by_us: opener == "ours",
            bytes: bytes.parse()?,
            stopped: Duration::from_millis(stopped.parse()?),
            reset_after: u64::try_from(reset_after.parse::<i64>()?).ok(),
        })
    }
}

/// What happened on it so far.
struct Stream {
    plan: Plan,
    since: Instant,
    sent: u64,
    sent_digest: Sha256,
    finished: bool,
    received: u64,
    received_digest: Sha256,
    /// Received and not reported as taken.
    unconsumed: usize,
    ended: bool,
    reset_by_us: bool,
    reset_by_peer: bool,
}

impl Stream {
    fn new(plan: Plan, now: Instant) -> Self {
        Self {
            plan,
            since: now,
            sent: 0,
            sent_digest: Sha256::new(),
            finished: false,
            received: 0,
            received_digest: Sha256::new(),
            unconsumed: 0,
            ended: false,
            reset_by_us: false,
            reset_by_peer: false,
        }
    }
}

struct Peer {
    side: Side,
    wire: Wire,
    connection: Connection,
    to_open: VecDeque<Plan>,
    to_accept: BTreeMap<StreamId, Plan>,
    streams: BTreeMap<StreamId, Stream>,
    noise: u64,
}

impl Peer {
    fn connect(address: &str, side: Side, plans: Vec<Plan>) -> Result<Self, Box<dyn Error>> {
        let config = Config {
            ping_interval: Duration::from_millis(100),
            ping_timeout: Duration::from_secs(5),
            ..Config::default()
        };
        let (ours, theirs) = plans
            .into_iter()
            .partition::<Vec<_>, _>(|plan| plan.opened_by_us);
        let first = match side {
            Side::Client => 2,
            Side::Server => 1,
        };
        Ok(Self {
            side,
            wire: Wire::connect(address)?,
            connection: Connection::new(side, config, Instant::now()),
            to_open: ours.into(),
            to_accept: (first..)
                .step_by(2)
                .filter_map(StreamId::new)
                .zip(theirs)
                .collect(),
            streams: BTreeMap::new(),
            noise: 1,
        })
    }

    /// Reads, acts, frames and writes once. False when the peer has ended the session.
    fn turn(&mut self) -> Result<bool, Box<dyn Error>> {
        let now = Instant::now();
        self.connection.handle_timeout(now)?;
        let mut buffer = [0; 64 << 10];
        let Some(input) = self.wire.read(&mut buffer)? else {
            return Ok(false);
        };
        self.receive(input, now)?;
        self.open(now)?;
        self.act(now);
        self.wire.send(&mut self.connection, now)
    }

    fn receive(&mut self, mut input: &[u8], now: Instant) -> Result<(), Box<dyn Error>> {
        loop {
            let (taken, event) = self.connection.receive(input, now)?;
            let Some(event) = event else { return Ok(()) };
            match event {
                Event::Opened(id) => {
                    let plan = self.to_accept.remove(&id).ok_or("a stream not planned")?;
                    self.streams.insert(id, Stream::new(plan, now));
                }
                Event::Data { stream: id, range } => {
                    let stream = self.stream(id)?;
                    stream.received_digest.update(&input[range.clone()]);
                    stream.received += range.len() as u64;
                    stream.unconsumed += range.len();
                }
                Event::Finished(id) => self.stream(id)?.ended = true,
                Event::Reset(id) | Event::Refused(id) => self.stream(id)?.reset_by_peer = true,
                Event::GoAway(code) => return Err(format!("the peer goes away: {code:?}").into()),
                Event::Writable(_) | Event::Pong { .. } => {}
            }
            input = &input[taken..];
        }
    }

    fn stream(&mut self, id: StreamId) -> Result<&mut Stream, String> {
        self.streams
            .get_mut(&id)
            .ok_or_else(|| format!("an event for {id}, which is no stream"))
    }

    fn open(&mut self, now: Instant) -> Result<(), OpenError> {
        while let Some(&plan) = self.to_open.front() {
            match self.connection.open() {
                Ok(id) => self.streams.insert(id, Stream::new(plan, now)),
                Err(OpenError::Backlog(_)) => return Ok(()),
                Err(error) => return Err(error),
            };
            self.to_open.pop_front();
        }
        Ok(())
    }

    /// A turn of each stream.
    fn act(&mut self, now: Instant) {
        for (&id, stream) in &mut self.streams {
            if !self.connection.is_open(id) {
                continue;
            }
            if stream
                .plan
                .reset_after
                .is_some_and(|after| stream.received >= after)
            {
                self.connection.reset(id);
                stream.reset_by_us = true;
                continue;
            }
            if now.duration_since(stream.since) >= stream.plan.stopped {
                let taken = std::mem::take(&mut stream.unconsumed);
                self.connection.consumed(id, taken, now);
            }
            let waiting = stream.plan.bytes - stream.sent;
            let length = (self.connection.send_window(id).min(FRAME_MAX) as u64).min(waiting);
            if length > 0 && !self.wire.is_full() {
                let header = self.connection.data_header(id, length as usize);
                let payload = noise(&mut self.noise, length as usize);
                stream.sent_digest.update(&payload);
                stream.sent += length;
                self.wire.push(header);
                self.wire.push(payload);
            }
            if stream.sent == stream.plan.bytes && !stream.finished {
                stream.finished = true;
                self.connection.finish(id);
            }
        }
    }

    fn report(self) -> Result<(), Box<dyn Error>> {
        if !self.to_open.is_empty() || !self.to_accept.is_empty() {
            return Err("the session ended before all streams were opened".into());
        }
        for (id, stream) in self.streams {
            let over = !self.connection.is_open(id);
            println!(
                "{{\"event\":\"stream\",\"id\":{id},\"sent\":{},\"sent_sha256\":\"{:x}\",\"received\":{},\"received_sha256\":\"{:x}\",\
                 \"ended\":{},\"reset_by_us\":{},\"reset_by_peer\":{},\"over\":{over}}}",
                stream.sent,
                Hex(&stream.sent_digest.finalize()),
                stream.received,
                Hex(&stream.received_digest.finalize()),
                stream.ended,
                stream.reset_by_us,
                stream.reset_by_peer,
            );
        }
        let stats = self.connection.stats();
        println!(
            "{{\"event\":\"session\",\"side\":\"{:?}\",\"streams\":{},\"round_trip_us\":{}}}",
            self.side,
            stats.streams,
            stats.round_trip.map_or(0, |time| time.as_micros()),
        );
        Ok(())
    }
}

struct Hex<'a>(&'a [u8]);

impl std::fmt::LowerHex for Hex<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Bytes that do not repeat (xorshift64).
fn noise(state: &mut u64, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
