//! The server.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ech_workers_tls::{ReplaceError, ServerContext, TicketKeys};
use ech_workers_tunnel::{self as tunnel, ApplyError, Next, ServerConfig};
use pyo3::prelude::*;

use crate::configuration::ServerConfiguration;
use crate::engine::{CLOSING_TURN, at, level};
use crate::events;
use crate::failure::{argument, closed};
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
    #[pyo3(signature = (configuration, *, host, port, workers=0, log_level=20))]
    fn new(
        py: Python<'_>,
        configuration: Bound<'_, ServerConfiguration>,
        host: &str,
        port: u16,
        workers: usize,
        log_level: u8,
    ) -> PyResult<Self> {
        let configuration = configuration.get();
        let config = ServerConfig {
            face: configuration.face.clone(),
            limits: configuration.limits,
            workers,
            log_level: level(log_level),
        };
        let tickets = configuration.ticket_keys.clone().map(|given| {
            let shared = TicketKeys::default();
            shared.set(given);
            shared
        });
        py.detach(|| {
            let tls = ServerContext::with_tickets(&configuration.identities, tickets.clone())
                .map_err(|error| argument("certificates", None, error))?;
            if !configuration.ech_keys.is_empty() {
                tls.set_ech_keys(&configuration.ech_keys)
                    .map_err(|error| argument("ech_keys", None, error))?;
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

    fn apply(&self, py: Python<'_>, configuration: Bound<'_, ServerConfiguration>) -> PyResult<()> {
        let server = self.server(py)?;
        let configuration = configuration.get();
        if configuration.ticket_keys.is_some() != self.tickets.is_some() {
            return Err(argument(
                "ticket_keys",
                None,
                "a server that runs can neither begin with them nor do without",
            ));
        }
        py.detach(|| server.apply(configuration.settings()))
            .map_err(|error| {
                let name = match &error {
                    ApplyError::Tls(ReplaceError::Identities(_)) => "certificates",
                    ApplyError::Tls(ReplaceError::EchKeys(_)) => "ech_keys",
                    ApplyError::Tokens(_) => "tokens",
                };
                argument(name, None, error)
            })?;
        if let (Some(tickets), Some(keys)) = (&self.tickets, &configuration.ticket_keys) {
            tickets.set(keys.clone());
        }
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
