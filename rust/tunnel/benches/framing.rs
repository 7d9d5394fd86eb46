//! What the framing of one TLS record costs, without TLS: yamux header, WebSocket header, mask; and the way back.

use std::hint::black_box;
use std::time::Instant;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ech_workers_websocket::{self as websocket, Decoder, OpCode, Role};
use ech_workers_yamux::{self as yamux, Connection, HEADER_LEN, Side, StreamId};

/// A record's plaintext, less the WebSocket header.
const MESSAGE: usize = 16_384 - 8;
const PAYLOAD: usize = MESSAGE - HEADER_LEN;

fn frame(record: &mut [u8], mux: &mut Connection, stream: StreamId) -> usize {
    let header = websocket::header_len(Role::Client, MESSAGE);
    record[header..header + HEADER_LEN].copy_from_slice(&mux.data_header(stream, PAYLOAD));
    let key = [0x5a, 0x17, 0xc3, 0x2e];
    websocket::encode_header(record, OpCode::Binary, true, MESSAGE, Some(key));
    websocket::mask(&mut record[header..header + MESSAGE], key, 0);
    header + MESSAGE
}

/// Two sides of a session with one stream, and the bytes of its opening delivered.
fn joined() -> (Connection, Connection, StreamId) {
    let now = Instant::now();
    let mut client = Connection::new(Side::Client, yamux::Config::default(), now);
    let mut server = Connection::new(Side::Server, yamux::Config::default(), now);
    let stream = client.open().expect("a fresh session takes streams");
    exchange(&mut client, &mut server, now);
    (client, server, stream)
}

fn exchange(a: &mut Connection, b: &mut Connection, now: Instant) {
    loop {
        let mut quiet = true;
        for turn in 0..2 {
            let (from, to) = if turn == 0 {
                (&mut *a, &mut *b)
            } else {
                (&mut *b, &mut *a)
            };
            while let Some(header) = from.poll_control(now) {
                quiet = false;
                to.receive(&header, now).expect("our own frames are valid");
            }
        }
        if quiet {
            return;
        }
    }
}

fn benchmark(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("framing");
    group.throughput(Throughput::Bytes(PAYLOAD as u64));
    group.bench_function("send a record, masked", |bencher| {
        let (mut client, _, stream) = joined();
        let mut record = vec![0_u8; 16_384];
        let now = Instant::now();
        bencher.iter(|| {
            if client.send_window(stream) < PAYLOAD {
                refill(&mut client, stream, now);
            }
            black_box(frame(&mut record, &mut client, stream))
        });
    });
    group.bench_function("send and receive a record, masked", |bencher| {
        let (mut client, mut server, stream) = joined();
        let mut decoder = Decoder::new(Role::Server);
        let mut record = vec![0_u8; 16_384];
        let now = Instant::now();
        bencher.iter(|| {
            if client.send_window(stream) < PAYLOAD {
                exchange(&mut client, &mut server, now);
            }
            let length = frame(&mut record, &mut client, stream);
            let mut at = 0;
            while at < length {
                let (used, event) = decoder
                    .decode(&mut record[at..length])
                    .expect("our own frames are valid");
                if let Some(websocket::Event::Data { range, .. }) = event {
                    absorb(&mut server, &record[at + range.start..at + range.end], now);
                }
                at += used;
            }
        });
    });
    group.finish();
}

fn absorb(mux: &mut Connection, mut bytes: &[u8], now: Instant) {
    while !bytes.is_empty() {
        let (used, event) = mux.receive(bytes, now).expect("our own frames are valid");
        if let Some(yamux::Event::Data { stream, range }) = event {
            mux.consumed(stream, black_box(range).len(), now);
        }
        bytes = &bytes[used..];
    }
}

/// A window update, as a server that took everything would send it.
fn refill(client: &mut Connection, stream: StreamId, now: Instant) {
    let mut header = [0_u8; HEADER_LEN];
    header[1] = 1;
    header[4..8].copy_from_slice(&stream.value().to_be_bytes());
    header[8..].copy_from_slice(&(1_u32 << 20).to_be_bytes());
    client
        .receive(&header, now)
        .expect("a window update is valid");
}

criterion_group!(benches, benchmark);
criterion_main!(benches);
