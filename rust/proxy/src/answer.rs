//! The head of a target's answer to a forwarded request: where it ends, what it says, and what the program gets of it.
//!
//! A program that speaks to the target directly would accept answers that break RFC 9112 here and there, so the reading is
//! lenient: lines may end with LF alone, a field may hold control characters. Only what decides where the answer ends must
//! be clear.

use std::borrow::Cow;

use crate::body::Body;

/// The longest head of an answer, interim ones before it included, in bytes.
pub const MAX_ANSWER_HEAD: usize = 64 * 1024;

const START: &[u8] = b"HTTP/";

/// Fields that concern only the connection between the target and this proxy (RFC 9110 section 7.6.1), beside those that
/// the Connection field names.
const HOP_BY_HOP: [&str; 3] = ["Connection", "Keep-Alive", "Proxy-Connection"];

/// Fields that a Connection field may not take away: without them the program would look for another end of the answer.
const NEVER_HOP_BY_HOP: [&str; 2] = ["Content-Length", "Transfer-Encoding"];

/// Gathers heads until each is whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HeadReader {
    bytes: Vec<u8>,
    /// Where the search for the end goes on.
    searched: usize,
    /// What heads before this one took of [`MAX_ANSWER_HEAD`].
    before: usize,
}

/// What has come.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// A part of a head; all of the input was taken.
    Partial,
    /// A head, which ends after so many bytes of the input.
    Head(Vec<u8>, usize),
    /// No HTTP/1: these are all bytes so far, and all of the input was taken.
    Foreign(Vec<u8>),
    /// The head is longer than [`MAX_ANSWER_HEAD`].
    TooLong,
}

impl HeadReader {
    pub(crate) const fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.before == 0
    }

    pub(crate) fn read(&mut self, input: &[u8]) -> Found {
        let length = self.bytes.len();
        let room = MAX_ANSWER_HEAD - self.before - length;
        self.bytes
            .extend_from_slice(input.get(..room).unwrap_or(input));
        let start = self.bytes.get(..START.len()).unwrap_or(&self.bytes);
        if !START.starts_with(start) {
            self.bytes
                .extend_from_slice(input.get(room..).unwrap_or_default());
            return Found::Foreign(std::mem::take(&mut self.bytes));
        }
        if let Some(end) = self.end() {
            let mut head = std::mem::take(&mut self.bytes);
            head.truncate(end);
            self.before += end;
            self.searched = 0;
            return Found::Head(head, end - length);
        }
        if self.bytes.len() == MAX_ANSWER_HEAD - self.before {
            return Found::TooLong;
        }
        Found::Partial
    }

    /// Behind the empty line, if it is there.
    fn end(&mut self) -> Option<usize> {
        loop {
            let rest = self.bytes.get(self.searched..)?;
            let line = self.searched + rest.iter().position(|&byte| byte == b'\n')? + 1;
            match self.bytes.get(line..)? {
                [b'\n', ..] => return Some(line + 1),
                [b'\r', b'\n', ..] => return Some(line + 2),
                // The next bytes decide: this line end is looked at again.
                [] | [b'\r'] => {
                    self.searched = line - 1;
                    return None;
                }
                _ => self.searched = line,
            }
        }
    }
}

/// A whole head.
pub(crate) struct Head<'a> {
    pub(crate) status: u16,
    is_http_1_0: bool,
    status_line: &'a [u8],
    fields: Vec<Field<'a>>,
}

struct Field<'a> {
    name: &'a [u8],
    value: &'a [u8],
}

/// Where the content of an answer ends (RFC 9112 section 6.3).
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Told(Body),
    UntilClose,
}

/// Replaces the line folding that RFC 9112 section 5.2 took back by spaces.
pub(crate) fn unfold(head: &[u8]) -> Cow<'_, [u8]> {
    let folds = |pair: &[u8]| matches!(pair, [b'\n', b' ' | b'\t']);
    if !head.windows(2).any(folds) {
        return Cow::Borrowed(head);
    }
    let mut unfolded = head.to_vec();
    for end in 0..head.len() {
        if head.get(end..end + 2).is_some_and(folds) {
            let before = end.saturating_sub(1);
            for place in before..=end {
                if let Some(byte @ (b'\r' | b'\n')) = unfolded.get_mut(place) {
                    *byte = b' ';
                }
            }
        }
    }
    Cow::Owned(unfolded)
}

impl<'a> Head<'a> {
    /// Reads an unfolded head. Lines that are no fields are left out.
    pub(crate) fn parse(head: &'a [u8]) -> Result<Self, &'static str> {
        let mut lines = head
            .split(|&byte| byte == b'\n')
            .map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        let status_line = lines.next().unwrap_or_default();
        let mut words = status_line.splitn(2, |&byte| byte == b' ');
        let version = words.next().unwrap_or_default();
        let rest = words.next().unwrap_or_default().trim_ascii_start();
        let status = match rest {
            [
                first @ b'1'..=b'9',
                second @ b'0'..=b'9',
                third @ b'0'..=b'9',
            ]
            | [
                first @ b'1'..=b'9',
                second @ b'0'..=b'9',
                third @ b'0'..=b'9',
                b' ',
                ..,
            ] => {
                let digit = |byte: &u8| u16::from(byte - b'0');
                100 * digit(first) + 10 * digit(second) + digit(third)
            }
            _ => return Err("its status line cannot be read"),
        };
        let is_http_1_0 = match version {
            b"HTTP/1.1" => false,
            b"HTTP/1.0" => true,
            _ => return Err("its HTTP version is neither 1.0 nor 1.1"),
        };
        let fields = lines
            .filter_map(|line| {
                let colon = line.iter().position(|&byte| byte == b':')?;
                let (name, value) = line.split_at(colon);
                let name = name.trim_ascii();
                let value = value.get(1..)?.trim_ascii();
                (!name.is_empty()).then_some(Field { name, value })
            })
            .collect();
        Ok(Self {
            status,
            is_http_1_0,
            status_line,
            fields,
        })
    }

    fn values(&self, name: &'static str) -> impl Iterator<Item = &'a [u8]> {
        self.fields
            .iter()
            .filter(move |field| field.name.eq_ignore_ascii_case(name.as_bytes()))
            .map(|field| field.value)
    }

    /// The members of a list-based field (RFC 9110 section 5.6.1).
    fn list(&self, name: &'static str) -> impl Iterator<Item = &'a [u8]> {
        self.values(name)
            .flat_map(|value| value.split(|&byte| byte == b','))
            .map(<[u8]>::trim_ascii)
            .filter(|member| !member.is_empty())
    }

    /// Where the content of this final answer ends. `bodiless`: it answers HEAD.
    pub(crate) fn framing(&self, bodiless: bool) -> Result<Framing, &'static str> {
        if bodiless || matches!(self.status, 204 | 304) {
            return Ok(Framing::Told(Body::sized(0)));
        }
        if self.values("Transfer-Encoding").next().is_some() {
            let is_chunked = self
                .list("Transfer-Encoding")
                .last()
                .is_some_and(|coding| coding.eq_ignore_ascii_case(b"chunked"));
            return Ok(if is_chunked && !self.is_http_1_0 {
                Framing::Told(Body::chunked())
            } else {
                Framing::UntilClose
            });
        }
        let mut length = None;
        for member in self.list("Content-Length") {
            let found = Some(member)
                .filter(|digits| digits.iter().all(u8::is_ascii_digit))
                .and_then(|digits| str::from_utf8(digits).ok()?.parse::<u64>().ok())
                .ok_or("its Content-Length is not a number")?;
            if length.is_some_and(|length| length != found) {
                return Err("it has more than one Content-Length");
            }
            length = Some(found);
        }
        Ok(length.map_or(Framing::UntilClose, |length| {
            Framing::Told(Body::sized(length))
        }))
    }

    /// Appends the head as the program gets it: without what concerns the connection to the target alone. `is_final`: the
    /// connection to the program ends with this answer.
    pub(crate) fn write(&self, out: &mut Vec<u8>, is_final: bool) {
        let named: Vec<&[u8]> = self.list("Connection").collect();
        let is = |name: &[u8], others: &[&str]| {
            others
                .iter()
                .any(|other| name.eq_ignore_ascii_case(other.as_bytes()))
        };
        let has_coding = self.values("Transfer-Encoding").next().is_some();
        out.extend_from_slice(self.status_line);
        out.extend_from_slice(b"\r\n");
        for field in &self.fields {
            let is_named = named
                .iter()
                .any(|name| field.name.eq_ignore_ascii_case(name));
            let is_dropped = is(field.name, &HOP_BY_HOP)
                || is_named && !is(field.name, &NEVER_HOP_BY_HOP)
                // RFC 9112 section 6.3: the coding alone says where the content ends.
                || has_coding && is(field.name, &["Content-Length"]);
            if !is_dropped {
                for part in [field.name, b": ", field.value, b"\r\n"] {
                    out.extend_from_slice(part);
                }
            }
        }
        if is_final {
            out.extend_from_slice(b"Connection: close\r\n");
        }
        out.extend_from_slice(b"\r\n");
    }
}
