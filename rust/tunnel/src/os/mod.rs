//! What differs between systems: the sockets that a program gets for a stream, and what a service manager hands over.
//!
//! Both files have the same names; nothing else in this crate asks which system it is on, but for settings of sockets that only one
//! has and that nothing depends on.

#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

#[cfg(unix)]
pub(crate) use unix::{EXHAUSTED, Ours, Peer, activated, socket_pair};
#[cfg(unix)]
pub use unix::{OwnedLocal, RawLocal, release};
#[cfg(windows)]
pub(crate) use windows::{EXHAUSTED, Ours, Peer, activated, socket_pair};
#[cfg(windows)]
pub use windows::{OwnedLocal, RawLocal, release};
