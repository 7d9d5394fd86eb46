//! The tokens of those who may pass, and what each of them carries.

use std::io;
use std::sync::Arc;

use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use tokio::sync::watch;

use crate::counters::{Counter, Traffic};

/// The longest token.
pub(crate) const TOKEN_MAX: usize = 512;

/// All tokens of a server.
#[derive(Default)]
pub(crate) struct Tokens(Vec<(Field, Arc<Holder>)>);

/// What whoever has a token does with it.
#[derive(Debug)]
pub(crate) struct Holder {
    /// What the operator calls the token. Never the token.
    pub(crate) label: String,
    /// Sessions now, and so far.
    pub(crate) sessions: Arc<Counter>,
    pub(crate) sessions_total: Counter,
    pub(crate) traffic: Arc<Traffic>,
    /// The token is not taken any more.
    revoked: watch::Sender<bool>,
}

impl Holder {
    fn new(label: &str) -> Arc<Self> {
        Arc::new(Self {
            label: label.to_owned(),
            sessions: Arc::default(),
            sessions_total: Counter::default(),
            traffic: Arc::default(),
            revoked: watch::Sender::new(false),
        })
    }

    /// Waits until the token is not taken any more.
    pub(crate) async fn revoked(&self) {
        let mut revoked = self.revoked.subscribe();
        // The sender is here.
        let _ = revoked.wait_for(|&revoked| revoked).await;
    }
}

#[cfg(test)]
impl Holder {
    pub(crate) fn is_revoked(&self) -> bool {
        *self.revoked.borrow()
    }
}

impl Tokens {
    /// Tokens with what the operator calls them. Those that were there before keep their counters.
    ///
    /// # Errors
    /// A token of more than 512 bytes.
    pub(crate) fn new(tokens: &[(String, String)], before: &Self) -> io::Result<Self> {
        tokens
            .iter()
            .map(|(token, label)| {
                let field = Field::new(token.as_bytes())?;
                let known = before
                    .find(token.as_bytes())
                    .filter(|holder| holder.label == *label);
                Some((field, known.unwrap_or_else(|| Holder::new(label))))
            })
            .collect::<Option<Vec<_>>>()
            .map(Self)
            .ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("a token has more than {TOKEN_MAX} bytes"),
                )
            })
    }

    /// Tokens of `before` that are not among these are not taken any more.
    pub(crate) fn revoke_others(&self, before: &Self) {
        for (field, holder) in &before.0 {
            if self.holder_of(field).is_none() {
                holder.revoked.send_replace(true);
            }
        }
    }

    /// The holder of the token that was offered. The time it takes depends on how many tokens there are and on what was
    /// offered, but on nothing else of the tokens: neither on their bytes nor on their lengths.
    pub(crate) fn find(&self, offered: &[u8]) -> Option<Arc<Holder>> {
        self.holder_of(&Field::new(offered)?).map(Arc::clone)
    }

    fn holder_of(&self, offered: &Field) -> Option<&Arc<Holder>> {
        let mut index = u32::MAX;
        for (number, (token, _)) in (0..).zip(&self.0) {
            let same: Choice = token.0.as_slice().ct_eq(offered.0.as_slice());
            index.conditional_assign(&number, same);
        }
        self.0.get(index as usize).map(|(_, holder)| holder)
    }

    /// Everybody, in the order of the configuration.
    pub(crate) fn holders(&self) -> impl Iterator<Item = &Arc<Holder>> {
        self.0.iter().map(|(_, holder)| holder)
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

    fn tokens(of: &[&str], before: &Tokens) -> Tokens {
        let labelled = of
            .iter()
            .map(|token| ((*token).to_owned(), format!("label of {token}")));
        Tokens::new(&labelled.collect::<Vec<_>>(), before).unwrap()
    }

    #[test]
    fn only_a_whole_token_is_let_in() {
        let long = "x".repeat(TOKEN_MAX);
        let tokens = tokens(&["first", &long], &Tokens::default());
        assert_eq!(tokens.find(b"first").unwrap().label, "label of first");
        assert!(tokens.find(long.as_bytes()).is_some());
        for other in ["", "firs", "first\0", "first ", "First", "firstfirst"] {
            assert!(tokens.find(other.as_bytes()).is_none(), "{other:?}");
        }
        assert!(tokens.find("x".repeat(TOKEN_MAX - 1).as_bytes()).is_none());
        assert!(tokens.find("x".repeat(TOKEN_MAX + 1).as_bytes()).is_none());
    }

    #[test]
    fn every_token_is_compared_in_full_whatever_its_length() {
        let sizes = |token: &str| Field::new(token.as_bytes()).map(|field| field.0.len());
        assert_eq!(sizes("a"), sizes(&"a".repeat(TOKEN_MAX)));
    }

    #[test]
    fn a_token_that_is_too_long_is_refused_at_the_start() {
        let long = ("x".repeat(TOKEN_MAX + 1), "long".to_owned());
        assert!(Tokens::new(&[long], &Tokens::default()).is_err());
    }

    #[tokio::test]
    async fn a_token_that_stays_keeps_its_counters_and_one_that_goes_is_revoked() {
        let before = tokens(&["stays", "goes"], &Tokens::default());
        let (stays, goes) = (
            before.find(b"stays").unwrap(),
            before.find(b"goes").unwrap(),
        );
        stays.sessions_total.add(3);
        let after = tokens(&["new", "stays"], &before);
        assert_eq!(after.find(b"stays").unwrap().sessions_total.value(), 3);
        assert!(after.find(b"goes").is_none());
        assert!(!goes.is_revoked());
        after.revoke_others(&before);
        goes.revoked().await;
        assert!(!stays.is_revoked());
    }
}
