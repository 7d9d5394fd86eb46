//! What a byte pays: masking, and the header it shares.
#![allow(missing_docs)]

use std::hint::black_box;
use std::ops::Range;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ech_workers_websocket::{
    Decoder, Event, MAX_HEADER, OpCode, Role, encode_header, header_len, mask,
};

/// A full TLS record's worth, and sizes around it.
const PAYLOADS: [usize; 4] = [64, 1024, 16 * 1024, 1024 * 1024];
const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

fn masking(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("mask");
    for len in PAYLOADS {
        let mut payload = vec![0x5a; len];
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(len.to_string(), |bencher| {
            bencher.iter(|| mask(black_box(&mut payload), black_box(KEY), black_box(1)));
        });
    }
    group.finish();
}

fn sending(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("header and mask");
    for len in PAYLOADS {
        let room = header_len(Role::Client, len);
        let mut record = vec![0x5a; room + len];
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(len.to_string(), |bencher| {
            bencher.iter(|| {
                let record = black_box(&mut record[..]);
                let start = encode_header(record, OpCode::Binary, true, len, Some(black_box(KEY)));
                mask(&mut record[start..], black_box(KEY), 0);
            });
        });
    }
    group.finish();
}

fn receiving(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    for len in PAYLOADS {
        let mut frame = frame(len, Some(KEY));
        let mut decoder = Decoder::new(Role::Server);
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(format!("client's, {len}"), |bencher| {
            bencher.iter(|| payload(&mut decoder, black_box(&mut frame)));
        });
    }
    // A server's payload is not touched: what a frame costs, whatever its length.
    let mut frame = frame(16 * 1024, None);
    let mut decoder = Decoder::new(Role::Client);
    group.throughput(Throughput::Elements(1));
    group.bench_function("server's", |bencher| {
        bencher.iter(|| payload(&mut decoder, black_box(&mut frame)));
    });
    group.finish();
}

fn frame(len: usize, key: Option<[u8; 4]>) -> Vec<u8> {
    let mut header = [0; MAX_HEADER];
    let start = encode_header(&mut header, OpCode::Binary, true, len, key);
    let mut frame = header[..start].to_vec();
    frame.resize(start + len, 0x5a);
    frame
}

fn payload(decoder: &mut Decoder, frame: &mut [u8]) -> Option<Range<usize>> {
    match decoder.decode(frame) {
        Ok((_, Some(Event::Data { range, .. }))) => Some(range),
        _ => None,
    }
}

criterion_group!(benches, masking, sending, receiving);
criterion_main!(benches);
