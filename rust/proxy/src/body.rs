//! Where the content of an HTTP message ends.

use crate::Error;

/// Follows the content of a message (RFC 9112 section 6) without keeping any of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Body(State);

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// So many bytes are still to come (Content-Length; 0 without content).
    Sized(u64),
    Chunked(Chunk),
}

/// The place within a chunked body (RFC 9112 section 7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chunk {
    Size { size: u64, digits: u8 },
    Extension { size: u64 },
    SizeLineFeed { size: u64 },
    Data { remaining: u64 },
    DataCarriageReturn,
    DataLineFeed,
    TrailerStart,
    TrailerField,
    TrailerLineFeed,
    FinalLineFeed,
    End,
    Broken,
}

impl Body {
    pub(crate) fn sized(length: u64) -> Self {
        Self(State::Sized(length))
    }

    pub(crate) fn chunked() -> Self {
        Self(State::Chunked(Chunk::Size { size: 0, digits: 0 }))
    }

    /// How many bytes at the front of `bytes`, which arrived after those seen before, belong to the content.
    ///
    /// Fewer than all of them means that it [is complete](Self::is_complete).
    ///
    /// # Errors
    /// [`Error::MalformedRequest`] when the chunked framing is broken, now or before.
    pub(crate) fn accept(&mut self, bytes: &[u8]) -> Result<usize, Error> {
        match &mut self.0 {
            State::Sized(remaining) => {
                let taken = at_most(*remaining, bytes.len());
                *remaining -= taken as u64;
                Ok(taken)
            }
            State::Chunked(chunk) => {
                let mut taken = 0;
                while let Some(rest @ [byte, ..]) = bytes.get(taken..)
                    && *chunk != Chunk::End
                {
                    if let Chunk::Data { remaining } = chunk {
                        let data = at_most(*remaining, rest.len());
                        *remaining -= data as u64;
                        taken += data;
                        if *remaining == 0 {
                            *chunk = Chunk::DataCarriageReturn;
                        }
                    } else {
                        *chunk = chunk.after(*byte).inspect_err(|_| *chunk = Chunk::Broken)?;
                        taken += 1;
                    }
                }
                Ok(taken)
            }
        }
    }

    /// Whether all of it has been seen.
    pub(crate) fn is_complete(&self) -> bool {
        matches!(self.0, State::Sized(0) | State::Chunked(Chunk::End))
    }
}

impl Chunk {
    /// The place after one byte that is not chunk data.
    fn after(self, byte: u8) -> Result<Self, Error> {
        Ok(match (self, byte) {
            (Self::Size { size, digits }, digit) if digit.is_ascii_hexdigit() => {
                // Sixteen digits fill the 64 bits: RFC 9112 section 7.1 asks for care about overflows.
                if digits == 16 {
                    return Err(Error::MalformedRequest("the chunk size is too large"));
                }
                let value = (digit as char).to_digit(16).unwrap_or_default();
                Self::Size {
                    size: size << 4 | u64::from(value),
                    digits: digits + 1,
                }
            }
            (Self::Size { digits: 0, .. }, _) => {
                return Err(Error::MalformedRequest("the chunk size is missing"));
            }
            (Self::Size { size, .. } | Self::Extension { size }, b'\r') => {
                Self::SizeLineFeed { size }
            }
            (Self::Size { size, .. }, b';' | b' ' | b'\t') => Self::Extension { size },
            (Self::Extension { size }, byte) if is_field_byte(byte) => Self::Extension { size },
            (Self::SizeLineFeed { size: 0 }, b'\n') => Self::TrailerStart,
            (Self::SizeLineFeed { size }, b'\n') => Self::Data { remaining: size },
            (Self::DataCarriageReturn, b'\r') => Self::DataLineFeed,
            (Self::DataLineFeed, b'\n') => Self::Size { size: 0, digits: 0 },
            (Self::TrailerStart, b'\r') => Self::FinalLineFeed,
            (Self::TrailerStart | Self::TrailerField, byte) if is_field_byte(byte) => {
                Self::TrailerField
            }
            (Self::TrailerField, b'\r') => Self::TrailerLineFeed,
            (Self::TrailerLineFeed, b'\n') => Self::TrailerStart,
            (Self::FinalLineFeed, b'\n') => Self::End,
            _ => return Err(Error::MalformedRequest("the chunked content is broken")),
        })
    }
}

fn is_field_byte(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

fn at_most(remaining: u64, available: usize) -> usize {
    usize::try_from(remaining)
        .unwrap_or(usize::MAX)
        .min(available)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNKED: &[u8] = b"5\r\nhello\r\n00A;name=\"v\" \r\n0123456789\r\n0\r\nDigest: x\r\n\r\n";

    #[test]
    fn the_next_request_behind_a_content_length_stays_outside() {
        let mut body = Body::sized(5);
        assert_eq!(body.accept(b"hel"), Ok(3));
        assert!(!body.is_complete());
        assert_eq!(body.accept(b"loGET http://other.test/"), Ok(2));
        assert!(body.is_complete());
        assert_eq!(body.accept(b"x"), Ok(0));
    }

    #[test]
    fn the_next_request_behind_the_last_chunk_stays_outside_however_the_bytes_are_split() {
        let next = b"GET http://other.test/ HTTP/1.1\r\n";
        let bytes = [CHUNKED, next].concat();
        for split in 0..bytes.len() {
            let mut body = Body::chunked();
            let first = body.accept(&bytes[..split]).unwrap();
            let second = body.accept(&bytes[split..]).unwrap();
            assert_eq!(first + second, CHUNKED.len(), "split at {split}");
            assert!(body.is_complete());
        }
    }

    #[test]
    fn a_chunk_that_two_parsers_could_read_differently_is_refused() {
        for bytes in [
            &b"5\nhello\r\n"[..],
            b"\r\n",
            b"0x5\r\n",
            b"-5\r\n",
            b"5\rhello",
            b"5;a\nb\r\n",
            b"5\r\nhelloX\r\n",
            b"5\r\nhello\n",
            b"00000000000000005\r\n",
            b"0\r\n\n",
            b"0\r\nA: b\n\r\n",
        ] {
            assert!(
                Body::chunked().accept(bytes).is_err(),
                "{:?}",
                String::from_utf8_lossy(bytes)
            );
        }
    }

    #[test]
    fn the_largest_chunk_is_not_an_overflow() {
        let mut body = Body::chunked();
        assert_eq!(body.accept(b"ffffffffffffffff\r\nabc"), Ok(21));
        assert!(!body.is_complete());
    }
}
