//! SOCKS5 messages (RFC 1928) and username/password authentication (RFC 1929).

use std::net::IpAddr;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::{Error, Host, Target, TargetError};

/// RFC 1928 section 3.
pub(crate) const VERSION: u8 = 5;
/// The first byte of a SOCKS4 request.
pub(crate) const VERSION_4: u8 = 4;

/// Methods of RFC 1928 section 3.
pub(crate) const NO_AUTHENTICATION: u8 = 0x00;
pub(crate) const USERNAME_PASSWORD: u8 = 0x02;
pub(crate) const NO_ACCEPTABLE_METHODS: u8 = 0xff;

/// RFC 1929 section 2: the version of the authentication message, and the two answers.
const AUTHENTICATION_VERSION: u8 = 1;
pub(crate) const AUTHENTICATION_SUCCESS: [u8; 2] = [AUTHENTICATION_VERSION, 0];
pub(crate) const AUTHENTICATION_FAILURE: [u8; 2] = [AUTHENTICATION_VERSION, 1];

/// Replies of RFC 1928 section 6.
pub(crate) const SUCCEEDED: u8 = 0;
pub(crate) const GENERAL_FAILURE: u8 = 1;
pub(crate) const COMMAND_NOT_SUPPORTED: u8 = 7;
pub(crate) const ADDRESS_TYPE_NOT_SUPPORTED: u8 = 8;

/// "Request rejected or failed" of the SOCKS4 protocol, the rest of the reply is ignored.
pub(crate) const SOCKS4_REJECTED: [u8; 8] = [0, 0x5b, 0, 0, 0, 0, 0, 0];

const CONNECT: u8 = 1;
const ADDRESS_IPV4: u8 = 1;
const ADDRESS_DOMAIN: u8 = 3;
const ADDRESS_IPV6: u8 = 4;

/// A message and its length, or nothing while it is incomplete.
type Parsed<T> = Result<Option<(T, usize)>, Error>;

/// A reply of RFC 1928 section 6. The bound address is all zeros: only the far end knows it.
pub(crate) fn reply(code: u8) -> Vec<u8> {
    vec![VERSION, code, 0, ADDRESS_IPV4, 0, 0, 0, 0, 0, 0]
}

/// The methods of a version identifier message (RFC 1928 section 3), whose first byte was looked at before.
pub(crate) fn methods(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let count = usize::from(*bytes.get(1)?);
    Some((bytes.get(2..2 + count)?, 2 + count))
}

/// The message of RFC 1929 section 2.
pub(crate) struct UsernamePassword<'a> {
    pub(crate) username: &'a [u8],
    pub(crate) password: &'a [u8],
}

impl<'a> UsernamePassword<'a> {
    pub(crate) fn parse(bytes: &'a [u8]) -> Parsed<Self> {
        match bytes.first() {
            Some(&AUTHENTICATION_VERSION) => Ok(Self::fields(bytes)),
            Some(&version) => Err(Error::AuthenticationVersion(version)),
            None => Ok(None),
        }
    }

    fn fields(bytes: &'a [u8]) -> Option<(Self, usize)> {
        let username_end = 2 + usize::from(*bytes.get(1)?);
        let username = bytes.get(2..username_end)?;
        let end = username_end + 1 + usize::from(*bytes.get(username_end)?);
        let password = bytes.get(username_end + 1..end)?;
        Some((Self { username, password }, end))
    }
}

/// The target of a CONNECT request (RFC 1928 section 4).
///
/// Other commands are refused once the whole request has been read, so that the reply is not lost
/// in the reset that unread bytes cause.
pub(crate) fn request(bytes: &[u8]) -> Parsed<Target> {
    match bytes.first() {
        Some(&VERSION) => {}
        Some(&version) => return Err(Error::SocksVersion(version)),
        None => return Ok(None),
    }
    let [_, command, _, address_type, rest @ ..] = bytes else {
        return Ok(None);
    };
    let Some((host, end)) = address(*address_type, rest)? else {
        return Ok(None);
    };
    let Some(&[high, low]) = rest.get(end..).and_then(|port| port.first_chunk()) else {
        return Ok(None);
    };
    if *command != CONNECT {
        return Err(Error::CommandNotSupported(*command));
    }
    let port = u16::from_be_bytes([high, low]);
    if port == 0 {
        return Err(TargetError::InvalidPort.into());
    }
    Ok(Some((Target { host: host?, port }, 4 + end + 2)))
}

/// The address of RFC 1928 section 5. A name that is none is an error only once the request is complete.
fn address(address_type: u8, bytes: &[u8]) -> Parsed<Result<Host, TargetError>> {
    Ok(match address_type {
        ADDRESS_IPV4 => bytes
            .first_chunk::<4>()
            .map(|octets| (Ok(ip(Ipv4Addr::from(*octets))), 4)),
        ADDRESS_IPV6 => bytes
            .first_chunk::<16>()
            .map(|octets| (Ok(ip(Ipv6Addr::from(*octets))), 16)),
        ADDRESS_DOMAIN => bytes.split_first().and_then(|(&length, rest)| {
            let name = rest.get(..usize::from(length))?;
            Some((domain(name), 1 + name.len()))
        }),
        other => return Err(Error::AddressTypeNotSupported(other)),
    })
}

/// A domain name; programs that never resolve put literal addresses there too, IPv6 with or without brackets.
fn domain(name: &[u8]) -> Result<Host, TargetError> {
    let name = str::from_utf8(name).map_err(|_| TargetError::InvalidName)?;
    let literal = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'))
        .unwrap_or(name);
    match literal.parse::<Ipv6Addr>() {
        Ok(address) => Ok(ip(address)),
        Err(_) => Host::from_name(name),
    }
}

fn ip(address: impl Into<IpAddr>) -> Host {
    Host::Ip(address.into())
}
