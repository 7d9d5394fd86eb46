//! Whatever the peer sends, however it is cut: no panic, the same events, and every byte taken once.
#![no_main]

use ech_workers_websocket::{CloseReason, Decoder, Event, MessageKind, ProtocolError, Role};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    // The first byte: our role, and the length of the pieces.
    let Some((&options, bytes)) = input.split_first() else {
        return;
    };
    let role = if options & 1 == 1 {
        Role::Server
    } else {
        Role::Client
    };
    let piece = 1 + usize::from(options >> 1);
    assert_eq!(
        decode(role, bytes, bytes.len().max(1)),
        decode(role, bytes, piece)
    );
});

#[derive(Debug, PartialEq)]
enum Heard {
    /// Bytes of a message, with those before them if nothing came between.
    Data {
        kind: MessageKind,
        bytes: Vec<u8>,
        end: bool,
    },
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<CloseReason>),
    Failed(ProtocolError),
}

fn decode(role: Role, bytes: &[u8], piece: usize) -> Vec<Heard> {
    let mut decoder = Decoder::new(role);
    let mut heard = Vec::new();
    for piece in bytes.chunks(piece) {
        let mut piece = piece.to_vec();
        let mut rest = &mut piece[..];
        while !rest.is_empty() {
            let (taken, event) = match decoder.decode(rest) {
                Ok(decoded) => decoded,
                Err(error) => {
                    assert_eq!(decoder.decode(rest), Err(error), "an error that passes");
                    heard.push(Heard::Failed(error));
                    return heard;
                }
            };
            assert!(taken > 0, "no progress");
            if let Some(event) = event {
                note(&mut heard, event, &rest[..taken]);
            }
            rest = &mut rest[taken..];
        }
    }
    heard
}

fn note(heard: &mut Vec<Heard>, event: Event, input: &[u8]) {
    let next = match event {
        Event::Data { kind, range, end } => {
            let new = &input[range];
            assert!(end || !new.is_empty());
            if let Some(Heard::Data {
                kind: before,
                bytes,
                end: ended @ false,
            }) = heard.last_mut()
            {
                assert_eq!(*before, kind, "a message changed its kind");
                bytes.extend_from_slice(new);
                *ended = end;
                return;
            }
            Heard::Data {
                kind,
                bytes: new.to_vec(),
                end,
            }
        }
        Event::Ping(payload) => Heard::Ping(payload.to_vec()),
        Event::Pong(payload) => Heard::Pong(payload.to_vec()),
        Event::Close(reason) => Heard::Close(reason),
    };
    heard.push(next);
}
