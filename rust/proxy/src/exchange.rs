//! One forwarded HTTP request and its answer.

use std::ops::Range;

use crate::Error;
use crate::answer::{Found, Framing, Head, HeadReader, unfold};
use crate::body::Body;
use crate::http::Reply;

/// Follows a forwarded request and its answer, in both directions, without I/O: what may pass, and when it is over.
///
/// A forwarded request has its connection to itself, but the program may not know it and send its next request, meant
/// perhaps for another host, behind the first; nor does every target close the connection because it was asked to. So what
/// lies behind the request never reaches this target, the answer says `Connection: close` in the proxy's own name, and the
/// connection to the program [is over](Self::is_over) when the answer is complete.
///
/// What follows a request to switch to WebSocket [is held back](Self::is_holding) until the answer's status is known: with a
/// 101 the connection [is a pipe](Self::is_pipe), and everything else is an answer like any other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    request: Asked,
    answer: Answer,
    /// The answer has no content, since the method is HEAD.
    bodiless: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Asked {
    Content(Body),
    /// Bytes that came behind a request to switch to WebSocket.
    Upgrade(Vec<u8>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Head(HeadReader),
    Content(Body),
    UntilClose,
    Pipe,
    Over,
}

/// What the program gets of some of the answer's bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Passage {
    /// This goes first; mostly empty.
    pub head: Vec<u8>,
    /// These of the bytes follow, as they are. The others are not for the program.
    pub body: Range<usize>,
}

impl Exchange {
    /// A request with content, which may be empty.
    pub(crate) fn new(content: Body, bodiless: bool) -> Self {
        Self {
            request: Asked::Content(content),
            answer: Answer::Head(HeadReader::default()),
            bodiless,
        }
    }

    /// A request to switch to WebSocket.
    pub(crate) fn upgrade() -> Self {
        Self {
            request: Asked::Upgrade(Vec::new()),
            answer: Answer::Head(HeadReader::default()),
            bodiless: false,
        }
    }

    /// Keeps bytes that [are held back](Self::is_holding) and cannot be left in the socket. How many, the caller bounds.
    pub fn hold(&mut self, bytes: &[u8]) {
        if let Asked::Upgrade(held) = &mut self.request {
            held.extend_from_slice(bytes);
        }
    }

    /// How many bytes at the front of `bytes`, which the program sent behind those seen before, go to the target now.
    ///
    /// The rest of them is not for this target and never will be, unless the exchange [is holding](Self::is_holding):
    /// then the caller keeps them, or better does not read them, and offers them again.
    ///
    /// # Errors
    /// [`Error::MalformedRequest`] when the chunked framing is broken, now or before: nothing more may be forwarded.
    pub fn accept_request(&mut self, bytes: &[u8]) -> Result<usize, Error> {
        match (&mut self.request, &self.answer) {
            (_, Answer::Pipe) => Ok(bytes.len()),
            (Asked::Upgrade(_), _) => Ok(0),
            (Asked::Content(body), _) => body.accept(bytes),
        }
    }

    /// The next bytes of the answer.
    ///
    /// An answer that cannot be passed on is replaced by a 502 of the proxy's own, and the exchange is over.
    pub fn accept_answer(&mut self, bytes: &[u8]) -> Passage {
        let mut head = Vec::new();
        let mut start = 0;
        loop {
            let rest = bytes.get(start..).unwrap_or_default();
            let taken = match &mut self.answer {
                Answer::Head(reader) => match reader.read(rest) {
                    Found::Partial => rest.len(),
                    Found::Head(read, length) => {
                        start += length;
                        self.heed(&read, &mut head);
                        continue;
                    }
                    Found::Foreign(read) => {
                        // Not HTTP/1, as some radio stations: a program that asked for it may know what it is.
                        head.extend_from_slice(&read);
                        self.decide(Answer::UntilClose);
                        rest.len()
                    }
                    Found::TooLong => {
                        self.fail("its head is longer than 64 KiB", &mut head);
                        rest.len()
                    }
                },
                Answer::Content(body) => {
                    let length = match body.accept(rest) {
                        Ok(length) => length,
                        // The program sees the same fault, and judges it; the end of the connection ends the answer.
                        Err(_) => {
                            self.answer = Answer::UntilClose;
                            continue;
                        }
                    };
                    if body.is_complete() {
                        self.answer = Answer::Over;
                    }
                    return Passage {
                        head,
                        body: start..start + length,
                    };
                }
                Answer::UntilClose | Answer::Pipe => {
                    return Passage {
                        head,
                        body: start..bytes.len(),
                    };
                }
                Answer::Over => 0,
            };
            start += taken;
            return Passage {
                head,
                body: start..start,
            };
        }
    }

    /// The target has closed the connection: what the program is told, which is nothing once the answer has begun.
    pub fn end_of_answer(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        match &self.answer {
            Answer::Head(reader) => {
                let why = if reader.is_empty() {
                    "the target closed the connection without one"
                } else {
                    "the target closed the connection before its head was complete"
                };
                self.fail(why, &mut out);
            }
            Answer::Content(_) | Answer::UntilClose => self.answer = Answer::Over,
            Answer::Pipe | Answer::Over => {}
        }
        out
    }

    /// Nothing more of the program may go to the target before the answer has said what becomes of the connection.
    #[must_use]
    pub fn is_holding(&self) -> bool {
        matches!(
            (&self.request, &self.answer),
            (Asked::Upgrade(_), Answer::Head(_))
        )
    }

    /// The target has switched protocols: from here on all bytes pass, in both directions, those [held
    /// back](Self::take_held) first.
    #[must_use]
    pub fn is_pipe(&self) -> bool {
        matches!(self.answer, Answer::Pipe)
    }

    /// The answer is complete: the connection to the program ends when it has been written.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.answer, Answer::Over)
    }

    /// What came along with the request, and goes to the target first when the connection [is a pipe](Self::is_pipe).
    #[must_use]
    pub fn take_held(&mut self) -> Vec<u8> {
        match &mut self.request {
            Asked::Upgrade(held) if matches!(self.answer, Answer::Pipe) => std::mem::take(held),
            _ => Vec::new(),
        }
    }

    /// Takes a whole head.
    fn heed(&mut self, head: &[u8], out: &mut Vec<u8>) {
        let unfolded = unfold(head);
        let parsed = match Head::parse(&unfolded) {
            Ok(parsed) => parsed,
            Err(why) => return self.fail(why, out),
        };
        match (parsed.status, &self.request) {
            (101, Asked::Upgrade(_)) => {
                // The program's own: it checks what it asked for.
                out.extend_from_slice(head);
                self.answer = Answer::Pipe;
            }
            (101, Asked::Content(_)) => {
                self.fail("it switches protocols without having been asked", out);
            }
            (100..=199, _) => parsed.write(out, false),
            _ => match parsed.framing(self.bodiless) {
                Ok(framing) => {
                    parsed.write(out, true);
                    self.decide(match framing {
                        Framing::Told(body) if body.is_complete() => Answer::Over,
                        Framing::Told(body) => Answer::Content(body),
                        Framing::UntilClose => Answer::UntilClose,
                    });
                }
                Err(why) => self.fail(why, out),
            },
        }
    }

    /// The final answer has begun, and is no switch of protocols.
    fn decide(&mut self, answer: Answer) {
        self.answer = answer;
        if let Asked::Upgrade(held) = &mut self.request {
            *held = Vec::new();
        }
    }

    /// Gives the program an answer of the proxy's own (RFC 9110 section 15.6.3).
    fn fail(&mut self, why: &str, out: &mut Vec<u8>) {
        let reply = Reply {
            status: "502 Bad Gateway",
            field: "Proxy-Status: ech-workers; error=http_protocol_error\r\n",
            text: &format!("ech-workers: the target's answer cannot be used: {why}"),
        };
        out.extend(reply.into_bytes(self.bodiless));
        self.decide(Answer::Over);
    }
}

#[cfg(test)]
mod tests;
