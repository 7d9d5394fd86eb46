//! A peer that sends whatever it likes.

use std::time::{Duration, Instant};

use ech_workers_yamux::{Config, Connection, Event, Side, StreamId};
use proptest::prelude::*;

/// Frames that are mostly well-formed, on few streams, with the flags in every mixture.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let length = prop_oneof![
        8 => 0..2000u32,
        1 => 200_000..300_000u32,
        1 => any::<u32>(),
    ];
    (0..5u8, 0..32u16, 0..12u32, length, any::<bool>()).prop_map(
        |(kind, flags, stream, length, with_payload)| {
            let mut frame = vec![0, kind.min(3)];
            frame.extend(flags.to_be_bytes());
            frame.extend(stream.to_be_bytes());
            frame.extend(length.to_be_bytes());
            if kind == 0 && with_payload {
                frame.resize(frame.len() + length.min(300_000) as usize, 0);
            }
            frame
        },
    )
}

/// Feeds everything, answering as an application might; the bytes and control frames that it would have to keep.
fn feed(side: Side, input: &[Vec<u8>], answer: bool) -> (usize, usize) {
    let config = Config {
        max_streams: 8,
        ..Config::default()
    };
    let mut now = Instant::now();
    let mut connection = Connection::new(side, config, now);
    let ours: Vec<StreamId> = (0..3).map(|_| connection.open().unwrap()).collect();
    let mut held = 0;
    'input: for bytes in input {
        now += Duration::from_millis(1);
        let mut rest = &bytes[..];
        loop {
            let Ok((n, event)) = connection.receive(rest, now) else {
                break 'input;
            };
            assert!(n > 0 || event.is_some() || rest.is_empty());
            match event {
                None => break,
                Some(Event::Data { stream, range }) if answer => {
                    connection.consumed(stream, range.len(), now);
                    connection.finish(stream);
                }
                Some(Event::Data { range, .. }) => held += range.len(),
                Some(Event::Opened(id)) if answer && id.value() % 3 == 0 => connection.reset(id),
                Some(_) => {}
            }
            rest = &rest[n..];
        }
    }
    for id in ours {
        connection.reset(id);
    }
    let frames = std::iter::from_fn(|| connection.poll_control(now)).count();
    (held, frames)
}

proptest! {
    #[test]
    fn any_sequence_of_frames_is_an_error_or_is_survived(
        input in prop::collection::vec(frame(), 1..120),
        client in any::<bool>(),
        answer in any::<bool>(),
    ) {
        let side = if client { Side::Client } else { Side::Server };
        let (held, frames) = feed(side, &input, answer);
        // At most 8 streams at a time, but each of the 6 ids of the peer can come and go.
        prop_assert!(held <= 9 * 256 * 1024, "{held} bytes held");
        prop_assert!(frames <= 300, "{frames} control frames pending");
    }

    #[test]
    fn noise_is_an_error_and_never_a_panic(
        input in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..20),
    ) {
        feed(Side::Server, &input, true);
    }
}
