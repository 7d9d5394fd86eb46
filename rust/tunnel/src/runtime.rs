//! The threads of a client or a server.

use std::io;

use tokio::runtime::Runtime;
use tracing::Dispatch;

use crate::log;

/// A runtime whose threads carry `name`.
pub(crate) fn runtime(workers: usize, name: &str, log: Dispatch) -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers.max(1))
        // A driver under load is always ready, and tokio looks at the sockets only every so many polls (61 unless told):
        // everybody else would wait for dozens of its turns.
        .event_interval(1)
        .on_thread_start(move || log::adopt_thread(&log))
        .thread_name(name)
        .enable_all()
        .build()
}
