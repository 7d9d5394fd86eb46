//! The first bytes of a yamux stream: where it should go, and (extended form) what came of it.
//!
//! The deployed form is `host:port\n`, at most 512 bytes, and has no answer. The extended form is used only with a server
//! that announced it in its 101: `0x02`, version, command, flags, a 16-bit length, `host:port`; it is answered with
//! `0x02`, a status (RFC 1928 section 6 reply codes), a length and a reason in words, before the target's bytes.

use std::ops::Range;

use crate::end::{Refusal, Status};

/// The longest deployed preamble, newline included.
pub const PLAIN_MAX: usize = 512;
const EXTENDED: u8 = 0x02;
const VERSION: u8 = 1;
const CONNECT: u8 = 1;
const EXTENDED_HEADER: usize = 6;
/// The longest `host:port` of the extended form.
const AUTHORITY_MAX: usize = PLAIN_MAX - EXTENDED_HEADER;
/// A flag of the extended form: the server may hold the status back until there is data to send it with.
const STATUS_WITH_DATA: u8 = 1;

/// A preamble, read from the front of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Preamble {
    /// More bytes are needed.
    Partial,
    /// It is whole.
    Whole {
        /// Where `host:port` lies.
        authority: Range<usize>,
        /// The form that is answered; `None` is the deployed one.
        extended: Option<Extended>,
        /// How many bytes belong to it. What follows is for the target.
        used: usize,
    },
    /// It cannot become one.
    Invalid(&'static str),
}

/// What the extended form says beyond the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extended {
    /// The status may wait for data to travel with.
    pub status_with_data: bool,
}

/// The deployed form.
pub fn plain(authority: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(authority.len() + 1);
    bytes.extend_from_slice(authority);
    bytes.push(b'\n');
    bytes
}

/// The extended form. An authority that is too long is cut, which no server takes for a target.
pub fn extended(authority: &[u8], form: Extended) -> Vec<u8> {
    let authority = authority.get(..AUTHORITY_MAX).unwrap_or(authority);
    let flags = if form.status_with_data {
        STATUS_WITH_DATA
    } else {
        0
    };
    let mut bytes = Vec::with_capacity(EXTENDED_HEADER + authority.len());
    bytes.extend_from_slice(&[EXTENDED, VERSION, CONNECT, flags]);
    bytes.extend_from_slice(&(authority.len() as u16).to_be_bytes());
    bytes.extend_from_slice(authority);
    bytes
}

/// Reads a preamble of either form.
pub fn read(bytes: &[u8]) -> Preamble {
    if bytes.first() == Some(&EXTENDED) {
        return read_extended(bytes);
    }
    match bytes.iter().take(PLAIN_MAX).position(|&byte| byte == b'\n') {
        Some(end) => {
            let carriage_return = end > 0 && bytes.get(end - 1) == Some(&b'\r');
            Preamble::Whole {
                authority: 0..end - usize::from(carriage_return),
                extended: None,
                used: end + 1,
            }
        }
        None if bytes.len() >= PLAIN_MAX => {
            Preamble::Invalid("there is no target in the first 512 bytes")
        }
        None => Preamble::Partial,
    }
}

fn read_extended(bytes: &[u8]) -> Preamble {
    let &[_, version, command, flags, high, low, ..] = bytes else {
        return Preamble::Partial;
    };
    if version != VERSION {
        return Preamble::Invalid("unknown version of the extended preamble");
    }
    if command != CONNECT {
        return Preamble::Invalid("unknown command in the extended preamble");
    }
    let end = EXTENDED_HEADER + usize::from(u16::from_be_bytes([high, low]));
    if end > PLAIN_MAX {
        return Preamble::Invalid("the target is longer than 506 bytes");
    }
    if bytes.len() < end {
        return Preamble::Partial;
    }
    Preamble::Whole {
        authority: EXTENDED_HEADER..end,
        extended: Some(Extended {
            status_with_data: flags & STATUS_WITH_DATA != 0,
        }),
        used: end,
    }
}

const fn code(status: Status) -> u8 {
    match status {
        Status::Succeeded => 0,
        Status::General | Status::SessionLost | Status::NoAnswer => 1,
        Status::NotAllowed => 2,
        Status::NetworkUnreachable => 3,
        Status::HostUnreachable => 4,
        Status::Refused => 5,
        Status::TimedOut => 6,
        Status::NameNotFound => 0xf0,
        Status::PlatformAddress => 0xf1,
        Status::SocketLimit => 0xf2,
    }
}

fn status(of: u8) -> Status {
    Status::ON_THE_WIRE
        .into_iter()
        .find(|status| code(*status) == of)
        .unwrap_or(Status::General)
}

/// The answer to an extended preamble. A reason is cut at 255 bytes.
pub fn answer(refusal: &Refusal) -> Vec<u8> {
    let reason = refusal.brief_reason();
    let mut bytes = Vec::with_capacity(3 + reason.len());
    bytes.extend_from_slice(&[EXTENDED, code(refusal.status), reason.len() as u8]);
    bytes.extend_from_slice(reason.as_bytes());
    bytes
}

/// Reads an answer, and how many bytes belong to it. `None` while it is not whole.
///
/// # Errors
/// These bytes cannot become an answer.
pub fn read_answer(bytes: &[u8]) -> Result<Option<(Refusal, usize)>, &'static str> {
    match bytes {
        [] => Ok(None),
        [first, ..] if *first != EXTENDED => Err("the answer to the preamble is not one"),
        [_, code, length, rest @ ..] => {
            let length = usize::from(*length);
            Ok(rest.get(..length).map(|reason| {
                let reason = String::from_utf8_lossy(reason);
                (Refusal::new(status(*code), reason), 3 + length)
            }))
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AUTHORITY: &[u8] = b"[2001:db8::1]:443";

    #[test]
    fn both_forms_survive_every_split() {
        for form in [
            None,
            Some(Extended {
                status_with_data: true,
            }),
            Some(Extended {
                status_with_data: false,
            }),
        ] {
            let bytes = form.map_or_else(|| plain(AUTHORITY), |form| extended(AUTHORITY, form));
            for end in 0..bytes.len() {
                assert_eq!(read(&bytes[..end]), Preamble::Partial);
            }
            let mut more = bytes.clone();
            more.extend_from_slice(b"early");
            let Preamble::Whole {
                authority,
                extended,
                used,
            } = read(&more)
            else {
                panic!("not whole")
            };
            assert_eq!(&more[authority], AUTHORITY);
            assert_eq!((extended, used), (form, bytes.len()));
        }
    }

    #[test]
    fn a_preamble_without_an_end_is_refused_at_512_bytes() {
        assert_eq!(read(&[b'a'; 511]), Preamble::Partial);
        assert!(matches!(read(&[b'a'; 512]), Preamble::Invalid(_)));
        assert!(matches!(read(&[2, 9, 1, 0, 0, 0]), Preamble::Invalid(_)));
        assert!(matches!(read(&[2, 1, 9, 0, 0, 0]), Preamble::Invalid(_)));
        assert!(matches!(read(&[2, 1, 1, 0, 2, 0]), Preamble::Invalid(_)));
    }

    #[test]
    fn an_answer_survives_every_split_and_keeps_its_reason() {
        let refusal = Refusal::new(Status::Refused, "connection refused");
        let bytes = answer(&refusal);
        for end in 0..bytes.len() {
            assert_eq!(read_answer(&bytes[..end]), Ok(None));
        }
        let length = bytes.len();
        assert_eq!(read_answer(&bytes), Ok(Some((refusal, length))));
        assert!(read_answer(b"HTTP").is_err());
    }

    #[test]
    fn every_status_has_a_code_of_its_own() {
        for status in Status::ON_THE_WIRE {
            let bytes = answer(&Refusal::new(status, ""));
            let (read, _) = read_answer(&bytes).unwrap().unwrap();
            assert_eq!(read.status, status);
        }
        // One that is not known is a failure.
        let (read, _) = read_answer(&[EXTENDED, 0x99, 0]).unwrap().unwrap();
        assert_eq!(read.status, Status::General);
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let refusal = Refusal::new(Status::General, "ä".repeat(200));
        let (read, used) = read_answer(&answer(&refusal)).unwrap().unwrap();
        assert_eq!((read.reason.len(), used), (254, 257));
    }
}
