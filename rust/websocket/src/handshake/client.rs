use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;

use super::template::Values;
use super::{RequestTemplate, accept_key, list_holds};

/// The longest response head that is read, interim responses included.
pub const MAX_HEAD: usize = 64 * 1024;

/// How much of the body of a refusal is kept: enough of an error page to tell whose it is.
pub const MAX_REFUSAL_BODY: usize = 1024;

/// How much of that body is read as it came, with the borders of chunks, however small these are.
const MAX_RAW_BODY: usize = 4 * MAX_REFUSAL_BODY;

/// More fields than any server sends; httparse wants to know.
const MAX_FIELDS: usize = 256;

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
    fields: Fields,
}

/// An answer other than 101: a decoy page, a redirect, an error of the server or of something before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The status code.
    pub status: u16,
    /// The text beside it, often empty.
    pub reason: String,
    /// The beginning of the body, at most [`MAX_REFUSAL_BODY`] bytes of it.
    pub body: String,
    fields: Fields,
}

/// Header fields, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Fields(Vec<(String, Vec<u8>)>);

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
    #[error("the head of the response is longer than 64 KiB")]
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
            let Some(len) = self.take_head(input.get(taken..).unwrap_or_default())? else {
                return Ok(None);
            };
            taken += len;
            let head = std::mem::take(&mut self.head);
            self.searched = 0;

            let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
            let mut response = httparse::Response::new(&mut fields);
            // A firewall or CDN may put fields in that break RFC 9110. Browsers pass over them.
            let parsed = httparse::ParserConfig::default()
                .ignore_invalid_headers_in_responses(true)
                .parse_response(&mut response, &head);
            match parsed {
                Ok(httparse::Status::Complete(_)) => {}
                Ok(httparse::Status::Partial) => {
                    return Err(HandshakeError::Malformed("incomplete head".to_owned()));
                }
                Err(error) => return Err(HandshakeError::Malformed(error.to_string())),
            }
            match response.code {
                Some(101) if response.version == Some(1) => {
                    return Ok(Some((taken, self.accept(response.headers)?)));
                }
                Some(101) => return Err(HandshakeError::NotHttp(excerpt(&head))),
                // RFC 9110 section 15.2: interim responses are passed over.
                Some(100..=199) => self.interim += head.len(),
                _ => {
                    let mut refusal = PendingRefusal::new(&response);
                    let result = refusal.receive(input.get(taken..).unwrap_or_default());
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
        self.head.extend_from_slice(first(input, room));

        const START: &[u8] = b"HTTP/1.";
        if !START.starts_with(first(&self.head, START.len())) {
            return Err(HandshakeError::NotHttp(excerpt(&self.head)));
        }
        while let Some(newline) = self
            .head
            .iter()
            .skip(self.searched)
            .position(|&byte| byte == b'\n')
        {
            let next = self.searched + newline + 1;
            let end = match self.head.get(next..).unwrap_or_default() {
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
            fields: Fields::new(headers),
        })
    }
}

impl Response {
    /// The value of the first field of that name, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.fields.get(name)
    }
}

impl Refusal {
    /// The value of the first field of that name, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.fields.get(name)
    }

    /// Where a redirect leads.
    pub fn location(&self) -> Option<&str> {
        self.header("Location")
    }
}

impl Fields {
    fn new(headers: &[httparse::Header<'_>]) -> Self {
        let owned =
            |header: &httparse::Header<'_>| (header.name.to_owned(), header.value.to_owned());
        Self(headers.iter().map(owned).collect())
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(field, _)| field.eq_ignore_ascii_case(name))
            .and_then(|(_, value)| str::from_utf8(value).ok())
            .map(str::trim_ascii)
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
                body: String::new(),
                fields: Fields::new(response.headers),
            },
            body: Vec::new(),
            framing,
        }
    }

    /// An error once enough of the body is there.
    fn receive(&mut self, input: &[u8]) -> Result<(), HandshakeError> {
        let room = MAX_RAW_BODY - self.body.len();
        self.body.extend_from_slice(first(input, room));
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
                let chunk = raw.get(start..).unwrap_or_default();
                let size = usize::try_from(size).unwrap_or(usize::MAX);
                content.extend_from_slice(first(chunk, size));
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
    first(bytes, 24).escape_ascii().to_string()
}

/// The first bytes, at most `most`.
fn first(bytes: &[u8], most: usize) -> &[u8] {
    bytes.get(..most).unwrap_or(bytes)
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "status {}", self.status)?;
        if !self.reason.is_empty() {
            write!(f, " {}", self.reason.escape_debug())?;
        }
        if let Some(location) = self.location() {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The key of RFC 6455 section 1.3, and its answer.
    const KEY: &[u8; 16] = b"the sample nonce";
    const ACCEPT: &str = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";

    fn handshake(token: Option<&str>) -> ClientHandshake {
        let request = Request {
            host: "example.org:8443",
            path: "/ws?x=1",
            token,
        };
        ClientHandshake::new(&RequestTemplate::default(), request, *KEY).unwrap()
    }

    /// A 101 with `more` fields.
    fn switch(more: &str) -> String {
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: keep-alive, upgrade\r\n{ACCEPT}{more}\r\n"
        )
    }

    fn refused(result: Result<Option<(usize, Response)>, HandshakeError>) -> Refusal {
        match result {
            Err(HandshakeError::Refused(refusal)) => *refusal,
            other => unreachable!("no refusal: {other:?}"),
        }
    }

    #[test]
    fn the_request_without_a_browser_s_template_is_the_example_s() {
        assert_eq!(
            str::from_utf8(handshake(Some("s3cret")).request()).unwrap(),
            "GET /ws?x=1 HTTP/1.1\r\n\
             Host: example.org:8443\r\n\
             Upgrade: websocket\r\n\
             Connection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Origin: https://example.org:8443\r\n\
             Sec-WebSocket-Protocol: s3cret\r\n\
             Sec-WebSocket-Version: 13\r\n\
             \r\n"
        );
    }

    #[test]
    fn without_a_token_no_protocol_is_offered() {
        let handshake = handshake(None);
        let request = str::from_utf8(handshake.request()).unwrap();
        assert!(!request.contains("Sec-WebSocket-Protocol"));
    }

    #[test]
    fn values_that_would_break_the_request_apart_are_refused() {
        let good = Request {
            host: "[2001:db8::1]:443",
            path: "/",
            token: Some("a/b=="),
        };
        let new =
            |request| ClientHandshake::new(&RequestTemplate::default(), request, *KEY).map(|_| ());
        assert_eq!(new(good), Ok(()));
        for host in ["", "a b", "a\r\nX: y", "a/b", "user@a", "bücher.example"] {
            assert_eq!(new(Request { host, ..good }), Err(RequestError::Host));
        }
        for path in ["", "ws", "/a b", "/a\r\nX: y", "/a#b", "/é", "/a\0"] {
            assert_eq!(new(Request { path, ..good }), Err(RequestError::Path));
        }
        for token in ["", "a b", "a,b", "a\r\nX: y", "é", "a\x7f"] {
            let token = Some(token);
            assert_eq!(new(Request { token, ..good }), Err(RequestError::Token));
        }
    }

    #[test]
    fn the_first_frame_behind_the_response_is_not_swallowed() {
        let head = switch("Sec-WebSocket-Protocol: s3cret\r\nX-Announce: 1 udp\r\n");
        let input = format!("{head}\u{2}\u{1}a");
        let (taken, response) = handshake(Some("s3cret"))
            .receive(input.as_bytes())
            .unwrap()
            .unwrap();
        assert_eq!(taken, head.len());
        assert_eq!(response.protocol.as_deref(), Some("s3cret"));
        assert_eq!(response.header("x-announce"), Some("1 udp"));
        assert_eq!(response.header("x-other"), None);
    }

    #[test]
    fn a_response_one_byte_at_a_time_is_the_same_response() {
        let head = switch("");
        let mut handshake = handshake(None);
        let (last, first) = head.as_bytes().split_last().unwrap();
        for byte in first {
            assert_eq!(handshake.receive(&[*byte]), Ok(None));
        }
        let (taken, response) = handshake.receive(&[*last, 0x82]).unwrap().unwrap();
        assert_eq!((taken, response.protocol), (1, None));
    }

    #[test]
    fn a_token_that_is_not_echoed_is_not_confirmed() {
        for more in [
            "",
            "Sec-WebSocket-Protocol:\r\n",
            "Sec-WebSocket-Protocol: other\r\n",
            "Sec-WebSocket-Protocol: S3CRET\r\n",
            "Sec-WebSocket-Protocol: s3cret, other\r\n",
            "Sec-WebSocket-Protocol: s3cret\r\nSec-WebSocket-Protocol: other\r\n",
        ] {
            assert_eq!(
                handshake(Some("s3cret")).receive(switch(more).as_bytes()),
                Err(HandshakeError::ProtocolNotConfirmed),
                "{more}"
            );
        }
    }

    #[test]
    fn a_server_that_takes_the_token_in_the_path_may_echo_an_empty_protocol() {
        for more in [
            "",
            "Sec-WebSocket-Protocol:\r\n",
            "Sec-WebSocket-Protocol: \r\n",
        ] {
            let result = handshake(None).receive(switch(more).as_bytes());
            assert_eq!(result.unwrap().unwrap().1.protocol, None, "{more:?}");
        }
        assert_eq!(
            handshake(None).receive(switch("Sec-WebSocket-Protocol: x\r\n").as_bytes()),
            Err(HandshakeError::ProtocolNotOffered)
        );
    }

    #[test]
    fn a_101_that_does_not_answer_our_request_is_refused() {
        let good = switch("");
        for (part, instead, error) in [
            ("Upgrade: WebSocket\r\n", "", HandshakeError::Upgrade),
            ("WebSocket\r\n", "h2c\r\n", HandshakeError::Upgrade),
            (
                "Connection: keep-alive, upgrade\r\n",
                "",
                HandshakeError::Connection,
            ),
            (", upgrade", "", HandshakeError::Connection),
            (ACCEPT, "", HandshakeError::Accept),
            ("s3pP", "S3pP", HandshakeError::Accept),
            (ACCEPT, &ACCEPT.repeat(2), HandshakeError::Accept),
            (
                ACCEPT,
                &format!("{ACCEPT}Sec-WebSocket-Extensions: permessage-deflate\r\n"),
                HandshakeError::Extension,
            ),
        ] {
            let response = good.replacen(part, instead, 1);
            assert_eq!(
                handshake(None).receive(response.as_bytes()),
                Err(error),
                "{response}"
            );
        }
        let old = good.replacen("HTTP/1.1", "HTTP/1.0", 1);
        assert!(matches!(
            handshake(None).receive(old.as_bytes()),
            Err(HandshakeError::NotHttp(_))
        ));
    }

    #[test]
    fn a_decoy_page_is_a_refusal_with_the_beginning_of_the_page() {
        let mut handshake = handshake(Some("wrong"));
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n<html>";
        assert_eq!(handshake.receive(head), Ok(None));
        let refusal = refused(handshake.receive(&[b'x'; 4994]));
        assert_eq!((refusal.status, &refusal.reason[..]), (200, "OK"));
        assert_eq!(
            refusal.body,
            format!("<html>{}", "x".repeat(MAX_REFUSAL_BODY - 6))
        );
        assert_eq!(refusal.to_string(), "status 200 OK");
    }

    #[test]
    fn a_short_body_is_waited_for_and_no_longer() {
        let mut handshake = handshake(None);
        let head = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\nsorr";
        assert_eq!(handshake.receive(head), Ok(None));
        assert_eq!(refused(handshake.receive(b"y")).body, "sorry");
    }

    #[test]
    fn a_refusal_without_a_body_is_reported_at_once() {
        for response in [
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 204 \r\n\r\n",
            "HTTP/1.1 500 \r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ] {
            let refusal = refused(handshake(None).receive(response.as_bytes()));
            assert_eq!(refusal.body, "", "{response}");
        }
    }

    #[test]
    fn the_body_of_a_refusal_is_shown_without_the_borders_of_its_chunks() {
        let mut handshake = handshake(None);
        let response = b"HTTP/1.1 502 Bad Gateway\r\nTransfer-Encoding: chunked\r\n\r\n\
            6\r\nerror \r\n9;x=y\r\ncode: 521\r\n0\r\n\r\n";
        let (first, last_chunk) = response.split_at(response.len() - 5);
        for byte in first.chunks(1) {
            assert_eq!(handshake.receive(byte), Ok(None));
        }
        let refusal = refused(handshake.receive(last_chunk));
        assert_eq!(refusal.body, "error code: 521");
    }

    #[test]
    fn a_refusal_that_never_ends_is_told_when_time_is_up() {
        let mut handshake = handshake(None);
        assert_eq!(
            handshake.receive(b"HTTP/1.0 503 Busy\r\n\r\nlater"),
            Ok(None)
        );
        assert_eq!(refused(Err(handshake.end())).body, "later");
    }

    #[test]
    fn a_redirect_says_where_it_leads() {
        let response =
            b"HTTP/1.1 301 Moved\r\nLocation: https://www.example.org/ws\r\nContent-Length: 0\r\n\r\n";
        let refusal = refused(handshake(None).receive(response));
        assert_eq!(
            refusal.to_string(),
            "status 301 Moved, redirected to https://www.example.org/ws"
        );
    }

    #[test]
    fn a_refusal_keeps_what_a_cdn_says_of_itself() {
        let response = b"HTTP/1.1 403 Forbidden\r\nCF-Mitigated: challenge\r\nCF-Ray: x-AMS\r\nContent-Length: 0\r\n\r\n";
        let refusal = refused(handshake(None).receive(response));
        assert_eq!(refusal.header("cf-mitigated"), Some("challenge"));
        assert_eq!(refusal.header("cf-ray"), Some("x-AMS"));
        assert_eq!(refusal.header("retry-after"), None);
    }

    #[test]
    fn fields_that_cannot_be_read_are_passed_over() {
        let odd = "Set-Cookie: a=b\u{1}c\r\nX: \u{7f}\r\nno colon\r\n: no name\r\nBad Name: x\r\n";
        for more in [
            odd.to_owned(),
            format!("{odd}X-Announce: 1\r\n"),
            "a: b\r\n".repeat(MAX_FIELDS - 3),
            format!("Set-Cookie: {}\r\n", "c".repeat(60_000)),
        ] {
            let result = handshake(None).receive(switch(&more).as_bytes());
            assert!(matches!(result, Ok(Some(_))), "{result:?}");
        }
        let refusal = format!("HTTP/1.1 403 Forbidden\r\n{odd}Content-Length: 0\r\n\r\n");
        assert_eq!(
            refused(handshake(None).receive(refusal.as_bytes())).status,
            403
        );
    }

    #[test]
    fn a_field_that_counts_is_not_passed_over_when_it_cannot_be_read() {
        let response = switch("").replacen(ACCEPT, &ACCEPT.replacen(": ", ": \u{1}", 1), 1);
        assert_eq!(
            handshake(None).receive(response.as_bytes()),
            Err(HandshakeError::Accept)
        );
    }

    #[test]
    fn early_hints_before_the_response_are_passed_over() {
        let hints = "HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n";
        let input = format!("{hints}{hints}{}", switch(""));
        let (taken, _) = handshake(None).receive(input.as_bytes()).unwrap().unwrap();
        assert_eq!(taken, input.len());

        let endless = hints.repeat(MAX_HEAD / hints.len() + 1);
        assert_eq!(
            handshake(None).receive(endless.as_bytes()),
            Err(HandshakeError::HeadTooLong)
        );
    }

    #[test]
    fn an_answer_that_is_not_http_is_named_at_its_first_byte() {
        // The SETTINGS of HTTP/2, a TLS alert, another protocol's banner.
        for answer in [
            &b"\0\0\x12\x04\0"[..],
            b"\x15\x03\x03",
            b"SSH-2.0-",
            b"HTTP/2 200",
        ] {
            assert!(matches!(
                handshake(None).receive(answer),
                Err(HandshakeError::NotHttp(_))
            ));
        }
    }

    #[test]
    fn a_malformed_head_is_named() {
        for response in [
            "HTTP/1.1 abc\r\n\r\n",
            "HTTP/1.1 10\r\n\r\n",
            &format!("HTTP/1.1 101 X\r\n{}\r\n", "a: b\r\n".repeat(300)),
        ] {
            assert!(matches!(
                handshake(None).receive(response.as_bytes()),
                Err(HandshakeError::Malformed(_))
            ));
        }
    }

    #[test]
    fn a_head_without_end_does_not_fill_the_memory() {
        let mut handshake = handshake(None);
        assert_eq!(handshake.receive(b"HTTP/1.1 101 Switching"), Ok(None));
        assert_eq!(handshake.receive(&[b'x'; 64_000]), Ok(None));
        assert_eq!(
            handshake.receive(&[b'x'; 16_000]),
            Err(HandshakeError::HeadTooLong)
        );
    }

    #[test]
    fn a_connection_that_ends_early_says_how_much_had_come() {
        let mut handshake = handshake(None);
        assert_eq!(handshake.end(), HandshakeError::Closed { received: 0 });
        assert_eq!(handshake.receive(b"HTTP/1.1 1"), Ok(None));
        assert_eq!(handshake.end(), HandshakeError::Closed { received: 10 });
    }

    #[test]
    fn the_token_is_not_in_the_debug_output() {
        let request = Request {
            host: "example.org",
            path: "/s3cret",
            token: Some("s3cret"),
        };
        assert!(!format!("{request:?} {:?}", handshake(Some("s3cret"))).contains("s3cret"));
    }

    /// Feeds `parts` one after the other: the outcome, and how many bytes were taken in all.
    fn outcome(parts: &[&[u8]]) -> (usize, Option<Result<Response, HandshakeError>>) {
        let mut handshake = handshake(Some("t"));
        let mut taken = 0;
        for part in parts {
            match handshake.receive(part) {
                Ok(None) => taken += part.len(),
                Ok(Some((len, response))) => return (taken + len, Some(Ok(response))),
                Err(error) => return (0, Some(Err(error))),
            }
        }
        (taken, None)
    }

    /// Bytes that come near a response.
    fn responses() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            4 => prop::sample::select(vec![
                "HTTP/1.1 101 Switching Protocols\r\n",
                "HTTP/1.1 200 OK\r\n",
                "HTTP/1.0 404 Not Found\n",
                "HTTP/1.1 103 Early Hints\r\n",
                "Upgrade: websocket\r\n",
                "Connection: Upgrade\r\n",
                ACCEPT,
                "Sec-WebSocket-Protocol: t\r\n",
                "Content-Length: 3\r\n",
                "Set-Cookie: a\u{1}\r\n",
                "no colon\r\n",
                "Transfer-Encoding: chunked\r\n",
                "3\r\nabc\r\n",
                "0\r\n\r\n",
                "\r\n",
                "\n",
                "\r",
                " ",
            ])
            .prop_map(|text| text.as_bytes().to_vec()),
            1 => prop::collection::vec(any::<u8>(), 0..20),
        ];
        prop::collection::vec(piece, 0..14).prop_map(|pieces| pieces.concat())
    }

    fn valid_response() -> impl Strategy<Value = Vec<u8>> {
        Just(
            [
                switch("Sec-WebSocket-Protocol: t\r\n").as_bytes(),
                b"\x82\0",
            ]
            .concat(),
        )
    }

    proptest! {
        #[test]
        fn the_outcome_does_not_depend_on_how_the_response_is_split(
            bytes in prop_oneof![3 => responses(), 1 => valid_response()],
            splits in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let mut splits: Vec<usize> =
                splits.iter().map(|index| index.index(bytes.len() + 1)).collect();
            splits.sort_unstable();
            let mut parts = Vec::new();
            let mut start = 0;
            for split in splits {
                parts.push(&bytes[start..split]);
                start = split;
            }
            parts.push(&bytes[start..]);
            let (whole, split) = (outcome(&[&bytes]), outcome(&parts));
            match (whole, split) {
                // What is excerpted of garbage, or of an endless body, depends on what has come.
                (
                    (_, Some(Err(HandshakeError::NotHttp(_)))),
                    (_, Some(Err(HandshakeError::NotHttp(_)))),
                ) => {}
                (
                    (_, Some(Err(HandshakeError::Refused(whole)))),
                    (_, Some(Err(HandshakeError::Refused(split)))),
                ) => prop_assert_eq!(whole.status, split.status),
                (whole, split) => prop_assert_eq!(whole, split),
            }
        }
    }
}
