//! A stream's first bytes and their answer, from any peer: no panic, the same however they are cut, and what we write we read.
#![no_main]

use arbitrary::Arbitrary;
use ech_workers_session::preamble::{self, Extended, PLAIN_MAX, Preamble};
use ech_workers_session::{Refusal, Status};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Input {
    Request(Vec<u8>),
    Answer(Vec<u8>),
    /// What a client writes, with bytes behind it.
    Written {
        authority: Vec<u8>,
        extended: Option<bool>,
        behind: Vec<u8>,
    },
    Answered {
        status: u8,
        reason: String,
        behind: Vec<u8>,
    },
}

fuzz_target!(|input: Input| match input {
    Input::Request(bytes) => request(&bytes),
    Input::Answer(bytes) => answer(&bytes),
    Input::Written {
        authority,
        extended,
        behind,
    } => written(&authority, extended, &behind),
    Input::Answered {
        status,
        reason,
        behind,
    } => answered(status, reason, &behind),
});

fn request(bytes: &[u8]) {
    let whole = preamble::read(bytes);
    // What was decided stays so when more comes, and is not decided before.
    for end in 0..bytes.len().min(PLAIN_MAX + 8) {
        let part = preamble::read(&bytes[..end]);
        if part != Preamble::Partial {
            assert_eq!(part, whole, "it changed its mind after {end} bytes");
            break;
        }
    }
    match whole {
        Preamble::Partial => assert!(bytes.len() < PLAIN_MAX, "it waits for ever"),
        Preamble::Whole {
            authority, used, ..
        } => {
            assert!(authority.end <= used && used <= bytes.len() && used <= PLAIN_MAX);
            assert!(authority.start <= authority.end);
        }
        Preamble::Invalid(reason) => assert!(!reason.is_empty()),
    }
}

fn answer(bytes: &[u8]) {
    let whole = preamble::read_answer(bytes);
    for end in 0..bytes.len().min(1024) {
        match preamble::read_answer(&bytes[..end]) {
            Ok(None) => {}
            part => {
                assert_eq!(part, whole, "it changed its mind after {end} bytes");
                break;
            }
        }
    }
    match whole {
        Ok(None) => assert!(bytes.len() < 1024, "it waits for ever"),
        Ok(Some((_, used))) => assert!(used <= bytes.len()),
        Err(reason) => assert!(!reason.is_empty()),
    }
}

fn written(authority: &[u8], extended: Option<bool>, behind: &[u8]) {
    // A line cannot hold a line end, and has to leave room for its own; a server passes over a carriage return before it.
    let plain = !authority.contains(&b'\n')
        && !authority.ends_with(b"\r")
        && authority.first() != Some(&2)
        && authority.len() < PLAIN_MAX;
    let form = extended.map(|status_with_data| Extended { status_with_data });
    let mut bytes = match form {
        None if !plain => return,
        None => preamble::plain(authority),
        Some(form) => preamble::extended(authority, form),
    };
    let length = bytes.len();
    bytes.extend(behind);
    match preamble::read(&bytes) {
        Preamble::Whole {
            authority: range,
            extended: read,
            used,
        } => {
            assert_eq!(used, length);
            assert_eq!(read, form);
            assert!(authority.starts_with(&bytes[range]));
        }
        Preamble::Partial => panic!("its own preamble is not whole"),
        Preamble::Invalid(reason) => panic!("{reason}"),
    }
}

fn answered(status: u8, reason: String, behind: &[u8]) {
    let status = Status::ON_THE_WIRE[usize::from(status) % Status::ON_THE_WIRE.len()];
    let mut bytes = preamble::answer(&Refusal::new(status, reason));
    let length = bytes.len();
    bytes.extend(behind);
    let (read, used) = preamble::read_answer(&bytes)
        .expect("our own answer")
        .expect("a whole answer");
    assert_eq!(used, length);
    assert_eq!(read.status, status);
}
