//! Whole sessions: two endpoints joined, long paths in simulated time, and other implementations at the other end.
#![allow(clippy::unwrap_used)]

mod differential;
mod endpoint;
mod hostile_peer;
mod long_path;
mod two_endpoints;
