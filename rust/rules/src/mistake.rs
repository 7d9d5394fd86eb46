//! What is wrong with a condition.

/// Why a condition cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mistake {
    /// It is no domain name in its ASCII form.
    #[error(
        "{0:?} is no domain name (letters, digits, `-` and `_`; other scripts in their xn-- form)"
    )]
    Domain(String),
    /// It is an address, which no name ever matches.
    #[error("{0:?} is an address: that is a network, not a domain")]
    Address(String),
    /// A keyword that no name can have in it.
    #[error("{0:?} is no part of a domain name")]
    Keyword(String),
    /// Neither an address nor a network.
    #[error("{0:?} is no address and no network (192.0.2.0/24)")]
    Network(String),
    /// Neither a port nor a range of ports.
    #[error("{0:?} is no port and no range of ports (8000-8099)")]
    Ports(String),
    /// A list with more text than this program counts.
    #[error("the list is larger than 4 GiB")]
    Large,
    /// One of these, in a line of a list.
    #[error("line {line}: {what}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        what: Box<Self>,
    },
}
