//! The two ends of a stream to the reserved target, which is no host: whoever listens there sends back what comes, so that it shows
//! whether more than the beginning of a connection gets through.

mod answering;
mod asking;

pub(crate) use answering::Answering;
pub(crate) use asking::Asking;

/// The reserved target: a name that no host can have (RFC 6761 section 6.4), and the port of the echo service (RFC 862).
pub(crate) const TARGET: &[u8] = b"echo.invalid:7";

/// What goes each way, in bytes.
const TOTAL: usize = 64 << 10;
