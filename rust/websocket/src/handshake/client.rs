use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;

use super::template::Values;
use super::{RequestTemplate, accept_key, list_holds};

/// The longest response head that is read, interim responses included.
pub const MAX_HEAD: usize = 16 * 1024;

/// How much of the body of a refusal is kept.
pub const MAX_REFUSAL_BODY: usize = 256;

/// How much of that body is read as it came, with the borders of chunks, however small these are.
const MAX_RAW_BODY: usize = 8 * MAX_REFUSAL_BODY;

/// More fields than any server sends; httparse wants to know.
const MAX_FIELDS: usize = 128;

/// What the upgrade request asks for.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// The Host value: the server's name, with the port unless it is the scheme's own.
    pub host: &'a str,
    /// Path and query, from the first slash on, percent-encoded.
    pub path: &'a str,
    /// The only Sec-WebSocket-Protocol to offer.
    pub token: Option<&'a str>,
}

/// A request that cannot be written.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum RequestError {
    /// Empty, or with characters that neither a name nor an address has.
    #[error(
        "invalid host: a name (internationalised ones in their xn-- form) or an address, and a port"
    )]
    Host,
    /// Not a slash followed by printable ASCII.
    #[error(
        "invalid path: it must begin with a slash and hold printable ASCII only, without # (percent-encode the rest)"
    )]
    Path,
    /// Empty, not printable ASCII, or a list.
    #[error("invalid token: it must be printable ASCII without spaces and commas")]
    Token,
}

/// The client's side of one opening handshake: the request to send, then the response's bytes as they come.
///
/// Nothing must be sent between the request and the response: some servers drop a client that does.
pub struct ClientHandshake {
    request: Vec<u8>,
    accept: String,
    token: Option<String>,
    head: Vec<u8>,
    /// Where the search for the end of the head goes on.
    searched: usize,
    /// What interim responses took of [`MAX_HEAD`].
    interim: usize,
    refusal: Option<PendingRefusal>,
}

/// The server has switched to WebSocket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The Sec-WebSocket-Protocol, which is the token that was sent; `None` where none was.
    pub protocol: Option<String>,
    fields: Vec<(String, Vec<u8>)>,
}

/// An answer other than 101: a decoy page, a redirect, an error of the server or of something before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The status code.
    pub status: u16,
    /// The text beside it, often empty.
    pub reason: String,
    /// Where a redirect leads.
    pub location: Option<String>,
    /// The beginning of the body, at most [`MAX_REFUSAL_BODY`] bytes of it.
    pub body: String,
}

/// Why an opening handshake failed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The server answered, but not with a switch of protocols.
    #[error("the server does not switch to WebSocket: {0}")]
    Refused(Box<Refusal>),
    /// What came is not HTTP/1.1.
    #[error("the answer is not HTTP/1.1; it begins with \"{0}\"")]
    NotHttp(String),
    /// The head of the response cannot be parsed.
    #[error("malformed response: {0}")]
    Malformed(String),
    /// The head of the response is longer than [`MAX_HEAD`].
    #[error("the head of the response is longer than 16 KiB")]
    HeadTooLong,
    /// A 101 without `Upgrade: websocket`.
    #[error("the server switches protocols, but not to WebSocket")]
    Upgrade,
    /// A 101 without `Connection: Upgrade`.
    #[error("the response lacks `Connection: Upgrade`")]
    Connection,
    /// The Sec-WebSocket-Accept does not answer our key: a cached response, or something that is no WebSocket server.
    #[error("the response does not answer our Sec-WebSocket-Key")]
    Accept,
    /// An extension that was not offered.
    #[error("the server chose an extension that was not offered")]
    Extension,
    /// The token was sent, and the response does not carry it.
    #[error("the server did not confirm the token")]
    ProtocolNotConfirmed,
    /// The server chose a protocol, and none was offered.
    #[error("the server chose a protocol that was not offered")]
    ProtocolNotOffered,
    /// The connection ended before the response did.
    #[error("the connection was closed after {received} bytes of the response")]
    Closed {
        /// How much of the response had come.
        received: usize,
    },
}

struct PendingRefusal {
    refusal: Refusal,
    body: Vec<u8>,
    framing: Framing,
}

/// RFC 9112 section 6.3.
#[derive(Clone, Copy)]
enum Framing {
    Length(u64),
    Chunked,
    UntilClose,
}

impl ClientHandshake {
    /// A handshake with a fresh `key` of 16 random bytes.
    ///
    /// # Errors
    /// [`RequestError`] for values that would break the request apart.
    pub fn new(
        template: &RequestTemplate,
        request: Request<'_>,
        key: [u8; 16],
    ) -> Result<Self, RequestError> {
        request.check()?;
        let key = STANDARD.encode(key);
        let mut bytes = Vec::with_capacity(1024);
        bytes.extend_from_slice(b"GET ");
        bytes.extend_from_slice(request.path.as_bytes());
        bytes.extend_from_slice(b" HTTP/1.1\r\n");
        template.write(
            &mut bytes,
            Values {
                host: request.host,
                key: &key,
                protocol: request.token,
            },
        );
        bytes.extend_from_slice(b"\r\n");
        Ok(Self {
            request: bytes,
            accept: accept_key(&key),
            token: request.token.map(str::to_owned),
            head: Vec::new(),
            searched: 0,
            interim: 0,
            refusal: None,
        })
    }

    /// The request, to be sent whole.
    pub fn request(&self) -> &[u8] {
        &self.request
    }

    /// Takes the next bytes of the response. `None`: all were taken, and more are needed. Otherwise how many belonged
    /// to the response (what follows is the first frame) and the response.
    ///
    /// A refusal is reported when the beginning of its body is there, too; if the connection ends or time runs out
    /// before that, [`end`](Self::end) tells what is known. After the response, or an error, the handshake is over.
    ///
    /// # Errors
    /// [`HandshakeError`], after which the connection is of no use.
    pub fn receive(&mut self, input: &[u8]) -> Result<Option<(usize, Response)>, HandshakeError> {
        if let Some(refusal) = &mut self.refusal {
            return refusal.receive(input).map(|()| None);
        }
        let mut taken = 0;
        loop {
            let Some(len) = self.take_head(&input[taken..])? else {
                return Ok(None);
            };
            taken += len;
            let head = std::mem::take(&mut self.head);
            self.searched = 0;

            let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
            let mut response = httparse::Response::new(&mut fields);
            match response.parse(&head) {
                Ok(httparse::Status::Complete(_)) => {}
                Ok(httparse::Status::Partial) => {
                    return Err(HandshakeError::Malformed("incomplete head".to_owned()));
                }
                Err(error) => return Err(HandshakeError::Malformed(error.to_string())),
            }
            if response.version != Some(1) {
                return Err(HandshakeError::NotHttp(excerpt(&head)));
            }
            match response.code {
                Some(101) => return Ok(Some((taken, self.accept(response.headers)?))),
                // RFC 9110 section 15.2: interim responses are passed over.
                Some(100..=199) => self.interim += head.len(),
                _ => {
                    let mut refusal = PendingRefusal::new(&response);
                    let result = refusal.receive(&input[taken..]);
                    self.refusal = Some(refusal);
                    return result.map(|()| None);
                }
            }
        }
    }

    /// The reason for giving up, when the connection has ended or the time is up before [`receive`](Self::receive) said more.
    pub fn end(&self) -> HandshakeError {
        match &self.refusal {
            Some(refusal) => refusal.error(),
            None => HandshakeError::Closed {
                received: self.head.len(),
            },
        }
    }

    /// Adds `input` to the head: how many bytes of it belong to the head, once that is whole.
    fn take_head(&mut self, input: &[u8]) -> Result<Option<usize>, HandshakeError> {
        let before = self.head.len();
        let room = MAX_HEAD - self.interim - before;
        self.head.extend_from_slice(&input[..input.len().min(room)]);

        const START: &[u8] = b"HTTP/1.";
        if !START.starts_with(&self.head[..self.head.len().min(START.len())]) {
            return Err(HandshakeError::NotHttp(excerpt(&self.head)));
        }
        while let Some(newline) = self.head[self.searched..]
            .iter()
            .position(|&byte| byte == b'\n')
        {
            let next = self.searched + newline + 1;
            let end = match &self.head[next..] {
                [b'\n', ..] => next + 1,
                [b'\r', b'\n', ..] => next + 2,
                // The next bytes decide: look at this line end again.
                [] | [b'\r'] => {
                    self.searched = next - 1;
                    break;
                }
                _ => {
                    self.searched = next;
                    continue;
                }
            };
            self.head.truncate(end);
            return Ok(Some(end - before));
        }
        if self.head.len() == MAX_HEAD - self.interim {
            return Err(HandshakeError::HeadTooLong);
        }
        Ok(None)
    }

    /// RFC 6455 section 4.1: what a client checks in a 101.
    fn accept(&self, headers: &[httparse::Header<'_>]) -> Result<Response, HandshakeError> {
        let values = |name: &'static str| {
            headers
                .iter()
                .filter(move |header| header.name.eq_ignore_ascii_case(name))
                .map(|header| header.value.trim_ascii())
        };
        if !values("Upgrade").any(|value| value.eq_ignore_ascii_case(b"websocket")) {
            return Err(HandshakeError::Upgrade);
        }
        if !values("Connection").any(|value| list_holds(value, "upgrade")) {
            return Err(HandshakeError::Connection);
        }
        if !values("Sec-WebSocket-Accept").eq([self.accept.as_bytes()]) {
            return Err(HandshakeError::Accept);
        }
        if values("Sec-WebSocket-Extensions").any(|value| !value.is_empty()) {
            return Err(HandshakeError::Extension);
        }
        // Servers that take the token in the path echo an empty value, or none at all.
        let protocols = || values("Sec-WebSocket-Protocol").filter(|value| !value.is_empty());
        match &self.token {
            Some(token) if !protocols().eq([token.as_bytes()]) => {
                return Err(HandshakeError::ProtocolNotConfirmed);
            }
            None if protocols().next().is_some() => {
                return Err(HandshakeError::ProtocolNotOffered);
            }
            _ => {}
        }
        Ok(Response {
            protocol: self.token.clone(),
            fields: headers
                .iter()
                .map(|header| (header.name.to_owned(), header.value.to_owned()))
                .collect(),
        })
    }
}

impl Response {
    /// The value of the first field of that name, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|(field, _)| field.eq_ignore_ascii_case(name))
            .and_then(|(_, value)| str::from_utf8(value).ok())
    }
}

impl Request<'_> {
    fn check(&self) -> Result<(), RequestError> {
        let host_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:[]".contains(&byte);
        if self.host.is_empty() || !self.host.bytes().all(host_byte) {
            return Err(RequestError::Host);
        }
        let path_byte = |byte: u8| byte.is_ascii_graphic() && byte != b'#';
        if !self.path.starts_with('/') || !self.path.bytes().all(path_byte) {
            return Err(RequestError::Path);
        }
        let token_byte = |byte: u8| byte.is_ascii_graphic() && byte != b',';
        match self.token {
            Some(token) if token.is_empty() || !token.bytes().all(token_byte) => {
                Err(RequestError::Token)
            }
            _ => Ok(()),
        }
    }
}

impl PendingRefusal {
    fn new(response: &httparse::Response<'_, '_>) -> Self {
        let value = |name: &str| {
            response
                .headers
                .iter()
                .find(|header| header.name.eq_ignore_ascii_case(name))
                .map(|header| String::from_utf8_lossy(header.value).trim().to_owned())
        };
        let status = response.code.unwrap_or_default();
        let framing = match (value("Transfer-Encoding"), value("Content-Length")) {
            _ if matches!(status, 204 | 304) => Framing::Length(0),
            (Some(coding), _) if list_holds(coding.as_bytes(), "chunked") => Framing::Chunked,
            (None, Some(length)) => length.parse().map_or(Framing::UntilClose, Framing::Length),
            _ => Framing::UntilClose,
        };
        Self {
            refusal: Refusal {
                status,
                reason: response.reason.unwrap_or_default().to_owned(),
                location: value("Location"),
                body: String::new(),
            },
            body: Vec::new(),
            framing,
        }
    }

    /// An error once enough of the body is there.
    fn receive(&mut self, input: &[u8]) -> Result<(), HandshakeError> {
        let room = MAX_RAW_BODY - self.body.len();
        self.body.extend_from_slice(&input[..input.len().min(room)]);
        if self.content().1 {
            Err(self.error())
        } else {
            Ok(())
        }
    }

    fn error(&self) -> HandshakeError {
        let (body, _) = self.content();
        HandshakeError::Refused(Box::new(Refusal {
            body: String::from_utf8_lossy(&body).into_owned(),
            ..self.refusal.clone()
        }))
    }

    /// The beginning of the body, and whether nothing more is to be waited for.
    fn content(&self) -> (Vec<u8>, bool) {
        let (mut content, end) = match self.framing {
            Framing::Length(length) => (self.body.clone(), self.body.len() as u64 >= length),
            Framing::Chunked => unchunk(&self.body),
            Framing::UntilClose => (self.body.clone(), false),
        };
        let enough = content.len() >= MAX_REFUSAL_BODY || self.body.len() >= MAX_RAW_BODY;
        content.truncate(MAX_REFUSAL_BODY);
        (content, end || enough)
    }
}

/// The content of a chunked body as far as it is there, and whether that is all (RFC 9112 section 7.1).
fn unchunk(mut raw: &[u8]) -> (Vec<u8>, bool) {
    let mut content = Vec::new();
    loop {
        match httparse::parse_chunk_size(raw) {
            Ok(httparse::Status::Complete((_, 0))) | Err(_) => return (content, true),
            Ok(httparse::Status::Partial) => return (content, false),
            Ok(httparse::Status::Complete((start, size))) => {
                let chunk = &raw[start..];
                let size = usize::try_from(size).unwrap_or(usize::MAX);
                content.extend_from_slice(&chunk[..size.min(chunk.len())]);
                // The chunk's own line end follows it.
                let Some(rest) = size.checked_add(2).and_then(|next| chunk.get(next..)) else {
                    return (content, false);
                };
                raw = rest;
            }
        }
    }
}

/// The first bytes of what came, printable.
fn excerpt(bytes: &[u8]) -> String {
    bytes[..bytes.len().min(24)].escape_ascii().to_string()
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "status {}", self.status)?;
        if !self.reason.is_empty() {
            write!(f, " {}", self.reason.escape_debug())?;
        }
        if let Some(location) = &self.location {
            write!(f, ", redirected to {}", location.escape_debug())?;
        }
        Ok(())
    }
}

// Both hold the token, which belongs in no log.

impl std::fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for ClientHandshake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientHandshake").finish_non_exhaustive()
    }
}
