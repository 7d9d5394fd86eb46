//! The first bytes of a stream: where it should go, and (extended form) what came of it.
//!
//! The deployed form is `host:port\n`, at most 512 bytes, and has no answer. The extended form is used only with a server
//! that announced it in its 101: `0x02`, version, command, flags, a 16-bit length, `host:port`; it is answered with
//! `0x02`, a status (RFC 1928 section 6 reply codes), a length and a reason in words, before the target's bytes.

use ech_workers_proxy::Target;

/// The response header by which our server announces what it can do beyond the deployed protocol.
pub(crate) const ANNOUNCEMENT: &str = "x-stream-extensions";
/// What it announces: the version of the extended form, then features.
pub(crate) const ANNOUNCED: &str = "1, connect, half-close";

/// The longest deployed preamble, newline included.
const PLAIN_MAX: usize = 512;
const EXTENDED: u8 = 0x02;
const VERSION: u8 = 1;
const EXTENDED_HEADER: usize = 6;

/// What an extended preamble asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    Connect,
}

/// A preamble, read from the front of a stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Preamble {
    /// More bytes are needed.
    Partial,
    /// Whole: `used` bytes belong to it, what follows is for the target.
    Whole {
        target: Target,
        extended: bool,
        used: usize,
    },
    /// It cannot become one.
    Invalid(&'static str),
}

/// The deployed form.
pub(crate) fn plain(target: &Target) -> Vec<u8> {
    let mut bytes = target.authority().into_bytes();
    bytes.push(b'\n');
    bytes
}

/// The extended form.
pub(crate) fn extended(command: Command, target: &Target) -> Vec<u8> {
    let authority = target.authority();
    let Command::Connect = command;
    let mut bytes = Vec::with_capacity(EXTENDED_HEADER + authority.len());
    bytes.extend_from_slice(&[EXTENDED, VERSION, 1, 0]);
    bytes.extend_from_slice(&(authority.len() as u16).to_be_bytes());
    bytes.extend_from_slice(authority.as_bytes());
    bytes
}

/// Reads a preamble of either form.
pub(crate) fn read(bytes: &[u8]) -> Preamble {
    if bytes.first() == Some(&EXTENDED) {
        return read_extended(bytes);
    }
    let window = &bytes[..bytes.len().min(PLAIN_MAX)];
    let Some(end) = window.iter().position(|&byte| byte == b'\n') else {
        return if window.len() == PLAIN_MAX {
            Preamble::Invalid("no target in the first 512 bytes")
        } else {
            Preamble::Partial
        };
    };
    match target(&bytes[..end]) {
        Some(target) => Preamble::Whole {
            target,
            extended: false,
            used: end + 1,
        },
        None => Preamble::Invalid("the target is not host:port"),
    }
}

fn read_extended(bytes: &[u8]) -> Preamble {
    if bytes.len() < EXTENDED_HEADER {
        return Preamble::Partial;
    }
    if bytes[1] != VERSION {
        return Preamble::Invalid("unknown version of the extended preamble");
    }
    if bytes[2] != 1 {
        return Preamble::Invalid("unknown command in the extended preamble");
    }
    let end = EXTENDED_HEADER + usize::from(u16::from_be_bytes([bytes[4], bytes[5]]));
    if end > PLAIN_MAX {
        return Preamble::Invalid("the target is longer than 506 bytes");
    }
    if bytes.len() < end {
        return Preamble::Partial;
    }
    match target(&bytes[EXTENDED_HEADER..end]) {
        Some(target) => Preamble::Whole {
            target,
            extended: true,
            used: end,
        },
        None => Preamble::Invalid("the target is not host:port"),
    }
}

fn target(bytes: &[u8]) -> Option<Target> {
    std::str::from_utf8(bytes)
        .ok()?
        .trim_end_matches('\r')
        .parse()
        .ok()
}

/// What became of a connect, in RFC 1928's reply codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Status {
    Succeeded,
    General,
    NotAllowed,
    NetworkUnreachable,
    HostUnreachable,
    Refused,
    TimedOut,
    /// The name does not exist. RFC 1928 has no code for it; 0xF0 is ours, on the wire between our own ends only.
    NameNotFound,
}

impl Status {
    const fn code(self) -> u8 {
        match self {
            Self::Succeeded => 0,
            Self::General => 1,
            Self::NotAllowed => 2,
            Self::NetworkUnreachable => 3,
            Self::HostUnreachable => 4,
            Self::Refused => 5,
            Self::TimedOut => 6,
            Self::NameNotFound => 0xf0,
        }
    }

    const fn from_code(code: u8) -> Self {
        match code {
            0 => Self::Succeeded,
            2 => Self::NotAllowed,
            3 => Self::NetworkUnreachable,
            4 => Self::HostUnreachable,
            5 => Self::Refused,
            6 => Self::TimedOut,
            0xf0 => Self::NameNotFound,
            _ => Self::General,
        }
    }
}

/// The answer to an extended preamble.
pub(crate) fn answer(status: Status, reason: &str) -> Vec<u8> {
    let mut end = reason.len().min(255);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let mut bytes = vec![EXTENDED, status.code(), end as u8];
    bytes.extend_from_slice(&reason.as_bytes()[..end]);
    bytes
}

/// Reads an answer: the status, its reason and the bytes used; `None` while it is not whole.
pub(crate) fn read_answer(bytes: &[u8]) -> Result<Option<(Status, String, usize)>, &'static str> {
    match bytes {
        [] => Ok(None),
        [first, ..] if *first != EXTENDED => Err("the answer to the preamble is not one"),
        [_, status, length, rest @ ..] if rest.len() >= usize::from(*length) => {
            let reason = String::from_utf8_lossy(&rest[..usize::from(*length)]).into_owned();
            Ok(Some((
                Status::from_code(*status),
                reason,
                3 + usize::from(*length),
            )))
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(bytes: &[u8]) -> (String, bool, usize) {
        match read(bytes) {
            Preamble::Whole {
                target,
                extended,
                used,
            } => (target.authority(), extended, used),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn both_forms_survive_every_split() {
        let target: Target = "[2001:db8::1]:443".parse().unwrap();
        for bytes in [plain(&target), extended(Command::Connect, &target)] {
            for end in 0..bytes.len() {
                assert_eq!(read(&bytes[..end]), Preamble::Partial);
            }
            let used = bytes.len();
            let mut more = bytes.clone();
            more.extend_from_slice(b"early");
            assert_eq!(
                whole(&more),
                ("[2001:db8::1]:443".to_owned(), bytes[0] == EXTENDED, used)
            );
        }
    }

    #[test]
    fn a_preamble_without_end_is_refused_at_512_bytes() {
        assert_eq!(read(&[b'a'; 511]), Preamble::Partial);
        assert!(matches!(read(&[b'a'; 512]), Preamble::Invalid(_)));
        assert!(matches!(read(b"nonsense\n"), Preamble::Invalid(_)));
        assert!(matches!(read(&[2, 9, 1, 0, 0, 0]), Preamble::Invalid(_)));
    }

    #[test]
    fn an_answer_survives_every_split_and_keeps_its_reason() {
        let bytes = answer(Status::Refused, "connection refused");
        for end in 0..bytes.len() {
            assert_eq!(read_answer(&bytes[..end]), Ok(None));
        }
        assert_eq!(
            read_answer(&bytes),
            Ok(Some((
                Status::Refused,
                "connection refused".to_owned(),
                bytes.len()
            )))
        );
        assert!(read_answer(b"HTTP").is_err());
    }
}
