//! What the engine reports.

use std::time::Duration;

use ech_workers_tunnel::{self as tunnel, Dialed, Echo, Event, Learned};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};

use crate::failure::Failure;

/// A session is ready.
#[pyclass(frozen, module = "ech_workers._native")]
pub(crate) struct SessionUp {
    #[pyo3(get)]
    dial: u64,
    #[pyo3(get)]
    session: u64,
    #[pyo3(get)]
    upstream: u32,
    dialed: Box<Dialed>,
}

#[pymethods]
impl SessionUp {
    #[getter]
    fn address(&self) -> String {
        self.dialed.address.to_string()
    }

    #[getter]
    fn ech(&self) -> &'static str {
        if self.dialed.ech_accepted {
            "accepted"
        } else {
            "off"
        }
    }

    #[getter]
    fn public_name(&self) -> Option<&str> {
        self.dialed.public_name.as_deref()
    }

    #[getter]
    fn profile(&self) -> &'static str {
        self.dialed.profile
    }

    #[getter]
    fn hello(&self) -> &'static str {
        if self.dialed.websocket_hello {
            "websocket"
        } else {
            "first-contact"
        }
    }

    #[getter]
    fn alpn(&self) -> Option<&str> {
        self.dialed.alpn.as_deref()
    }

    #[getter]
    fn cipher(&self) -> &'static str {
        self.dialed.cipher
    }

    #[getter]
    fn group(&self) -> &'static str {
        self.dialed.group
    }

    #[getter]
    fn resumed(&self) -> bool {
        self.dialed.resumed
    }

    #[getter]
    fn tcp_ms(&self) -> f64 {
        milliseconds(self.dialed.tcp)
    }

    #[getter]
    fn tls_ms(&self) -> f64 {
        milliseconds(self.dialed.tls)
    }

    #[getter]
    fn websocket_ms(&self) -> f64 {
        milliseconds(self.dialed.websocket)
    }

    #[getter]
    fn features<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &self.dialed.features)
    }

    #[getter]
    fn retried(&self) -> bool {
        self.dialed.retried
    }
}

/// A session takes no new streams any more.
#[pyclass(frozen, get_all, module = "ech_workers._native")]
pub(crate) struct SessionLost {
    session: u64,
    upstream: u32,
    failure: Failure,
    age: f64,
    received: u64,
}

/// Every session of a server has as many streams as the server allows.
#[pyclass(frozen, get_all, module = "ech_workers._native")]
pub(crate) struct SessionsFull {
    upstream: u32,
}

/// A dial failed.
#[pyclass(frozen, get_all, module = "ech_workers._native")]
pub(crate) struct DialFailed {
    dial: u64,
    upstream: u32,
    failure: Failure,
}

/// Authenticated retry configurations came from the server.
#[pyclass(frozen, module = "ech_workers._native")]
pub(crate) struct EchLearned {
    #[pyo3(get)]
    upstream: u32,
    #[pyo3(get)]
    server_name: String,
    configs: Vec<u8>,
}

#[pymethods]
impl EchLearned {
    #[getter]
    fn configs<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.configs)
    }
}

/// The server chooses h2 when it is offered.
#[pyclass(frozen, get_all, module = "ech_workers._native")]
pub(crate) struct H2Chosen {
    upstream: u32,
    server_name: String,
}

/// A session has another number of bulk transfers.
#[pyclass(frozen, get_all, module = "ech_workers._native")]
pub(crate) struct BulkChanged {
    session: u64,
    upstream: u32,
    streams: u64,
    growing: bool,
}

/// A server was to send back 64 KiB.
#[pyclass(frozen, get_all, module = "ech_workers._native")]
pub(crate) struct Echoed {
    echo: u64,
    upstream: u32,
    address: Option<String>,
    outcome: &'static str,
    ms: Option<f64>,
    received: u64,
}

/// A server cannot reach a target, and the stream goes to another one.
#[pyclass(frozen, get_all, module = "ech_workers._native")]
pub(crate) struct Unreached {
    upstream: u32,
    kind: &'static str,
    reason: String,
    tried: Vec<u32>,
}

/// The answer of an exchange.
#[pyclass(frozen, module = "ech_workers._native")]
pub(crate) struct Fetched {
    #[pyo3(get)]
    fetch: u64,
    fetched: tunnel::Fetched,
}

#[pymethods]
impl Fetched {
    #[getter]
    fn status(&self) -> u16 {
        self.fetched.status
    }

    #[getter]
    fn headers(&self) -> Vec<(String, String)> {
        self.fetched.headers.clone()
    }

    #[getter]
    fn body<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.fetched.body)
    }

    #[getter]
    fn http_version(&self) -> &'static str {
        if self.fetched.http2 { "h2" } else { "http/1.1" }
    }

    #[getter]
    fn ms(&self) -> f64 {
        milliseconds(self.fetched.elapsed)
    }
}

/// An exchange failed.
#[pyclass(frozen, get_all, module = "ech_workers._native")]
pub(crate) struct FetchFailed {
    fetch: u64,
    failure: Failure,
}

/// The addresses of a name are wanted.
#[pyclass(frozen, get_all, module = "ech_workers._native")]
pub(crate) struct NameWanted {
    name: String,
}

/// Another thread wants the loop's attention.
#[pyclass(frozen, module = "ech_workers._native")]
pub(crate) struct Woken;

/// A line for Python's logging.
#[pyclass(frozen, module = "ech_workers._native")]
pub(crate) struct LogLine(tunnel::LogLine);

#[pymethods]
impl LogLine {
    #[getter]
    fn level(&self) -> u8 {
        match self.0.level {
            tracing::Level::ERROR => 40,
            tracing::Level::WARN => 30,
            tracing::Level::INFO => 20,
            tracing::Level::DEBUG | tracing::Level::TRACE => 10,
        }
    }

    #[getter]
    fn target(&self) -> &'static str {
        self.0.target
    }

    #[getter]
    fn message(&self) -> &str {
        &self.0.message
    }

    #[getter]
    fn layer(&self) -> Option<&str> {
        self.0.about.layer.as_deref()
    }

    #[getter]
    fn code(&self) -> Option<&str> {
        self.0.about.code.as_deref()
    }

    #[getter]
    fn session(&self) -> Option<u64> {
        self.0.about.session
    }

    #[getter]
    fn upstream(&self) -> Option<u32> {
        self.0.about.upstream
    }
}

/// An event as its Python class.
pub(crate) fn event(py: Python<'_>, event: Event) -> PyResult<Py<PyAny>> {
    Ok(match event {
        Event::SessionUp {
            dial,
            session,
            upstream,
            dialed,
        } => Py::new(
            py,
            SessionUp {
                dial,
                session,
                upstream,
                dialed,
            },
        )?
        .into_any(),
        Event::SessionLost {
            session,
            upstream,
            ended,
            age,
            received,
        } => Py::new(
            py,
            SessionLost {
                session,
                upstream,
                failure: Failure(ended.into()),
                age: age.as_secs_f64(),
                received,
            },
        )?
        .into_any(),
        Event::SessionsFull { upstream } => Py::new(py, SessionsFull { upstream })?.into_any(),
        Event::DialFailed {
            dial,
            upstream,
            failure,
        } => Py::new(
            py,
            DialFailed {
                dial,
                upstream,
                failure: Failure(failure),
            },
        )?
        .into_any(),
        Event::Learned {
            upstream,
            server_name,
            what: Learned::Ech(configs),
        } => Py::new(
            py,
            EchLearned {
                upstream,
                server_name,
                configs,
            },
        )?
        .into_any(),
        Event::Learned {
            upstream,
            server_name,
            what: Learned::H2,
        } => Py::new(
            py,
            H2Chosen {
                upstream,
                server_name,
            },
        )?
        .into_any(),
        Event::BulkChanged {
            session,
            upstream,
            streams,
            growing,
        } => Py::new(
            py,
            BulkChanged {
                session,
                upstream,
                streams,
                growing,
            },
        )?
        .into_any(),
        Event::Echoed {
            echo,
            upstream,
            address,
            outcome,
            received,
        } => {
            let (outcome, ms) = match outcome {
                Echo::Passed(took) => ("passed", Some(milliseconds(took))),
                Echo::Stopped => ("stopped", None),
                Echo::Failed => ("failed", None),
                Echo::Busy => ("busy", None),
            };
            let address = address.map(|address| address.to_string());
            let echoed = Echoed {
                echo,
                upstream,
                address,
                outcome,
                ms,
                received,
            };
            Py::new(py, echoed)?.into_any()
        }
        Event::Unreached {
            upstream,
            kind,
            reason,
            tried,
        } => Py::new(
            py,
            Unreached {
                upstream,
                kind,
                reason,
                tried,
            },
        )?
        .into_any(),
        Event::NameWanted(name) => Py::new(py, NameWanted { name })?.into_any(),
        Event::Fetched { fetch, fetched } => Py::new(py, Fetched { fetch, fetched })?.into_any(),
        Event::FetchFailed { fetch, failure } => Py::new(
            py,
            FetchFailed {
                fetch,
                failure: Failure(failure),
            },
        )?
        .into_any(),
    })
}

/// A log line as its Python class.
pub(crate) fn log_line(py: Python<'_>, line: tunnel::LogLine) -> PyResult<Py<PyAny>> {
    Ok(Py::new(py, LogLine(line))?.into_any())
}

/// The end of a wait that another thread asked for.
pub(crate) fn woken(py: Python<'_>) -> PyResult<Py<PyAny>> {
    Ok(Py::new(py, Woken)?.into_any())
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
