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
