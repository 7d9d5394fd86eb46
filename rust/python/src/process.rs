//! Which process an object belongs to, and how its calls wait.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pyo3::exceptions::PyImportError;
use pyo3::prelude::*;

use crate::failure::closed_because;

/// How long a wait lasts before signals are looked at.
const SLICE: Duration = Duration::from_millis(50);

/// The process that made an object. A child that was forked has the object's memory, but neither its threads nor a share in
/// its sockets that it could use: there it refuses everything, and is let go of without touching anything.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Process(u32);

impl Process {
    pub(crate) fn current() -> Self {
        Self(std::process::id())
    }

    pub(crate) fn is_current(self) -> bool {
        self.0 == std::process::id()
    }

    /// `EngineClosed` in another process.
    pub(crate) fn check(self, py: Python<'_>) -> PyResult<()> {
        if self.is_current() {
            return Ok(());
        }
        Err(closed_because(
            py,
            "this object belongs to another process: make a new one in the child",
        ))
    }
}

/// Waits until `wait`, which is given how long it may take, has something; in the main thread in slices, so that Ctrl-C is
/// noticed. `None`: the limit has passed.
pub(crate) fn wait<T: Send>(
    py: Python<'_>,
    limit: Option<Duration>,
    wait: impl Fn(Option<Duration>) -> Option<T> + Sync,
) -> PyResult<Option<T>> {
    let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
    let mut slice = Some(SLICE);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let this = match (left, slice) {
            (Some(left), Some(slice)) => Some(left.min(slice)),
            (left, slice) => left.or(slice),
        };
        if let Some(found) = py.detach(|| wait(this)) {
            return Ok(Some(found));
        }
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Ok(None);
        }
        py.check_signals()?;
        if !is_main_thread(py)? {
            // No signal handler runs here: the rest in one go.
            slice = None;
        }
    }
}

/// `ImportError` in a second interpreter of this process: the classes, which are made once, belong to the first.
pub(crate) fn refuse_other_interpreters(py: Python<'_>) -> PyResult<()> {
    /// The interpreter, by the one object that each has of its own.
    static FIRST: AtomicUsize = AtomicUsize::new(0);
    let own = py.import("sys")?.getattr("modules")?.as_ptr() as usize;
    match FIRST.compare_exchange(0, own, Ordering::AcqRel, Ordering::Acquire) {
        Err(first) if first != own => Err(PyImportError::new_err(
            "ech_workers works in one interpreter of a process, not in subinterpreters",
        )),
        _ => Ok(()),
    }
}

fn is_main_thread(py: Python<'_>) -> PyResult<bool> {
    let threading = py.import("threading")?;
    let main: u64 = threading
        .call_method0("main_thread")?
        .getattr("ident")?
        .extract()?;
    let own: u64 = threading.call_method0("get_ident")?.extract()?;
    Ok(main == own)
}
