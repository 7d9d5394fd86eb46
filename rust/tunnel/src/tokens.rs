//! The tokens of those who may pass.

use std::io;

use subtle::{Choice, ConstantTimeEq};

/// The longest token.
pub(crate) const TOKEN_MAX: usize = 512;

/// All tokens of a server.
pub(crate) struct Tokens(Vec<Field>);

impl Tokens {
    /// # Errors
    /// A token of more than 512 bytes.
    pub(crate) fn new(tokens: &[String]) -> io::Result<Self> {
        tokens
            .iter()
            .map(|token| Field::new(token.as_bytes()))
            .collect::<Option<_>>()
            .map(Self)
            .ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("a token has more than {TOKEN_MAX} bytes"),
                )
            })
    }

    /// Whether `offered` is one of the tokens. The time it takes depends on how many there are and on what was offered, but on
    /// nothing else of the tokens: neither on their bytes nor on their lengths.
    pub(crate) fn contain(&self, offered: &[u8]) -> bool {
        let Some(offered) = Field::new(offered) else {
            return false;
        };
        self.0
            .iter()
            .fold(Choice::from(0), |known, token| {
                known | token.0.as_slice().ct_eq(offered.0.as_slice())
            })
            .into()
    }
}

/// A token with its length in front, filled up with zeros: all have the same size.
struct Field(Box<[u8; TOKEN_MAX + 2]>);

impl Field {
    fn new(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > TOKEN_MAX {
            return None;
        }
        let mut field = Box::new([0; TOKEN_MAX + 2]);
        field[..2].copy_from_slice(&(bytes.len() as u16).to_be_bytes());
        field[2..2 + bytes.len()].copy_from_slice(bytes);
        Some(Self(field))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_token_is_let_in() {
        let tokens = Tokens::new(&["first".to_owned(), "x".repeat(TOKEN_MAX)]).unwrap();
        assert!(tokens.contain(b"first"));
        assert!(tokens.contain("x".repeat(TOKEN_MAX).as_bytes()));
        for other in ["", "firs", "first\0", "first ", "First", "firstfirst"] {
            assert!(!tokens.contain(other.as_bytes()), "{other:?}");
        }
        assert!(!tokens.contain("x".repeat(TOKEN_MAX - 1).as_bytes()));
        assert!(!tokens.contain("x".repeat(TOKEN_MAX + 1).as_bytes()));
    }

    #[test]
    fn every_token_is_compared_in_full_whatever_its_length() {
        let sizes = |token: &str| Field::new(token.as_bytes()).map(|field| field.0.len());
        assert_eq!(sizes("a"), sizes(&"a".repeat(TOKEN_MAX)));
    }

    #[test]
    fn a_token_that_is_too_long_is_refused_at_the_start() {
        assert!(Tokens::new(&["x".repeat(TOKEN_MAX + 1)]).is_err());
    }
}
