//! HTTP/1 request heads (RFC 9112): CONNECT, and absolute-form requests rewritten for their target.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::body::Body;
use crate::{Credentials, Error, Exchange, Target, TargetError};

/// The longest HTTP request head, with its empty line, in bytes. Cookies and Kerberos tickets fill many KiB, and web
/// servers take as much.
pub const MAX_HEAD: usize = 32 * 1024;

/// More fields than any browser sends; the parser's table is on the stack.
const MAX_FIELDS: usize = 256;
/// As many as nearly all requests have: a small table costs less to set up.
const USUAL_FIELDS: usize = 32;

/// Fields that concern only this connection (RFC 9110 section 7.6.1, and the proxy's own of section 11.7).
/// Transfer-Encoding is not among them: the content goes through as it is.
const HOP_BY_HOP: [&str; 8] = [
    "Connection",
    "Proxy-Connection",
    "Keep-Alive",
    "TE",
    "Upgrade",
    "Proxy-Authenticate",
    "Proxy-Authentication-Info",
    "Proxy-Authorization",
];

/// Fields that a Connection field may not name: without them the target would read another request
/// than the one checked here.
const NEVER_HOP_BY_HOP: [&str; 3] = ["Host", "Content-Length", "Transfer-Encoding"];

/// For the person who opens the proxy port in a browser.
const NOT_A_WEB_PAGE: &str = "\
This is a proxy port of ech-workers, not a web page.

It works when you set it as the SOCKS5 or HTTP proxy of your browser or program,
with the address and port that you have just opened.";

/// Some programs leave the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Looks for the end of a head as its bytes arrive, each byte once.
///
/// Line ends are what parsers disagree on, so it is strict: CR LF alone ends a line, nothing is
/// folded, no control characters.
#[derive(Debug, Default)]
pub(crate) struct HeadScanner {
    scanned: usize,
    in_fields: bool,
}

impl HeadScanner {
    /// The length of the head with its empty line, once it is there. `bytes` begins where the head does.
    pub(crate) fn scan(&mut self, bytes: &[u8]) -> Result<Option<usize>, Error> {
        while let Some((seen, &[byte, ..])) = bytes.split_at_checked(self.scanned) {
            if self.scanned == MAX_HEAD {
                return Err(Error::HeadTooLarge);
            }
            check_byte(seen, byte)?;
            self.scanned += 1;
            if byte == b'\n' {
                let line = seen.strip_suffix(b"\r").unwrap_or(seen);
                if !self.in_fields {
                    check_request_line(line)?;
                    self.in_fields = true;
                } else if line.ends_with(b"\n") {
                    return Ok(Some(self.scanned));
                }
            }
        }
        Ok(None)
    }
}

/// Whether a byte may follow those seen.
fn check_byte(seen: &[u8], byte: u8) -> Result<(), Error> {
    let reason = match (seen.last(), byte) {
        (Some(b'\r'), b'\n') => return Ok(()),
        (Some(b'\r'), _) => "a bare carriage return",
        (_, b'\n') => "a line ends without a carriage return",
        (Some(b'\n'), b' ' | b'\t') => "a folded field line",
        (_, b'\t' | b'\r') => return Ok(()),
        (_, 0..0x20 | 0x7f) => "a control character",
        _ => return Ok(()),
    };
    Err(Error::MalformedRequest(reason))
}

/// What a head asks for.
#[derive(Debug)]
pub(crate) enum Parsed {
    Connect(Target),
    Forward {
        target: Target,
        /// The head for the target.
        head: Vec<u8>,
        exchange: Exchange,
        /// Whether the answer to it has no content (RFC 9110 section 9.3.2).
        bodiless_answer: bool,
    },
}

/// Parses a complete head.
pub(crate) fn parse(head: &[u8], credentials: Option<&Credentials>) -> Result<Parsed, Error> {
    let (line, rest) = request_line(head)?;
    let RequestLine {
        method,
        target: request_target,
        version,
    } = line;
    let mut usual = [httparse::EMPTY_HEADER; USUAL_FIELDS];
    let mut most;
    let mut parsed = httparse::parse_headers(rest, &mut usual);
    if parsed == Err(httparse::Error::TooManyHeaders) {
        most = [httparse::EMPTY_HEADER; MAX_FIELDS];
        parsed = httparse::parse_headers(rest, &mut most);
    }
    let fields = match parsed {
        Ok(httparse::Status::Complete((length, fields))) if length == rest.len() => Fields(fields),
        Ok(_) => {
            return Err(Error::MalformedRequest(
                "the head does not end where it should",
            ));
        }
        Err(error) => return Err(syntax_error(error)),
    };

    if method != "CONNECT" && (request_target.starts_with(b"/") || request_target == b"*") {
        return Err(Error::NotAProxyRequest);
    }
    if let Some(credentials) = credentials {
        authenticate(&fields, credentials)?;
    }
    if fields.all("Host").count() > 1 {
        return Err(Error::MalformedRequest("more than one Host field"));
    }
    let content = content(&fields, version)?;

    if method == "CONNECT" {
        // RFC 9110 section 9.3.6: a CONNECT request has no content; what follows goes through the tunnel.
        if content != Content::Length(0) {
            return Err(Error::MalformedRequest("a CONNECT request with content"));
        }
        return Ok(Parsed::Connect(as_text(request_target)?.parse()?));
    }
    let AbsoluteForm {
        target,
        origin_form,
        user_information,
    } = absolute_form(method, request_target)?;
    let options = connection_options(&fields)?;
    let upgrade = method == "GET"
        && version == 1
        && content == Content::Length(0)
        && upgrades_to_websocket(&fields, &options);

    let mut forwarded = Vec::with_capacity(head.len() + 32);
    for part in [
        method.as_bytes(),
        b" ",
        &origin_form,
        b" HTTP/1.",
        if version == 0 { b"0" } else { b"1" },
        b"\r\n",
    ] {
        forwarded.extend_from_slice(part);
    }
    // RFC 9112 section 3.2.2: the received Host is ignored, the one of the request target takes its place.
    write_field(&mut forwarded, "Host", host_field(&target).as_bytes());
    for field in fields.0 {
        if !is_any(field.name, &HOP_BY_HOP)
            && !is_any(field.name, &options)
            && !field.name.eq_ignore_ascii_case("Host")
        {
            write_field(&mut forwarded, field.name, field.value);
        }
    }
    if let Some(user_information) = user_information
        && fields.all("Authorization").next().is_none()
    {
        let value = format!("Basic {}", BASE64.encode(user_pass(user_information)));
        write_field(&mut forwarded, "Authorization", value.as_bytes());
    }
    if upgrade {
        write_field(&mut forwarded, "Connection", b"Upgrade");
        write_field(&mut forwarded, "Upgrade", b"websocket");
    } else {
        // One request a connection: the next one may be for another target.
        write_field(&mut forwarded, "Connection", b"close");
    }
    forwarded.extend_from_slice(b"\r\n");

    let bodiless_answer = method == "HEAD";
    let exchange = match content {
        _ if upgrade => Exchange::upgrade(),
        Content::Length(length) => Exchange::new(Body::sized(length), bodiless_answer),
        Content::Chunked => Exchange::new(Body::chunked(), bodiless_answer),
    };
    Ok(Parsed::Forward {
        target,
        head: forwarded,
        exchange,
        bodiless_answer,
    })
}

/// The answer to a request that was turned away.
pub(crate) fn rejection(error: &Error, bodiless: bool) -> Vec<u8> {
    let status = match error {
        Error::AuthenticationRequired | Error::AuthenticationFailed => {
            "407 Proxy Authentication Required"
        }
        Error::TimedOut => "408 Request Timeout",
        Error::HeadTooLarge => "431 Request Header Fields Too Large",
        Error::UnsupportedVersion => "505 HTTP Version Not Supported",
        _ => "400 Bad Request",
    };
    let field = match error {
        Error::AuthenticationRequired | Error::AuthenticationFailed => {
            "Proxy-Authenticate: Basic realm=\"ech-workers\", charset=\"UTF-8\"\r\n"
        }
        _ => "",
    };
    let text = match error {
        Error::NotAProxyRequest => NOT_A_WEB_PAGE,
        _ => &error.to_string(),
    };
    Reply {
        status,
        field,
        text,
    }
    .into_bytes(bodiless)
}

/// An answer of our own, after which the connection is closed.
pub(crate) struct Reply<'a> {
    pub(crate) status: &'static str,
    /// A field line with its line end, or nothing.
    pub(crate) field: &'a str,
    pub(crate) text: &'a str,
}

impl Reply<'_> {
    /// `bodiless`: the content is announced but left out, as the answer to HEAD.
    pub(crate) fn into_bytes(self, bodiless: bool) -> Vec<u8> {
        let Self {
            status,
            field,
            text,
        } = self;
        let mut reply = format!(
            "HTTP/1.1 {status}\r\n{field}Content-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\n\
             Cache-Control: no-store\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            text.len() + 1
        );
        if !bodiless {
            reply.push_str(text);
            reply.push('\n');
        }
        reply.into_bytes()
    }
}

/// Tells a program that speaks another line protocol at once, rather than after the time-out.
fn check_request_line(line: &[u8]) -> Result<(), Error> {
    let version = line.rsplit(|&byte| byte == b' ').next().unwrap_or_default();
    match version {
        b"HTTP/1.1" | b"HTTP/1.0" => Ok(()),
        _ if version.starts_with(b"HTTP/") => Err(Error::UnsupportedVersion),
        _ => Err(Error::MalformedRequest(
            "the request line does not end with an HTTP version",
        )),
    }
}

struct RequestLine<'a> {
    method: &'a str,
    /// Bytes: programs send GBK and Latin-1 as well as UTF-8, which a target may understand.
    target: &'a [u8],
    /// The minor version.
    version: u8,
}

/// The request line of a head, and what follows it.
fn request_line(head: &[u8]) -> Result<(RequestLine<'_>, &[u8]), Error> {
    let malformed = Error::MalformedRequest("the request line");
    let end = head.iter().position(|&byte| byte == b'\r');
    let Some((line, rest)) = end.and_then(|end| head.split_at_checked(end)) else {
        return Err(malformed);
    };
    let mut words = line.split(|&byte| byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(malformed);
    };
    let version = match version {
        b"HTTP/1.0" => 0,
        b"HTTP/1.1" => 1,
        _ => return Err(Error::UnsupportedVersion),
    };
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    if !method.iter().all(is_token) || target.is_empty() || target.contains(&b'\t') {
        return Err(malformed);
    }
    match (str::from_utf8(method), rest.get(2..)) {
        (Ok(method), Some(rest)) if !method.is_empty() => {
            let line = RequestLine {
                method,
                target,
                version,
            };
            Ok((line, rest))
        }
        _ => Err(malformed),
    }
}

fn syntax_error(error: httparse::Error) -> Error {
    match error {
        httparse::Error::TooManyHeaders => Error::HeadTooLarge,
        httparse::Error::HeaderName => Error::MalformedRequest("a field name"),
        httparse::Error::HeaderValue => Error::MalformedRequest("a field value"),
        httparse::Error::NewLine => Error::MalformedRequest("a line end"),
        // The version itself was checked before: what stands in its place is a third word.
        httparse::Error::Token | httparse::Error::Status | httparse::Error::Version => {
            Error::MalformedRequest("the request line")
        }
    }
}

struct Fields<'a>(&'a [httparse::Header<'a>]);

impl<'a> Fields<'a> {
    fn all(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.0
            .iter()
            .filter(move |field| field.name.eq_ignore_ascii_case(name))
            .map(|field| field.value)
    }

    /// The members of a list-based field (RFC 9110 section 5.6.1).
    fn list(&self, name: &'static str) -> Result<Vec<&'a str>, Error> {
        let mut members = Vec::new();
        for value in self.all(name) {
            let value =
                str::from_utf8(value).map_err(|_| Error::MalformedRequest("a field value"))?;
            members.extend(
                value
                    .split(',')
                    .map(|member| member.trim_matches([' ', '\t']))
                    .filter(|member| !member.is_empty()),
            );
        }
        Ok(members)
    }
}

/// `Proxy-Authorization: Basic` (RFC 7617).
fn authenticate(fields: &Fields<'_>, credentials: &Credentials) -> Result<(), Error> {
    let mut values = fields.all("Proxy-Authorization");
    let Some(value) = values.next() else {
        return Err(Error::AuthenticationRequired);
    };
    let user_pass = match value.split_at_checked(6) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"Basic ") => {
            BASE64.decode(token.trim_ascii())
        }
        _ => return Err(Error::AuthenticationFailed),
    };
    let Ok(user_pass) = user_pass else {
        return Err(Error::AuthenticationFailed);
    };
    let mut parts = user_pass.splitn(2, |&byte| byte == b':');
    let (Some(username), Some(password)) = (parts.next(), parts.next()) else {
        return Err(Error::AuthenticationFailed);
    };
    if values.next().is_none() && credentials.matches(username, password) {
        Ok(())
    } else {
        Err(Error::AuthenticationFailed)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Length(u64),
    Chunked,
}

/// How the content is delimited (RFC 9112 section 6.3); whatever two parsers could read differently is refused.
fn content(fields: &Fields<'_>, version: u8) -> Result<Content, Error> {
    let codings = fields.list("Transfer-Encoding")?;
    let transfer_encodings = fields.all("Transfer-Encoding").count();
    let mut lengths = fields.all("Content-Length");
    let length = lengths.next();
    if lengths.next().is_some()
        || length.is_some() && transfer_encodings > 0
        || transfer_encodings > 1
    {
        return Err(Error::MalformedRequest(
            "more than one Content-Length or Transfer-Encoding field",
        ));
    }
    if transfer_encodings == 1 {
        if version == 0 {
            return Err(Error::MalformedRequest("Transfer-Encoding in HTTP/1.0"));
        }
        let chunked = codings
            .iter()
            .filter(|coding| coding.eq_ignore_ascii_case("chunked"))
            .count();
        if chunked != 1
            || !codings
                .last()
                .is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"))
        {
            return Err(Error::MalformedRequest(
                "Transfer-Encoding does not end with chunked",
            ));
        }
        return Ok(Content::Chunked);
    }
    let Some(length) = length else {
        return Ok(Content::Length(0));
    };
    str::from_utf8(length)
        .ok()
        .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|digits| digits.parse().ok())
        .map(Content::Length)
        .ok_or(Error::MalformedRequest("Content-Length is not a number"))
}

/// An absolute-form request target (RFC 9112 section 3.2.2) in its parts.
struct AbsoluteForm<'a> {
    target: Target,
    /// What the target is sent.
    origin_form: Vec<u8>,
    /// What stood before the host, percent-encoded.
    user_information: Option<&'a [u8]>,
}

fn absolute_form<'a>(method: &str, request_target: &'a [u8]) -> Result<AbsoluteForm<'a>, Error> {
    let separator = request_target.windows(3).position(|part| part == b"://");
    let Some((scheme, rest)) = separator.and_then(|at| request_target.split_at_checked(at)) else {
        return Err(Error::MalformedRequest(
            "the request target is not an absolute URI",
        ));
    };
    let rest = rest.get(3..).unwrap_or_default();
    // Programs that ask an HTTP proxy for a WebSocket leave the scheme as it is: the request is the same (RFC 6455 section 3).
    if !scheme.eq_ignore_ascii_case(b"http") && !scheme.eq_ignore_ascii_case(b"ws") {
        return Err(Error::UnsupportedScheme);
    }
    if rest.contains(&b'#') {
        return Err(Error::MalformedRequest("a fragment in the request target"));
    }
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?'));
    let (authority, path) = rest.split_at(end.unwrap_or(rest.len()));
    // RFC 9110 section 4.2.4: it is not sent on as a part of the address.
    let (user_information, authority) = match authority.iter().rposition(|&byte| byte == b'@') {
        Some(at) => (
            authority.get(..at),
            authority.get(at + 1..).unwrap_or_default(),
        ),
        None => (None, authority),
    };
    let target = Target::parse_authority(as_text(authority)?, Some(80))?;
    let origin_form = match path {
        // RFC 9112 section 3.2.4: OPTIONS without a path is about the server as a whole.
        b"" if method == "OPTIONS" => b"*".to_vec(),
        [b'/', ..] => path.to_vec(),
        _ => [b"/", path].concat(),
    };
    Ok(AbsoluteForm {
        target,
        origin_form,
        user_information: user_information.filter(|user| !user.is_empty()),
    })
}

/// A host and port, which are ASCII.
fn as_text(authority: &[u8]) -> Result<&str, Error> {
    str::from_utf8(authority).map_err(|_| Error::InvalidTarget(TargetError::InvalidName))
}

/// User name, colon and password (RFC 7617 section 2) of a URI's user information (RFC 3986 section 3.2.1).
fn user_pass(user_information: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(user_information.len() + 1);
    let mut rest = user_information;
    while let [byte, behind @ ..] = rest {
        let hex = |digit: u8| {
            char::from(digit)
                .to_digit(16)
                .and_then(|d| u8::try_from(d).ok())
        };
        rest = behind;
        if let (b'%', [high, low, behind @ ..]) = (byte, behind)
            && let (Some(high), Some(low)) = (hex(*high), hex(*low))
        {
            decoded.push(high << 4 | low);
            rest = behind;
        } else {
            decoded.push(*byte);
        }
    }
    if !user_information.contains(&b':') {
        decoded.push(b':');
    }
    decoded
}

/// The names in the Connection fields (RFC 9110 section 7.6.1).
fn connection_options<'a>(fields: &Fields<'a>) -> Result<Vec<&'a str>, Error> {
    let options = fields.list("Connection")?;
    if options
        .iter()
        .any(|option| is_any(option, &NEVER_HOP_BY_HOP))
    {
        return Err(Error::MalformedRequest(
            "the Connection field names a field of the request itself",
        ));
    }
    Ok(options)
}

/// Only an upgrade to WebSocket is passed on: any other (HTTP/2 in clear, which RFC 9113 section 3.1
/// took back) would let the program send requests for further hosts over the same connection.
fn upgrades_to_websocket(fields: &Fields<'_>, options: &[&str]) -> bool {
    is_any("Upgrade", options)
        && fields
            .list("Upgrade")
            .is_ok_and(|protocols| is_any("websocket", &protocols))
}

/// The authority without the default port, as browsers send it.
fn host_field(target: &Target) -> String {
    if target.port == 80 {
        target.host.to_string()
    } else {
        target.authority()
    }
}

fn is_any(name: &str, names: &[&str]) -> bool {
    names.iter().any(|other| name.eq_ignore_ascii_case(other))
}

fn write_field(head: &mut Vec<u8>, name: &str, value: &[u8]) {
    for part in [name.as_bytes(), b": ", value, b"\r\n"] {
        head.extend_from_slice(part);
    }
}
