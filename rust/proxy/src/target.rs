//! Where a local program wants to go.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A host and a port, as in the authority of a URI (RFC 3986 section 3.2).
///
/// A target that exists is safe to write into the line `host:port\n` or the text
/// `CONNECT:host:port|`: no name with a space, a control character, `:` or `|` in it gets this far.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// The host; a domain has not been resolved.
    pub host: Host,
    /// The port, never 0 in a target that was parsed.
    pub port: u16,
}

impl Target {
    /// `host:port`, an IPv6 address in brackets.
    #[must_use]
    pub fn authority(&self) -> String {
        self.to_string()
    }

    /// Parses `host[:port]`, with `default_port` where the port is absent or empty (RFC 3986 section 3.2.3).
    pub(crate) fn parse_authority(
        authority: &str,
        default_port: Option<u16>,
    ) -> Result<Self, TargetError> {
        if authority.contains('@') {
            return Err(TargetError::UserInformation);
        }
        let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
            let (literal, rest) = rest.split_once(']').ok_or(TargetError::InvalidAddress)?;
            let port = match rest.strip_prefix(':') {
                Some(port) => port,
                None if rest.is_empty() => "",
                None => return Err(TargetError::InvalidAddress),
            };
            let address = literal
                .parse::<Ipv6Addr>()
                .map_err(|_| TargetError::InvalidAddress)?;
            (Host::Ip(address.into()), port)
        } else {
            let (host, port) = authority.split_once(':').unwrap_or((authority, ""));
            (Host::from_name(host)?, port)
        };
        let port = match (port, default_port) {
            ("", Some(default)) => default,
            ("", None) => return Err(TargetError::MissingPort),
            (digits, _) => parse_port(digits)?,
        };
        Ok(Self { host, port })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl FromStr for Target {
    type Err = TargetError;

    /// Parses `host:port`; the port must be there, an IPv6 address must be in brackets.
    fn from_str(authority: &str) -> Result<Self, Self::Err> {
        Self::parse_authority(authority, None)
    }
}

/// An address or a domain name.
///
/// `Display` gives the form of an authority: an IPv6 address is in brackets, so that a port can follow.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// An IPv4 or IPv6 address.
    Ip(IpAddr),
    /// A domain name, for the far end to resolve: letters, digits, `-` and `_` in labels of at most
    /// 63 bytes, at most 253 bytes in all (RFC 1035 section 2.3.4), perhaps with a final dot.
    Domain(String),
}

impl Host {
    /// Takes a domain name, or an IPv4 address in dotted form.
    ///
    /// # Errors
    /// [`TargetError::InvalidName`] for what can be neither.
    pub fn from_name(name: &str) -> Result<Self, TargetError> {
        if let Ok(address) = name.parse::<Ipv4Addr>() {
            return Ok(Self::Ip(address.into()));
        }
        if is_domain_name(name) {
            Ok(Self::Domain(name.to_owned()))
        } else {
            Err(TargetError::InvalidName)
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(IpAddr::V4(address)) => address.fmt(f),
            Self::Ip(IpAddr::V6(address)) => write!(f, "[{address}]"),
            Self::Domain(name) => f.write_str(name),
        }
    }
}

impl From<IpAddr> for Host {
    fn from(address: IpAddr) -> Self {
        Self::Ip(address)
    }
}

/// Why a text names no target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Neither a domain name nor an address.
    #[error("the host is not a valid domain name")]
    InvalidName,
    /// Brackets around something else than an IPv6 address.
    #[error("the host is not a valid IPv6 address")]
    InvalidAddress,
    /// No port where there is no default one.
    #[error("the port is missing")]
    MissingPort,
    /// Not a number between 1 and 65535.
    #[error("the port is not a number between 1 and 65535")]
    InvalidPort,
    /// `user:password@` before the host, which may not be sent on (RFC 9110 section 4.2.4).
    #[error("the address holds a user name")]
    UserInformation,
}

fn parse_port(digits: &str) -> Result<u16, TargetError> {
    // `u16::from_str` alone would take a leading plus sign.
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(TargetError::InvalidPort);
    }
    match digits.parse() {
        Ok(0) | Err(_) => Err(TargetError::InvalidPort),
        Ok(port) => Ok(port),
    }
}

fn is_domain_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    name.len() <= 253
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> Result<Target, TargetError> {
        text.parse()
    }

    #[test]
    fn authority_of_an_ipv6_target_has_brackets() {
        assert_eq!(
            target("[2001:db8::1]:443").unwrap().authority(),
            "[2001:db8::1]:443"
        );
        assert_eq!(
            target("192.0.2.7:80").unwrap().host,
            Host::Ip("192.0.2.7".parse().unwrap())
        );
        assert_eq!(
            target("Example.ORG.:8443").unwrap().authority(),
            "Example.ORG.:8443"
        );
    }

    #[test]
    fn a_port_is_a_decimal_number_that_fits() {
        assert_eq!(target("a.test:65535").unwrap().port, 65535);
        for port in ["0", "65536", "+80", "-1", "8O", " 80", "80 ", "99999999999"] {
            assert_eq!(
                target(&format!("a.test:{port}")),
                Err(TargetError::InvalidPort),
                "{port:?}"
            );
        }
        assert_eq!(target("a.test"), Err(TargetError::MissingPort));
        assert_eq!(target("a.test:"), Err(TargetError::MissingPort));
        assert_eq!(target("[::1]"), Err(TargetError::MissingPort));
    }

    #[test]
    fn a_host_that_would_break_the_preamble_line_is_refused() {
        let too_long = "a.".repeat(128);
        for host in [
            "",
            ".",
            "a..b",
            "a b",
            "a\nb",
            "a|b",
            "a/b",
            "a%20b",
            "a\0",
            "bücher.example",
            "[::1",
            "fe80::1",
            "a,b",
            too_long.as_str(),
        ] {
            assert!(Host::from_name(host).is_err(), "{host:?}");
        }
        assert_eq!(target("[1.2.3.4]:80"), Err(TargetError::InvalidAddress));
        assert_eq!(
            target("[fe80::1%eth0]:80"),
            Err(TargetError::InvalidAddress)
        );
        assert_eq!(target("[::1]x:80"), Err(TargetError::InvalidAddress));
        assert_eq!(target("user@a.test:80"), Err(TargetError::UserInformation));
    }

    #[test]
    fn the_longest_domain_name_is_accepted() {
        let label = "a".repeat(63);
        let longest = format!("{label}.{label}.{label}.{}", "a".repeat(61));
        assert_eq!(longest.len(), 253);
        assert!(Host::from_name(&longest).is_ok());
        assert!(Host::from_name(&format!("{longest}.")).is_ok());
        assert!(Host::from_name(&format!("{longest}a")).is_err());
        assert!(Host::from_name(&"a".repeat(64)).is_err());
        assert!(Host::from_name("_dmarc.xn--bcher-kva.example").is_ok());
    }
}
