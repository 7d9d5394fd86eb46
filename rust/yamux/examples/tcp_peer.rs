//! One side of a session over TCP, to be judged by another implementation:
//! `tcp_peer ADDRESS client|server STREAMS BYTES`
//!
//! It connects to ADDRESS. With STREAMS above 0 it opens that many at a time, sends BYTES on each, half-closes, and expects
//! the same bytes back and then the end. With 0 it sends back what the peer's streams bring, until the peer ends the session.

mod wire;

use std::collections::{HashMap, VecDeque};
use std::error::Error;
use std::time::{Duration, Instant};

use ech_workers_yamux::{Config, Connection, Event, GoAwayCode, OpenError, Side, StreamId};

use wire::{FRAME_MAX, Wire};

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [address, side, streams, bytes] = &words[..] else {
        return Err("usage: tcp_peer ADDRESS client|server STREAMS BYTES".into());
    };
    let side = match side.as_str() {
        "client" => Side::Client,
        _ => Side::Server,
    };
    let config = Config {
        ping_interval: Duration::from_millis(200),
        ping_timeout: Duration::from_secs(5),
        ..Config::default()
    };
    let mut peer = Peer {
        wire: Wire::connect(address)?,
        connection: Connection::new(side, config, Instant::now()),
        streams: HashMap::new(),
        to_open: streams.parse()?,
        exchange: streams != "0",
        bytes: bytes.parse()?,
        done: 0,
        going: false,
    };
    let wanted: usize = streams.parse()?;
    while !(peer.exchange && peer.done == wanted) {
        if !peer.turn()? {
            if peer.exchange {
                return Err(format!("the session ended after {} streams", peer.done).into());
            }
            break;
        }
    }
    if peer.exchange {
        peer.connection.go_away(GoAwayCode::Normal);
        while peer.turn()? && !peer.wire.is_empty() {}
    }
    let stats = peer.connection.stats();
    println!(
        "done: {} streams, round trip {:?}",
        peer.done, stats.round_trip
    );
    Ok(())
}

struct Peer {
    wire: Wire,
    connection: Connection,
    streams: HashMap<StreamId, Stream>,
    to_open: usize,
    exchange: bool,
    bytes: u64,
    done: usize,
    going: bool,
}

#[derive(Default)]
struct Stream {
    sent: u64,
    received: u64,
    /// Received and not yet sent back.
    echo: VecDeque<u8>,
    ended: bool,
    finished: bool,
}

impl Peer {
    /// Reads, frames and writes once. False when the session has ended.
    fn turn(&mut self) -> Result<bool, Box<dyn Error>> {
        let now = Instant::now();
        self.connection.handle_timeout(now)?;
        let mut buffer = vec![0; 64 << 10];
        let Some(input) = self.wire.read(&mut buffer)? else {
            return Ok(false);
        };
        self.received(input, now)?;
        self.open()?;
        self.frame();
        if !self.wire.send(&mut self.connection, now)? {
            return Ok(false);
        }
        Ok(!self.going || self.exchange)
    }

    fn received(&mut self, input: &[u8], now: Instant) -> Result<(), Box<dyn Error>> {
        let mut at = 0;
        loop {
            let (taken, event) = self.connection.receive(&input[at..], now)?;
            let Some(event) = event else { return Ok(()) };
            match event {
                Event::Opened(id) => {
                    self.streams.insert(id, Stream::default());
                }
                Event::Data { stream: id, range } => {
                    let payload = &input[at..][range];
                    let stream = self.streams.get_mut(&id).ok_or("data for no stream")?;
                    if self.exchange {
                        for byte in payload {
                            if *byte != content(id, stream.received) {
                                return Err(format!(
                                    "stream {id}: byte {} differs",
                                    stream.received
                                )
                                .into());
                            }
                            stream.received += 1;
                        }
                    } else {
                        stream.echo.extend(payload);
                    }
                    self.connection.consumed(id, payload.len(), now);
                }
                Event::Finished(id) => {
                    let stream = self.streams.get_mut(&id).ok_or("the end of no stream")?;
                    stream.ended = true;
                    if self.exchange {
                        if stream.received != self.bytes || !stream.finished {
                            return Err(format!(
                                "stream {id} ended after {} bytes",
                                stream.received
                            )
                            .into());
                        }
                        self.streams.remove(&id);
                        self.done += 1;
                    }
                }
                Event::Reset(id) if self.exchange => {
                    return Err(format!("stream {id} was reset").into());
                }
                Event::Reset(id) | Event::Refused(id) => {
                    self.streams.remove(&id);
                }
                Event::GoAway(_) => self.going = true,
                _ => {}
            }
            at += taken;
        }
    }

    fn open(&mut self) -> Result<(), OpenError> {
        while self.to_open > 0 {
            match self.connection.open() {
                Ok(id) => self.streams.insert(id, Stream::default()),
                Err(OpenError::Backlog(_)) => return Ok(()),
                Err(error) => return Err(error),
            };
            self.to_open -= 1;
        }
        Ok(())
    }

    /// One frame of each stream that has something to send and a window for it.
    fn frame(&mut self) {
        let mut gone = Vec::new();
        for (&id, stream) in &mut self.streams {
            if self.wire.is_full() {
                break;
            }
            let waiting = if self.exchange {
                usize::try_from(self.bytes - stream.sent).unwrap_or(usize::MAX)
            } else {
                stream.echo.len()
            };
            let length = waiting.min(FRAME_MAX).min(self.connection.send_window(id));
            if length > 0 {
                self.wire.push(self.connection.data_header(id, length));
                if self.exchange {
                    self.wire
                        .push((stream.sent..).take(length).map(|at| content(id, at)));
                    stream.sent += length as u64;
                } else {
                    self.wire.push(stream.echo.drain(..length));
                }
            }
            let all_sent = waiting == length;
            if all_sent && !stream.finished && (self.exchange || stream.ended) {
                stream.finished = true;
                self.connection.finish(id);
                if !self.exchange {
                    gone.push(id);
                    self.done += 1;
                }
            }
        }
        for id in gone {
            self.streams.remove(&id);
        }
    }
}

/// What a stream carries at an offset: no two streams and no two frames look alike.
fn content(id: StreamId, at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 ^ id.value() as u8
}
