//! The user name and password a local program must know.

use std::fmt;
use std::sync::Arc;

use subtle::ConstantTimeEq;

/// A user name and a password, asked of every local program when they are set.
///
/// Cloning is cheap: all connections share one copy.
#[derive(Clone)]
pub struct Credentials(Arc<Pair>);

struct Pair {
    username: Field,
    password: Field,
}

impl Credentials {
    /// Takes a pair that both SOCKS5 and HTTP can carry.
    ///
    /// # Errors
    /// Either part is empty or longer than 255 bytes (RFC 1929 section 2), has a control character,
    /// or the user name has a colon (RFC 7617 section 2).
    pub fn new(username: &str, password: &str) -> Result<Self, CredentialsError> {
        for (part, text) in [("user name", username), ("password", password)] {
            if text.is_empty() || text.len() > 255 {
                return Err(CredentialsError::Length { part });
            }
            if text.chars().any(char::is_control) {
                return Err(CredentialsError::ControlCharacter { part });
            }
        }
        if username.contains(':') {
            return Err(CredentialsError::Colon);
        }
        match (
            Field::new(username.as_bytes()),
            Field::new(password.as_bytes()),
        ) {
            (Some(username), Some(password)) => Ok(Self(Arc::new(Pair { username, password }))),
            (None, _) => Err(CredentialsError::Length { part: "user name" }),
            (_, None) => Err(CredentialsError::Length { part: "password" }),
        }
    }

    /// Compares in a time that depends neither on where a difference is nor on the lengths.
    pub(crate) fn matches(&self, username: &[u8], password: &[u8]) -> bool {
        let (Some(username), Some(password)) = (Field::new(username), Field::new(password)) else {
            return false;
        };
        (self.0.username.0.ct_eq(&username.0) & self.0.password.0.ct_eq(&password.0)).into()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

/// Why a pair cannot serve as [`Credentials`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// Empty, or longer than SOCKS5 can carry.
    #[error("the proxy {part} must have 1 to 255 bytes")]
    Length {
        /// `user name` or `password`.
        part: &'static str,
    },
    /// A control character, which HTTP cannot carry.
    #[error("the proxy {part} has a control character")]
    ControlCharacter {
        /// `user name` or `password`.
        part: &'static str,
    },
    /// HTTP would take what follows the colon for the password.
    #[error("the proxy user name has a colon")]
    Colon,
}

/// At most 255 bytes with their length in front: two fields compare in constant time whatever their lengths.
struct Field([u8; 256]);

impl Field {
    fn new(bytes: &[u8]) -> Option<Self> {
        let mut field = [0; 256];
        field[0] = u8::try_from(bytes.len()).ok()?;
        field.get_mut(1..=bytes.len())?.copy_from_slice(bytes);
        Some(Self(field))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_pair_is_let_in() {
        let credentials = Credentials::new("alice", "s3cret").unwrap();
        assert!(credentials.matches(b"alice", b"s3cret"));
        for (username, password) in [
            ("alice", "s3cre"),
            ("alice", "s3cret\0"),
            ("Alice", "s3cret"),
            ("", ""),
            ("alice", ""),
            ("s3cret", "alice"),
        ] {
            assert!(
                !credentials.matches(username.as_bytes(), password.as_bytes()),
                "{username}:{password}"
            );
        }
        assert!(!credentials.matches(&[b'a'; 256], b"s3cret"));
    }

    #[test]
    fn a_pair_that_one_protocol_could_not_carry_is_refused_at_once() {
        assert_eq!(
            Credentials::new("a:b", "c").unwrap_err(),
            CredentialsError::Colon
        );
        assert_eq!(
            Credentials::new("", "c").unwrap_err(),
            CredentialsError::Length { part: "user name" }
        );
        assert_eq!(
            Credentials::new("a", &"c".repeat(256)).unwrap_err(),
            CredentialsError::Length { part: "password" }
        );
        assert_eq!(
            Credentials::new("a", "c\n").unwrap_err(),
            CredentialsError::ControlCharacter { part: "password" }
        );
        assert!(Credentials::new(&"a".repeat(255), &"c".repeat(255)).is_ok());
    }

    #[test]
    fn the_password_does_not_reach_a_log() {
        let shown = format!("{:?}", Credentials::new("alice", "s3cret").unwrap());
        assert!(!shown.contains("s3cret") && !shown.contains("alice"));
    }
}
