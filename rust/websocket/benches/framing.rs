//! What a byte pays: masking, and the header it shares.
#![allow(missing_docs)]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ech_workers_websocket::{Decoder, MAX_HEADER, OpCode, Role, encode_header, header_len, mask};

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
    for (name, role, key) in [
        ("server's, unmasked", Role::Client, None),
        ("client's, masked", Role::Server, Some(KEY)),
    ] {
        for len in PAYLOADS {
            let mut header = [0; MAX_HEADER];
            let start = encode_header(&mut header, OpCode::Binary, true, len, key);
            let mut frame = header[..start].to_vec();
            frame.resize(start + len, 0x5a);
            let mut decoder = Decoder::new(role);
            group.throughput(Throughput::Bytes(len as u64));
            group.bench_function(format!("{name}, {len}"), |bencher| {
                bencher.iter(|| black_box(decoder.decode(black_box(&mut frame))));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, masking, sending, receiving);
criterion_main!(benches);
