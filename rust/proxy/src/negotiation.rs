//! From the first byte of a local program to its request.

use std::mem;

use crate::http::{self, HeadScanner, Parsed};
use crate::socks5::{self, AUTHENTICATION_FAILURE, AUTHENTICATION_SUCCESS, UsernamePassword};
use crate::{Credentials, Error, Request, RequestKind};

/// The first byte of a TLS handshake record (RFC 8446 section 5.1).
const TLS_HANDSHAKE: u8 = 22;
/// A fatal handshake_failure alert (RFC 8446 section 6), so that a TLS client stops waiting and says why.
const TLS_ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 40];

/// The conversation with one local program, up to its request.
///
/// Between two calls it keeps at most [`MAX_HEAD`](crate::MAX_HEAD) bytes of a request that is not complete, and
/// behind [`Progress::Send`] also the rest of the input that came with it.
#[derive(Debug)]
pub struct Negotiation {
    credentials: Option<Credentials>,
    buffer: Vec<u8>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    FirstByte,
    Socks5Methods,
    Socks5Authentication,
    Socks5Request,
    Http(HeadScanner),
    Finished,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// Read more from the program.
    NeedMore,
    /// Write this to the program, then advance again, with nothing if nothing has arrived: more of its bytes may be waiting.
    Send(Vec<u8>),
    /// The negotiation is over: connect to the target.
    Request(Request),
    /// The negotiation is over: write the reply, which may be empty, and close the connection.
    ///
    /// A socket that is closed with unread bytes in it is reset, and the reply may be lost with them:
    /// shut down the sending side first, and read on for a moment.
    Reject {
        /// In the program's own protocol.
        reply: Vec<u8>,
        /// For the log.
        error: Error,
    },
}

impl Negotiation {
    /// Begins; programs must know the credentials if there are some.
    #[must_use]
    pub fn new(credentials: Option<Credentials>) -> Self {
        Self {
            credentials,
            buffer: Vec::new(),
            stage: Stage::FirstByte,
        }
    }

    /// Takes the bytes that have newly arrived. After the end it rejects with [`Error::Finished`] and no reply.
    pub fn advance(&mut self, input: &[u8]) -> Progress {
        if !matches!(self.stage, Stage::Finished) {
            self.buffer.extend_from_slice(input);
        }
        match self.step() {
            Ok(progress) => progress,
            Err(error) => self.reject(error),
        }
    }

    /// The program took too long: the rejection in its protocol.
    pub fn timed_out(&mut self) -> Progress {
        self.reject(Error::TimedOut)
    }

    /// The program closed its sending side: the rejection in its protocol.
    pub fn end_of_input(&mut self) -> Progress {
        self.reject(Error::EndOfInput)
    }

    fn step(&mut self) -> Result<Progress, Error> {
        if let Stage::FirstByte = self.stage {
            self.stage = match self.buffer.first() {
                None => return Ok(Progress::NeedMore),
                Some(&socks5::VERSION) => Stage::Socks5Methods,
                Some(&socks5::VERSION_4) => return Err(Error::Socks4),
                Some(&TLS_HANDSHAKE) => return Err(Error::Tls),
                Some(byte) if byte.is_ascii_alphabetic() => Stage::Http(HeadScanner::default()),
                Some(&byte) => return Err(Error::UnknownProtocol(byte)),
            };
        }
        match &mut self.stage {
            Stage::FirstByte => Ok(Progress::NeedMore),
            Stage::Socks5Methods => self.socks5_methods(),
            Stage::Socks5Authentication => self.socks5_authentication(),
            Stage::Socks5Request => self.socks5_request(),
            Stage::Http(scanner) => match scanner.scan(&self.buffer)? {
                Some(length) => self.http_request(length),
                None => Ok(Progress::NeedMore),
            },
            Stage::Finished => Err(Error::Finished),
        }
    }

    fn socks5_methods(&mut self) -> Result<Progress, Error> {
        let Some((methods, length)) = socks5::methods(&self.buffer) else {
            return Ok(Progress::NeedMore);
        };
        let method = if self.credentials.is_none() && methods.contains(&socks5::NO_AUTHENTICATION) {
            socks5::NO_AUTHENTICATION
        } else if methods.contains(&socks5::USERNAME_PASSWORD) {
            // Without credentials any pair will do: some programs insist on sending one.
            socks5::USERNAME_PASSWORD
        } else {
            return Err(Error::NoAcceptableMethod {
                credentials_required: self.credentials.is_some(),
            });
        };
        self.buffer.drain(..length);
        self.stage = if method == socks5::USERNAME_PASSWORD {
            Stage::Socks5Authentication
        } else {
            Stage::Socks5Request
        };
        Ok(Progress::Send(vec![socks5::VERSION, method]))
    }

    fn socks5_authentication(&mut self) -> Result<Progress, Error> {
        let Some((pair, length)) = UsernamePassword::parse(&self.buffer)? else {
            return Ok(Progress::NeedMore);
        };
        let known = match &self.credentials {
            Some(credentials) => credentials.matches(pair.username, pair.password),
            None => true,
        };
        if !known {
            return Err(Error::AuthenticationFailed);
        }
        self.buffer.drain(..length);
        self.stage = Stage::Socks5Request;
        Ok(Progress::Send(AUTHENTICATION_SUCCESS.to_vec()))
    }

    fn socks5_request(&mut self) -> Result<Progress, Error> {
        let Some((target, length)) = socks5::request(&self.buffer)? else {
            return Ok(Progress::NeedMore);
        };
        let mut early = self.finish();
        early.drain(..length);
        let kind = RequestKind::Socks5;
        Ok(Progress::Request(Request {
            target,
            kind,
            early,
            exchange: None,
            bodiless_answer: false,
        }))
    }

    fn http_request(&mut self, length: usize) -> Result<Progress, Error> {
        let (head, rest) = self.buffer.split_at(length);
        let request = match http::parse(head, self.credentials.as_ref())? {
            Parsed::Connect(target) => {
                let kind = RequestKind::HttpConnect;
                Request {
                    target,
                    kind,
                    early: rest.to_vec(),
                    exchange: None,
                    bodiless_answer: false,
                }
            }
            Parsed::Forward {
                target,
                head: mut early,
                mut exchange,
                bodiless_answer,
            } => {
                let belonging = exchange.accept_request(rest)?;
                let (belonging, behind) = rest.split_at(belonging);
                early.extend_from_slice(belonging);
                exchange.hold(behind);
                Request {
                    target,
                    kind: RequestKind::HttpForward,
                    early,
                    exchange: Some(Box::new(exchange)),
                    bodiless_answer,
                }
            }
        };
        self.finish();
        Ok(Progress::Request(request))
    }

    fn reject(&mut self, error: Error) -> Progress {
        let reply = match self.stage {
            Stage::FirstByte => match error {
                Error::Socks4 => socks5::SOCKS4_REJECTED.to_vec(),
                Error::Tls => TLS_ALERT.to_vec(),
                _ => Vec::new(),
            },
            Stage::Socks5Methods => vec![socks5::VERSION, socks5::NO_ACCEPTABLE_METHODS],
            Stage::Socks5Authentication => AUTHENTICATION_FAILURE.to_vec(),
            Stage::Socks5Request => socks5::reply(match error {
                Error::CommandNotSupported(_) => socks5::COMMAND_NOT_SUPPORTED,
                Error::AddressTypeNotSupported(_) => socks5::ADDRESS_TYPE_NOT_SUPPORTED,
                _ => socks5::GENERAL_FAILURE,
            }),
            Stage::Http(_) => http::rejection(&error, self.buffer.starts_with(b"HEAD ")),
            Stage::Finished => {
                return Progress::Reject {
                    reply: Vec::new(),
                    error: Error::Finished,
                };
            }
        };
        self.finish();
        Progress::Reject { reply, error }
    }

    /// Ends the negotiation and gives up the buffer.
    fn finish(&mut self) -> Vec<u8> {
        self.stage = Stage::Finished;
        mem::take(&mut self.buffer)
    }
}
