//! One stream over a path with delay and limited rate, in simulated time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use ech_workers_yamux::{Config, Connection, Event, Side};

const FRAME: usize = 16 * 1024;

/// A path with a one-way delay and a rate; it holds what is under way.
struct Path {
    delay: Duration,
    bytes_per_second: f64,
    free_at: Instant,
    under_way: VecDeque<(Instant, Vec<u8>)>,
}

impl Path {
    fn send(&mut self, bytes: Vec<u8>, now: Instant) {
        let start = self.free_at.max(now);
        self.free_at = start + Duration::from_secs_f64(bytes.len() as f64 / self.bytes_per_second);
        self.under_way.push_back((self.free_at + self.delay, bytes));
    }

    fn arrived(&mut self, now: Instant) -> Option<Vec<u8>> {
        self.under_way.front().filter(|(at, _)| *at <= now)?;
        self.under_way.pop_front().map(|(_, bytes)| bytes)
    }
}

/// Downloads for `seconds`; bytes received in each tenth of a second, and the size the window grew to. `read_rate` is how fast
/// the application takes the bytes.
fn download(
    round_trip: Duration,
    bytes_per_second: f64,
    read_rate: f64,
    seconds: u64,
) -> (Vec<usize>, u32) {
    let start = Instant::now();
    let path = || Path {
        delay: round_trip / 2,
        bytes_per_second,
        free_at: start,
        under_way: VecDeque::new(),
    };
    let (mut down, mut up) = (path(), path());
    let mut client = Connection::new(Side::Client, Config::default(), start);
    let mut server = Connection::new(Side::Server, Config::default(), start);
    let stream = client.open().unwrap();
    let mut tenths = vec![0; seconds as usize * 10];
    let (mut held, mut readable) = (0, 0.0);
    let step = Duration::from_micros(500);
    let mut now = start;
    while now < start + Duration::from_secs(seconds) {
        while let Some(frame) = client.poll_control(now) {
            up.send(frame.to_vec(), now);
        }
        while let Some(bytes) = up.arrived(now) {
            let mut rest = &bytes[..];
            while let (n, Some(_)) = server.receive(rest, now).unwrap() {
                rest = &rest[n..];
            }
        }
        while let Some(frame) = server.poll_control(now) {
            down.send(frame.to_vec(), now);
        }
        // The sender has a socket buffer worth 20 ms in front of the path.
        while down.free_at < now + Duration::from_millis(20) {
            let length = server.send_window(stream).min(FRAME);
            if length == 0 {
                break;
            }
            let mut frame = server.data_header(stream, length).to_vec();
            frame.resize(frame.len() + length, 0);
            down.send(frame, now);
        }
        while let Some(bytes) = down.arrived(now) {
            let mut rest = &bytes[..];
            while let (n, Some(event)) = client.receive(rest, now).unwrap() {
                if let Event::Data { range, .. } = event {
                    held += range.len();
                    let tenth = now.duration_since(start).as_millis() as usize / 100;
                    tenths[tenth] += range.len();
                }
                rest = &rest[n..];
            }
        }
        readable = (readable + read_rate * step.as_secs_f64()).min(held as f64);
        let read = readable as usize;
        client.consumed(stream, read, now);
        held -= read;
        readable -= read as f64;
        now += step;
    }
    (tenths, client.stats().receive_window_peak)
}

fn rate(tenths: &[usize]) -> f64 {
    tenths.iter().sum::<usize>() as f64 * 10.0 / tenths.len() as f64
}

#[test]
fn one_stream_fills_1_gbit_per_second_over_80_ms_within_a_second() {
    let gigabit = 125e6;
    let (tenths, peak) = download(Duration::from_millis(80), gigabit, f64::INFINITY, 3);
    let filled = tenths
        .iter()
        .position(|bytes| *bytes as f64 > 0.95 * gigabit / 10.0)
        .unwrap();
    assert!(filled < 10, "full only after {filled} tenths: {tenths:?}");
    assert!(rate(&tenths[10..]) > 0.97 * gigabit, "{tenths:?}");
    assert!(peak <= 16 << 20);
}

#[test]
fn a_slow_line_keeps_a_small_window() {
    let (tenths, peak) = download(Duration::from_millis(50), 1e6, f64::INFINITY, 20);
    assert!(rate(&tenths[10..]) > 0.95e6);
    assert!(peak <= 512 * 1024, "{peak}");
}

#[test]
fn a_middling_line_ends_near_its_bandwidth_delay_product() {
    let (tenths, peak) = download(Duration::from_millis(100), 12.5e6, f64::INFINITY, 10);
    assert!(rate(&tenths[10..]) > 0.97 * 12.5e6);
    assert!((2 << 20..=5 << 20).contains(&peak), "{peak}");
}

#[test]
fn a_slow_reader_on_a_fast_line_keeps_a_small_window() {
    let (tenths, peak) = download(Duration::from_millis(20), 125e6, 2e6, 5);
    assert!(rate(&tenths[10..]) > 1.9e6);
    assert!(peak <= 512 * 1024, "{peak}");
}
