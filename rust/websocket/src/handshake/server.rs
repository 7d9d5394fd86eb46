use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;

use super::{accept_key, list_holds};

/// A valid upgrade request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upgrade<'a> {
    /// The Sec-WebSocket-Protocol as it came, not taken apart; `None` where it is missing or empty.
    pub protocol: Option<&'a [u8]>,
    accept: String,
}

/// Why a request is not answered with 101.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum UpgradeError {
    /// Not a GET of HTTP/1.1 that asks for WebSocket: an ordinary request.
    #[error("the request does not ask for WebSocket")]
    NotAsked,
    /// A version other than 13, or none.
    #[error("the request asks for another version of WebSocket than 13")]
    Version,
    /// No Sec-WebSocket-Key of 16 bytes.
    #[error("the request has no valid Sec-WebSocket-Key")]
    Key,
    /// A field that must be there once at most is there twice.
    #[error("the request has the field {0} twice")]
    Duplicate(&'static str),
}

/// Checks a request as RFC 6455 section 4.2.1 says. Extensions that it offers are passed over, as a server may.
///
/// `method` and `headers` are as the web server parsed them, `http_1_1` says whether the request is of HTTP/1.1.
///
/// # Errors
/// [`UpgradeError`], with the [`status`](UpgradeError::status) for a server that wants to tell.
pub fn validate_upgrade<'a>(
    method: &str,
    http_1_1: bool,
    headers: impl IntoIterator<Item = (&'a str, &'a [u8])>,
) -> Result<Upgrade<'a>, UpgradeError> {
    let mut upgrade = false;
    let mut connection = false;
    let mut version = Once::new("Sec-WebSocket-Version");
    let mut key = Once::new("Sec-WebSocket-Key");
    let mut protocol = Once::new("Sec-WebSocket-Protocol");
    for (name, value) in headers {
        let value = value.trim_ascii();
        if name.eq_ignore_ascii_case("Upgrade") {
            upgrade |= list_holds(value, "websocket");
        } else if name.eq_ignore_ascii_case("Connection") {
            connection |= list_holds(value, "upgrade");
        } else {
            for field in [&mut version, &mut key, &mut protocol] {
                field.offer(name, value);
            }
        }
    }
    if method != "GET" || !http_1_1 || !upgrade || !connection {
        return Err(UpgradeError::NotAsked);
    }
    if version.value()? != Some(b"13") {
        return Err(UpgradeError::Version);
    }
    let key = key
        .value()?
        .and_then(|key| str::from_utf8(key).ok())
        .filter(|key| STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == 16))
        .ok_or(UpgradeError::Key)?;
    Ok(Upgrade {
        protocol: protocol.value()?.filter(|protocol| !protocol.is_empty()),
        accept: accept_key(key),
    })
}

impl Upgrade<'_> {
    /// The fields of the 101, but for the Sec-WebSocket-Protocol: whether to confirm it is for the caller to decide.
    pub fn response_headers(&self) -> [(&'static str, &str); 3] {
        [
            ("upgrade", "websocket"),
            ("connection", "Upgrade"),
            ("sec-websocket-accept", &self.accept),
        ]
    }
}

impl UpgradeError {
    /// The HTTP status to refuse with (section 4.2.2): 426 goes with `Sec-WebSocket-Version: 13`.
    pub fn status(self) -> u16 {
        match self {
            Self::NotAsked | Self::Key | Self::Duplicate(_) => 400,
            Self::Version => 426,
        }
    }
}

/// A field that must not be there more than once.
struct Once<'a> {
    name: &'static str,
    value: Option<&'a [u8]>,
    again: bool,
}

impl<'a> Once<'a> {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            value: None,
            again: false,
        }
    }

    fn offer(&mut self, name: &str, value: &'a [u8]) {
        if name.eq_ignore_ascii_case(self.name) {
            self.again |= self.value.is_some();
            self.value = Some(value);
        }
    }

    fn value(&self) -> Result<Option<&'a [u8]>, UpgradeError> {
        if self.again {
            return Err(UpgradeError::Duplicate(self.name));
        }
        Ok(self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handshake::{ClientHandshake, Request, RequestTemplate};

    const REQUEST: [(&str, &str); 5] = [
        ("upgrade", "WebSocket"),
        ("connection", "keep-alive, Upgrade"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-protocol", "s3cret"),
    ];

    fn validate<'a>(
        fields: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Upgrade<'a>, UpgradeError> {
        let fields = fields
            .into_iter()
            .map(|(name, value)| (name, value.as_bytes()));
        validate_upgrade("GET", true, fields)
    }

    /// The request with another value of the field `name`, or without it.
    fn with(name: &str, value: Option<&'static str>) -> Result<Upgrade<'static>, UpgradeError> {
        validate(REQUEST.into_iter().filter_map(|(field, old)| {
            if field == name {
                value.map(|value| (field, value))
            } else {
                Some((field, old))
            }
        }))
    }

    #[test]
    fn our_own_client_s_request_is_accepted_and_our_answer_by_it() {
        let request = Request {
            host: "example.org",
            path: "/ws",
            token: Some("s3cret"),
        };
        let mut client =
            ClientHandshake::new(&RequestTemplate::default(), request, [7; 16]).unwrap();
        let mut fields = [httparse::EMPTY_HEADER; 32];
        let mut parsed = httparse::Request::new(&mut fields);
        assert!(parsed.parse(client.request()).unwrap().is_complete());
        let headers = parsed.headers.iter().map(|field| (field.name, field.value));
        let upgrade = validate_upgrade(parsed.method.unwrap(), true, headers).unwrap();
        assert_eq!(upgrade.protocol, Some(&b"s3cret"[..]));

        let mut answer = "HTTP/1.1 101 Switching Protocols\r\n".to_owned();
        for (name, value) in upgrade.response_headers() {
            answer += &format!("{name}: {value}\r\n");
        }
        answer += "sec-websocket-protocol: s3cret\r\n\r\n";
        let (taken, response) = client.receive(answer.as_bytes()).unwrap().unwrap();
        assert_eq!(taken, answer.len());
        assert_eq!(response.protocol.as_deref(), Some("s3cret"));
    }

    #[test]
    fn an_ordinary_request_is_told_apart() {
        assert_eq!(validate([]), Err(UpgradeError::NotAsked));
        assert_eq!(with("upgrade", None), Err(UpgradeError::NotAsked));
        assert_eq!(with("upgrade", Some("h2c")), Err(UpgradeError::NotAsked));
        assert_eq!(with("connection", None), Err(UpgradeError::NotAsked));
        assert_eq!(
            with("connection", Some("close")),
            Err(UpgradeError::NotAsked)
        );
        let fields = || REQUEST.map(|(name, value)| (name, value.as_bytes()));
        assert_eq!(
            validate_upgrade("POST", true, fields()),
            Err(UpgradeError::NotAsked)
        );
        assert_eq!(
            validate_upgrade("GET", false, fields()),
            Err(UpgradeError::NotAsked)
        );
        assert!(validate_upgrade("GET", true, fields()).is_ok());
    }

    #[test]
    fn connection_and_upgrade_may_be_spread_over_lines() {
        let more = [("Connection", "close"), ("Upgrade", "h2c, other")];
        assert!(validate(more.into_iter().chain(REQUEST)).is_ok());
    }

    #[test]
    fn another_version_is_answered_with_ours() {
        for version in [None, Some("8"), Some("13, 8"), Some("")] {
            let error = with("sec-websocket-version", version).unwrap_err();
            assert_eq!((error, error.status()), (UpgradeError::Version, 426));
        }
    }

    #[test]
    fn a_key_must_be_16_bytes() {
        for key in [
            None,
            Some(""),
            Some("dGhlIHNhbXBsZSBub25j"),
            Some("dGhlIHNhbXBsZSBub25jZWQ="),
            Some("dGhlIHNhbXBsZSBub25jZQ"),
            Some("not base64 at all!!!!!!!"),
        ] {
            let error = with("sec-websocket-key", key).unwrap_err();
            assert_eq!((error, error.status()), (UpgradeError::Key, 400), "{key:?}");
        }
    }

    #[test]
    fn fields_that_matter_are_not_there_twice() {
        for (name, known) in [
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("Sec-WebSocket-Protocol", "other"),
        ] {
            assert_eq!(
                validate(REQUEST.into_iter().chain([(name, known)])),
                Err(UpgradeError::Duplicate(name))
            );
        }
    }

    #[test]
    fn an_empty_protocol_is_none() {
        for protocol in [None, Some(""), Some(" ")] {
            let upgrade = with("sec-websocket-protocol", protocol).unwrap();
            assert_eq!(upgrade.protocol, None);
        }
        // Not taken apart: a list is never equal to a token.
        let upgrade = with("sec-websocket-protocol", Some("a, b")).unwrap();
        assert_eq!(upgrade.protocol, Some(&b"a, b"[..]));
    }
}
