//! What yamux costs by itself: headers made and parsed, payload not touched.

use std::hint::black_box;
use std::time::Instant;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ech_workers_yamux::{Config, Connection, Event, HEADER_LEN, Side, StreamId};

/// Hands the client's frames to the server, which takes what it gets; and the other way round.
fn exchange(from: &mut Connection, to: &mut Connection, now: Instant) {
    while let Some(frame) = from.poll_control(now) {
        receive(to, &frame, now);
    }
}

fn receive(connection: &mut Connection, mut input: &[u8], now: Instant) {
    while let Ok((n, Some(event))) = connection.receive(input, now) {
        if let Event::Data { stream, range } = event {
            connection.consumed(stream, range.len(), now);
        }
        input = &input[n..];
    }
}

fn session(streams: usize, now: Instant) -> (Connection, Connection, Vec<StreamId>) {
    let config = Config {
        max_streams: 20_000,
        accept_backlog: 20_000,
        ..Config::default()
    };
    let mut client = Connection::new(Side::Client, config.clone(), now);
    let mut server = Connection::new(Side::Server, config, now);
    let ids = (0..streams).map_while(|_| client.open().ok()).collect();
    for _ in 0..3 {
        exchange(&mut client, &mut server, now);
        exchange(&mut server, &mut client, now);
    }
    (client, server, ids)
}

/// One frame from the client to the server, and the window updates back.
fn frames(criterion: &mut Criterion) {
    for (payload, streams) in [(16_000, 1), (16_000, 10_000), (64, 1), (64, 10_000)] {
        let now = Instant::now();
        let (mut client, mut server, ids) = session(streams, now);
        let mut turn = ids.iter().cycle();
        let mut frame = vec![0; HEADER_LEN + payload];
        let mut group = criterion.benchmark_group("frame");
        group.throughput(Throughput::Bytes(payload as u64));
        group.bench_function(format!("{payload} bytes, {streams} streams"), |bencher| {
            bencher.iter(|| {
                if let Some(&id) = turn.next() {
                    frame[..HEADER_LEN].copy_from_slice(&client.data_header(id, payload));
                    receive(&mut server, black_box(&frame), now);
                    exchange(&mut server, &mut client, now);
                }
            });
        });
        group.finish();
    }
}

/// A stream's whole life: opened with data, answered, closed by both.
fn lives(criterion: &mut Criterion) {
    let now = Instant::now();
    let (mut client, mut server, _) = session(0, now);
    criterion.bench_function("stream opened, answered, closed", |bencher| {
        bencher.iter(|| {
            let Ok(id) = client.open() else {
                // After two thousand million streams.
                (client, server, _) = session(0, now);
                return;
            };
            say_all(&mut client, &mut server, id, now);
            say_all(&mut server, &mut client, id, now);
            exchange(&mut client, &mut server, now);
        });
    });
}

fn say_all(from: &mut Connection, to: &mut Connection, id: StreamId, now: Instant) {
    let mut frame = [0; HEADER_LEN + 64];
    frame[..HEADER_LEN].copy_from_slice(&from.data_header(id, 64));
    receive(to, black_box(&frame), now);
    from.finish(id);
    exchange(from, to, now);
}

criterion_group!(benches, frames, lives);
criterion_main!(benches);
