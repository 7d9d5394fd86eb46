//! A stream that is being opened, and how an open one ended.

use std::sync::Arc;
use std::time::Duration;

use ech_workers_tunnel as tunnel;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::failure::raise;
use crate::process::{Process, wait};

/// An opening under way.
#[pyclass(frozen, module = "ech_workers._native")]
pub(crate) struct Opening {
    process: Process,
    /// Taken when the object is dropped.
    pending: Option<tunnel::Pending>,
}

impl Opening {
    pub(crate) fn new(pending: tunnel::Pending) -> Self {
        Self {
            process: Process::current(),
            pending: Some(pending),
        }
    }

    fn pending(&self, py: Python<'_>) -> PyResult<&tunnel::Pending> {
        self.process.check(py)?;
        self.pending
            .as_ref()
            .ok_or_else(|| PyRuntimeError::new_err("the opening was dropped"))
    }
}

#[pymethods]
impl Opening {
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let pending = self.pending(py)?;
        let limit =
            timeout.map(|timeout| Duration::from_secs_f64(timeout.clamp(0.0, 31_536_000.0)));
        let ended = wait(py, limit, |slice| {
            pending
                .wait(slice.unwrap_or(Duration::from_secs(3600)))
                .then_some(())
        })?;
        Ok(ended.is_some())
    }

    fn result(&self, py: Python<'_>) -> PyResult<(tunnel::RawLocal, StreamEnd)> {
        match self.pending(py)?.take() {
            Some(Ok(stream)) => {
                let (socket, ending) = stream
                    .into_parts()
                    .ok_or_else(|| PyRuntimeError::new_err("the stream was taken already"))?;
                let end = StreamEnd {
                    process: self.process,
                    ending,
                };
                Ok((tunnel::release(socket), end))
            }
            Some(Err(failure)) => Err(raise(py, failure)),
            None => Err(PyRuntimeError::new_err(
                "there is no result: the opening has not ended, was cancelled, or gave its result already",
            )),
        }
    }

    fn cancel(&self, py: Python<'_>) -> PyResult<()> {
        self.pending(py)?.cancel();
        Ok(())
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if !self.process.is_current() {
            std::mem::forget(self.pending.take());
        }
    }
}

/// How a stream ended.
#[pyclass(frozen, module = "ech_workers._native")]
pub(crate) struct StreamEnd {
    process: Process,
    ending: Arc<tunnel::Ending>,
}

#[pymethods]
impl StreamEnd {
    #[getter]
    fn reason(&self, py: Python<'_>) -> PyResult<Option<&'static str>> {
        self.process.check(py)?;
        Ok(self.ending.get().map(|ended| match ended {
            tunnel::StreamEnded::Data => "data",
            tunnel::StreamEnded::Reset => "reset",
            tunnel::StreamEnded::SessionLost => "session-lost",
            tunnel::StreamEnded::Idle => "idle",
        }))
    }
}
