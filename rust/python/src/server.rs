//! The server.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ech_workers_tls::ech::EchKey;
use ech_workers_tls::{Identity, ServerContext, TicketKey, TicketKeys};
use ech_workers_tunnel::{self as tunnel, FaceConfig, Limits, Next, ServerConfig};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::engine::{CLOSING_TURN, at, level};
use crate::events;
use crate::failure::closed;
use crate::plan::seconds;
use crate::process::{Process, wait};
use crate::snapshot::{ServedSession, ServerSnapshot};

/// A token's label, sessions now and so far, bytes up and down.
type TokenStats = (String, u64, u64, u64, u64);

/// The other end of the tunnel.
#[pyclass(frozen, module = "ech_workers._native")]
pub(crate) struct Server {
    process: Process,
    /// Taken when the object is dropped.
    server: Option<tunnel::Server>,
    /// Those that were given; None: they are BoringSSL's own.
    tickets: Option<TicketKeys>,
    events: Arc<tunnel::Events<Infallible>>,
}

impl Server {
    fn server(&self, py: Python<'_>) -> PyResult<&tunnel::Server> {
        self.process.check(py)?;
        self.server.as_ref().ok_or_else(|| closed(py))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.process.is_current() {
            // The parent's threads and sockets are not this process's to end.
            std::mem::forget(self.server.take());
        }
    }
}

#[pymethods]
impl Server {
    #[new]
    #[pyo3(signature = (*, host, port, certificates, tokens, path="/".to_owned(), decoy=None, healthz=false, ech_keys=Vec::new(), ticket_keys=None, allow_private_targets=false, max_sessions=10000, max_streams=1024, memory_limit=268_435_456, connect_timeout=10.0, idle_timeout=600.0, workers=0, log_level=20))]
    #[allow(
        clippy::too_many_arguments,
        reason = "keyword arguments of the Python class"
    )]
    fn new(
        py: Python<'_>,
        host: &str,
        port: u16,
        certificates: Vec<(Vec<u8>, Vec<u8>)>,
        tokens: Vec<(String, String)>,
        path: String,
        decoy: Option<Vec<u8>>,
        healthz: bool,
        ech_keys: Vec<Vec<u8>>,
        ticket_keys: Option<Vec<Vec<u8>>>,
        allow_private_targets: bool,
        max_sessions: usize,
        max_streams: usize,
        memory_limit: usize,
        connect_timeout: f64,
        idle_timeout: f64,
        workers: usize,
        log_level: u8,
    ) -> PyResult<Self> {
        let config = ServerConfig {
            face: face(path, tokens, decoy, healthz)?,
            limits: Limits {
                max_sessions,
                memory_limit,
                max_streams,
                allow_private_targets,
                connect_timeout: seconds("connect_timeout", connect_timeout)?,
                idle_timeout: seconds("idle_timeout", idle_timeout)?,
            },
            workers,
            log_level: level(log_level),
        };
        let identities = identities(certificates);
        let keys = keys(
            &ech_keys
                .iter()
                .map(|pem| (pem.clone(), true))
                .collect::<Vec<_>>(),
        )?;
        let tickets = match ticket_keys {
            None => None,
            Some(given) => {
                let shared = TicketKeys::default();
                shared.set(self::ticket_keys(&given)?);
                Some(shared)
            }
        };
        py.detach(|| {
            let tls = ServerContext::with_tickets(&identities, tickets.clone())
                .map_err(|error| PyValueError::new_err(format!("certificates: {error}")))?;
            if !keys.is_empty() {
                tls.set_ech_keys(&keys)
                    .map_err(|error| PyValueError::new_err(format!("ech_keys: {error}")))?;
            }
            let server = tunnel::Server::new(host, port, config, tls)
                .map_err(|error| at(host, port, error))?;
            let events = Arc::clone(server.events());
            Ok(Self {
                process: Process::current(),
                server: Some(server),
                tickets,
                events,
            })
        })
    }

    #[getter]
    fn address(&self, py: Python<'_>) -> PyResult<(String, u16)> {
        let address = self.server(py)?.address();
        Ok((address.ip().to_string(), address.port()))
    }

    fn set_ech_keys(&self, py: Python<'_>, keys: Vec<(Vec<u8>, bool)>) -> PyResult<()> {
        let server = self.server(py)?;
        let keys = self::keys(&keys)?;
        py.detach(|| server.set_ech_keys(&keys))
            .map_err(|error| PyValueError::new_err(error.to_string()))
    }

    fn set_certificates(
        &self,
        py: Python<'_>,
        certificates: Vec<(Vec<u8>, Vec<u8>)>,
    ) -> PyResult<()> {
        let server = self.server(py)?;
        let identities = identities(certificates);
        py.detach(|| server.set_identities(&identities))
            .map_err(|error| PyValueError::new_err(error.to_string()))
    }

    fn set_ticket_keys(&self, py: Python<'_>, keys: Vec<Vec<u8>>) -> PyResult<()> {
        self.server(py)?;
        let keys = ticket_keys(&keys)?;
        match &self.tickets {
            None => Err(PyValueError::new_err(
                "ticket_keys: the server was made without any",
            )),
            Some(tickets) => {
                tickets.set(keys);
                Ok(())
            }
        }
    }

    #[pyo3(signature = (*, tokens, path="/".to_owned(), decoy=None, healthz=false))]
    fn set_face(
        &self,
        py: Python<'_>,
        tokens: Vec<(String, String)>,
        path: String,
        decoy: Option<Vec<u8>>,
        healthz: bool,
    ) -> PyResult<()> {
        let face = face(path, tokens, decoy, healthz)?;
        self.server(py)?
            .set_face(face)
            .map_err(|error| PyValueError::new_err(error.to_string()))
    }

    #[pyo3(signature = (*, allow_private_targets, max_sessions, max_streams, memory_limit, connect_timeout, idle_timeout))]
    #[allow(
        clippy::too_many_arguments,
        reason = "keyword arguments of the Python method"
    )]
    fn set_limits(
        &self,
        py: Python<'_>,
        allow_private_targets: bool,
        max_sessions: usize,
        max_streams: usize,
        memory_limit: usize,
        connect_timeout: f64,
        idle_timeout: f64,
    ) -> PyResult<()> {
        let server = self.server(py)?;
        let limits = Limits {
            max_sessions,
            memory_limit,
            max_streams,
            allow_private_targets,
            connect_timeout: seconds("connect_timeout", connect_timeout)?,
            idle_timeout: seconds("idle_timeout", idle_timeout)?,
        };
        py.detach(|| server.set_limits(limits));
        Ok(())
    }

    fn tokens(&self, py: Python<'_>) -> PyResult<Vec<TokenStats>> {
        let tokens = self.server(py)?.tokens().into_iter();
        Ok(tokens
            .map(|token| {
                (
                    token.label,
                    token.sessions,
                    token.sessions_total,
                    token.bytes_up,
                    token.bytes_down,
                )
            })
            .collect())
    }

    #[pyo3(signature = (most=1000))]
    fn sessions(&self, py: Python<'_>, most: usize) -> PyResult<Vec<ServedSession>> {
        let server = self.server(py)?;
        let found = py.detach(|| server.sessions(most));
        Ok(found.into_iter().map(ServedSession::from).collect())
    }

    #[pyo3(signature = (timeout))]
    fn next_event(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<Py<PyAny>>> {
        self.process.check(py)?;
        let limit =
            timeout.map(|timeout| Duration::from_secs_f64(timeout.clamp(0.0, 31_536_000.0)));
        let next = wait(py, limit, |slice| match self.events.next(slice) {
            Next::TimedOut => None,
            next => Some(next),
        })?;
        match next {
            Some(Next::Event(never)) => match never {},
            Some(Next::Log(line)) => events::log_line(py, line).map(Some),
            Some(Next::Woken) => events::woken(py).map(Some),
            Some(Next::TimedOut) | None => Ok(None),
            Some(Next::Closed) => Err(closed(py)),
        }
    }

    fn wake(&self, py: Python<'_>) -> PyResult<()> {
        self.process.check(py)?;
        self.events.wake();
        Ok(())
    }

    fn snapshot(&self, py: Python<'_>) -> PyResult<ServerSnapshot> {
        Ok(ServerSnapshot::new(self.server(py)?))
    }

    #[pyo3(signature = (grace=0.0))]
    fn close(&self, py: Python<'_>, grace: f64) -> PyResult<()> {
        let server = self.server(py)?;
        server.drain();
        let deadline = Instant::now() + Duration::from_secs_f64(grace.clamp(0.0, 86_400.0));
        let mut interrupted = Ok(());
        while interrupted.is_ok()
            && server.stats().sessions.value() > 0
            && Instant::now() < deadline
        {
            py.detach(|| std::thread::sleep(CLOSING_TURN));
            interrupted = py.check_signals();
        }
        py.detach(|| server.close(Duration::ZERO));
        interrupted
    }
}

fn face(
    path: String,
    tokens: Vec<(String, String)>,
    decoy: Option<Vec<u8>>,
    healthz: bool,
) -> PyResult<FaceConfig> {
    if tokens.is_empty() || tokens.iter().any(|(token, _)| token.is_empty()) {
        return Err(PyValueError::new_err(
            "tokens: at least one, and none of them empty",
        ));
    }
    if !path.starts_with('/') {
        return Err(PyValueError::new_err(format!(
            "path: it must begin with a slash, not {path:?}"
        )));
    }
    Ok(FaceConfig {
        path,
        tokens,
        decoy,
        healthz,
    })
}

fn identities(certificates: Vec<(Vec<u8>, Vec<u8>)>) -> Vec<Identity> {
    certificates
        .into_iter()
        .map(|(chain_pem, key_pem)| Identity { chain_pem, key_pem })
        .collect()
}

fn ticket_keys(keys: &[Vec<u8>]) -> PyResult<Vec<TicketKey>> {
    keys.iter()
        .map(|key| {
            TicketKey::new(key)
                .ok_or_else(|| PyValueError::new_err("ticket_keys: a key has 80 bytes"))
        })
        .collect()
}

fn keys(pems: &[(Vec<u8>, bool)]) -> PyResult<Vec<EchKey>> {
    let mut keys = Vec::new();
    for (index, (pem, retry)) in pems.iter().enumerate() {
        let read = EchKey::from_pem(&String::from_utf8_lossy(pem))
            .map_err(|error| PyValueError::new_err(format!("ECH key {index}: {error}")))?;
        keys.extend(read.into_iter().map(|key| key.with_retry(*retry)));
    }
    Ok(keys)
}
