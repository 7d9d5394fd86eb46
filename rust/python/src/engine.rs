//! The client.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ech_workers_proxy::{Credentials, Host, Target};
use ech_workers_sync::{Mutex, RwLock};
use ech_workers_tls::Trust;
use ech_workers_tunnel::{self as tunnel, Client, ClientConfig, Next, Resolved};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::configuration::EngineConfiguration;
use crate::events;
use crate::failure::closed;
use crate::notifier::Notifier;
use crate::opening::Opening;
use crate::plan::{DialPlan, FetchPlan, seconds};
use crate::process::{Process, wait};
use crate::snapshot::{ConnectionSnapshot, Snapshot};

/// How often the end of the last stream is looked for, while the client is being closed.
pub(crate) const CLOSING_TURN: Duration = Duration::from_millis(10);

/// The client: local listeners, sessions, the relay.
#[pyclass(frozen, module = "ech_workers._native")]
pub(crate) struct Engine {
    process: Process,
    /// Taken when it is closed: what the client owns (threads, descriptors) ends with it.
    client: RwLock<Option<Arc<Client>>>,
    /// Whom it believes now.
    trust: Mutex<Trust>,
    events: Arc<tunnel::Events<tunnel::Event>>,
    notifier: Mutex<Notifier>,
}

impl Engine {
    fn client(&self, py: Python<'_>) -> PyResult<Arc<Client>> {
        self.process.check(py)?;
        self.client.read().clone().ok_or_else(|| closed(py))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if !self.process.is_current() {
            // The parent's threads and sockets are not this process's to end.
            std::mem::forget(self.client.get_mut().take());
        }
    }
}

#[pymethods]
impl Engine {
    #[new]
    #[pyo3(signature = (configuration, *, local_handshake_timeout=10.0, half_closed_timeout=60.0, ping_interval=28.0, ping_timeout=10.0, receive_window_max=16_777_216, workers=1, log_level=20))]
    #[allow(
        clippy::too_many_arguments,
        reason = "keyword arguments of the Python class"
    )]
    fn new(
        py: Python<'_>,
        configuration: Bound<'_, EngineConfiguration>,
        local_handshake_timeout: f64,
        half_closed_timeout: f64,
        ping_interval: f64,
        ping_timeout: f64,
        receive_window_max: u32,
        workers: usize,
        log_level: u8,
    ) -> PyResult<Self> {
        let configuration = configuration.get();
        let config = ClientConfig {
            limits: configuration.limits,
            local_handshake_timeout: seconds("local_handshake_timeout", local_handshake_timeout)?,
            half_closed_timeout: seconds("half_closed_timeout", half_closed_timeout)?,
            ping_interval: seconds("ping_interval", ping_interval)?,
            ping_timeout: seconds("ping_timeout", ping_timeout)?,
            receive_window_max,
            workers,
            log_level: level(log_level),
        };
        py.detach(|| {
            let client = Client::new(config, configuration.tls.clone())?;
            client.apply(configuration.settings(&configuration.trust));
            let events = Arc::clone(client.events());
            Ok(Self {
                process: Process::current(),
                client: RwLock::new(Some(Arc::new(client))),
                trust: Mutex::new(configuration.trust.clone()),
                events,
                notifier: Mutex::default(),
            })
        })
    }

    fn apply(&self, py: Python<'_>, configuration: Bound<'_, EngineConfiguration>) -> PyResult<()> {
        let client = self.client(py)?;
        let configuration = configuration.get();
        py.detach(|| {
            // Held to the end: one at a time.
            let mut trust = self.trust.lock();
            client.apply(configuration.settings(&trust));
            trust.clone_from(&configuration.trust);
        });
        Ok(())
    }

    #[pyo3(signature = (host, port, *, username=None, password=None))]
    fn listen(
        &self,
        py: Python<'_>,
        host: &str,
        port: u16,
        username: Option<&str>,
        password: Option<&str>,
    ) -> PyResult<Listener> {
        let credentials = match (username, password) {
            (None, None) => None,
            (username, password) => Some(
                Credentials::new(username.unwrap_or_default(), password.unwrap_or_default())
                    .map_err(|error| PyValueError::new_err(error.to_string()))?,
            ),
        };
        let client = self.client(py)?;
        let listener = py
            .detach(|| client.listen(host, port, credentials))
            .map_err(|error| at(host, port, error))?;
        Ok(Listener {
            process: self.process,
            listener,
        })
    }

    #[pyo3(signature = (plan, upstream=0))]
    fn set_plan(&self, py: Python<'_>, plan: Option<&DialPlan>, upstream: u32) -> PyResult<()> {
        self.client(py)?
            .set_plan(upstream, plan.map(|plan| plan.0.clone()));
        Ok(())
    }

    fn route(&self, py: Python<'_>, tiers: Vec<Vec<(u32, u32)>>) -> PyResult<()> {
        self.client(py)?.route(tiers);
        Ok(())
    }

    fn dial(&self, py: Python<'_>, plan: &DialPlan) -> PyResult<u64> {
        Ok(self.client(py)?.dial(plan.0.clone()))
    }

    fn retire(&self, py: Python<'_>, session: u64) -> PyResult<()> {
        self.client(py)?.retire(session);
        Ok(())
    }

    #[pyo3(signature = (session=None))]
    fn probe(&self, py: Python<'_>, session: Option<u64>) -> PyResult<()> {
        self.client(py)?.probe(session);
        Ok(())
    }

    fn echo(&self, py: Python<'_>, session: u64, upstream: u32) -> PyResult<u64> {
        Ok(self.client(py)?.echo(session, upstream))
    }

    fn echo_alone(&self, py: Python<'_>, plan: &DialPlan) -> PyResult<u64> {
        Ok(self.client(py)?.echo_alone(plan.0.clone()))
    }

    #[pyo3(signature = (reason, code=""))]
    fn unavailable(&self, py: Python<'_>, reason: Option<String>, code: &str) -> PyResult<()> {
        self.client(py)?.set_unavailable(reason, code);
        Ok(())
    }

    fn fetch(&self, py: Python<'_>, plan: &FetchPlan) -> PyResult<u64> {
        Ok(self.client(py)?.fetch(plan.0.clone()))
    }

    #[pyo3(signature = (host, port, timeout=None, done=None))]
    fn open(
        &self,
        py: Python<'_>,
        host: &str,
        port: u16,
        timeout: Option<f64>,
        done: Option<Py<PyAny>>,
    ) -> PyResult<Opening> {
        let client = self.client(py)?;
        let timeout = timeout
            .map(|timeout| seconds("timeout", timeout))
            .transpose()?;
        let target = target(host, port)?;
        let done = match done {
            None => None,
            Some(callback) => {
                let due = self.notifier.lock().sender()?;
                let done: tunnel::Done = Box::new(move || {
                    // The thread ends with the interpreter; nobody waits then.
                    let _ = due.send(callback);
                });
                Some(done)
            }
        };
        Ok(Opening::new(client.open(&target, timeout, done)))
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
            Some(Next::Event(event)) => events::event(py, event).map(Some),
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

    fn snapshot(&self, py: Python<'_>) -> PyResult<Snapshot> {
        Snapshot::new(py, self.client(py)?.snapshot())
    }

    fn forget_names(&self, py: Python<'_>) -> PyResult<()> {
        self.client(py)?.forget_names();
        Ok(())
    }

    fn resolved(
        &self,
        py: Python<'_>,
        name: &str,
        addresses: Option<Vec<String>>,
        ttl: f64,
    ) -> PyResult<()> {
        let answer = match addresses {
            None => Resolved::Failed,
            Some(addresses) if addresses.is_empty() => Resolved::NotFound,
            Some(addresses) => {
                let parsed = addresses.iter().map(|address| address.parse::<IpAddr>());
                let parsed = parsed.collect::<Result<Vec<_>, _>>();
                Resolved::Addresses(
                    parsed
                        .map_err(|error| PyValueError::new_err(format!("addresses: {error}")))?
                        .into(),
                )
            }
        };
        let client = self.client(py)?;
        client.resolved(
            name,
            answer,
            Duration::from_secs_f64(ttl.clamp(0.0, 86_400.0)),
        );
        Ok(())
    }

    fn connections<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let all = self.client(py)?.connections().into_iter();
        let all = all.map(|one| Py::new(py, ConnectionSnapshot::from(one)));
        PyTuple::new(py, all.collect::<PyResult<Vec<_>>>()?)
    }

    fn cut(&self, py: Python<'_>, connection: u64) -> PyResult<bool> {
        Ok(self.client(py)?.cut(connection))
    }

    #[pyo3(signature = (grace=0.0))]
    fn close(&self, py: Python<'_>, grace: f64) -> PyResult<()> {
        self.process.check(py)?;
        let Some(client) = self.client.read().clone() else {
            return Ok(());
        };
        client.stop();
        let deadline = Instant::now() + Duration::from_secs_f64(grace.clamp(0.0, 86_400.0));
        let mut interrupted = Ok(());
        while interrupted.is_ok() && !client.is_idle() && Instant::now() < deadline {
            py.detach(|| std::thread::sleep(CLOSING_TURN));
            interrupted = py.check_signals();
        }
        py.detach(|| {
            client.close(Duration::ZERO);
            self.client.write().take();
            drop(client);
            let thread = self.notifier.lock().stop();
            if let Some(thread) = thread {
                // It has nothing left to say but what is said already.
                let _ = thread.join();
            }
        });
        interrupted
    }
}

/// An open local port.
#[pyclass(frozen, module = "ech_workers._native")]
pub(crate) struct Listener {
    process: Process,
    listener: tunnel::Listener,
}

#[pymethods]
impl Listener {
    #[getter]
    fn address(&self) -> (String, u16) {
        let address = self.listener.address();
        (address.ip().to_string(), address.port())
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.process.check(py)?;
        py.detach(|| self.listener.close());
        Ok(())
    }
}

/// logging's number as a filter.
pub(crate) fn level(number: u8) -> tracing::level_filters::LevelFilter {
    use tracing::level_filters::LevelFilter;
    match number {
        0..=10 => LevelFilter::DEBUG,
        11..=20 => LevelFilter::INFO,
        21..=30 => LevelFilter::WARN,
        _ => LevelFilter::ERROR,
    }
}

/// An error of the system with the address in it, and its errno kept.
pub(crate) fn at(host: &str, port: u16, error: std::io::Error) -> PyErr {
    match error.raw_os_error() {
        Some(code) => PyOSError::new_err((
            code,
            format!("{host}:{port}: {}", std::io::Error::from_raw_os_error(code)),
        )),
        None => PyOSError::new_err(format!("{host}:{port}: {error}")),
    }
}

fn target(host: &str, port: u16) -> PyResult<Target> {
    let host = match host.trim_start_matches('[').trim_end_matches(']').parse() {
        Ok(address) => Host::Ip(address),
        Err(_) => Host::from_name(host)
            .map_err(|error| PyValueError::new_err(format!("{host:?}: {error}")))?,
    };
    if port == 0 {
        return Err(PyValueError::new_err("port: 1 to 65535, not 0"));
    }
    Ok(Target { host, port })
}
