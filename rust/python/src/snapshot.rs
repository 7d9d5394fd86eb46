//! Counters at one moment.

use std::collections::BTreeMap;
use std::time::Duration;

use ech_workers_tunnel as tunnel;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

/// One session at one moment.
#[pyclass(frozen, get_all, module = "ech_workers._native")]
pub(crate) struct SessionSnapshot {
    session: u64,
    upstream: u32,
    heard_ago: f64,
    unanswered: Option<f64>,
    address: String,
    state: &'static str,
    streams: u64,
    streams_total: u64,
    age: f64,
    rtt_ms: Option<f64>,
    path_ms: Option<f64>,
    bytes_up: u64,
    bytes_down: u64,
}

/// What was counted for one server so far.
#[pyclass(frozen, get_all, module = "ech_workers._native")]
pub(crate) struct UpstreamSnapshot {
    upstream: u32,
    dials_total: u64,
    dials_failed: u64,
    ech_retries: u64,
    connect_ms: Option<f64>,
    bytes_up: u64,
    bytes_down: u64,
}

impl From<tunnel::UpstreamSnapshot> for UpstreamSnapshot {
    fn from(now: tunnel::UpstreamSnapshot) -> Self {
        Self {
            upstream: now.upstream,
            dials_total: now.dials_total,
            dials_failed: now.dials_failed,
            ech_retries: now.ech_retries,
            connect_ms: now.connect.map(milliseconds),
            bytes_up: now.bytes_up,
            bytes_down: now.bytes_down,
        }
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// The engine's counters at one moment.
#[pyclass(frozen, get_all, module = "ech_workers._native")]
pub(crate) struct Snapshot {
    uptime: f64,
    connections: u64,
    connections_total: u64,
    connections_failed: u64,
    targets_failed: u64,
    last_target_failure: Option<String>,
    connections_waiting: u64,
    direct_total: u64,
    blocked_total: u64,
    bytes_up: u64,
    bytes_down: u64,
    dials_total: u64,
    dials_failed: u64,
    ech_retries: u64,
    upstreams: Py<PyTuple>,
    sessions: Py<PyTuple>,
}

impl Snapshot {
    pub(crate) fn new(py: Python<'_>, now: tunnel::Snapshot) -> PyResult<Self> {
        let sessions = now
            .sessions
            .into_iter()
            .map(|session| Py::new(py, SessionSnapshot::from(session)));
        let sessions = sessions.collect::<PyResult<Vec<_>>>()?;
        let upstreams = now
            .upstreams
            .into_iter()
            .map(|upstream| Py::new(py, UpstreamSnapshot::from(upstream)));
        let upstreams = upstreams.collect::<PyResult<Vec<_>>>()?;
        Ok(Self {
            uptime: now.uptime.as_secs_f64(),
            connections: now.connections,
            connections_total: now.connections_total,
            connections_failed: now.connections_failed,
            targets_failed: now.targets_failed,
            last_target_failure: now.last_target_failure,
            connections_waiting: now.connections_waiting,
            direct_total: now.direct_total,
            blocked_total: now.blocked_total,
            bytes_up: now.bytes_up,
            bytes_down: now.bytes_down,
            dials_total: now.dials_total,
            dials_failed: now.dials_failed,
            ech_retries: now.ech_retries,
            upstreams: PyTuple::new(py, upstreams)?.unbind(),
            sessions: PyTuple::new(py, sessions)?.unbind(),
        })
    }
}

impl From<tunnel::SessionSnapshot> for SessionSnapshot {
    fn from(now: tunnel::SessionSnapshot) -> Self {
        Self {
            session: now.session,
            upstream: now.upstream,
            heard_ago: now.heard.as_secs_f64(),
            unanswered: now.unanswered.map(|time| time.as_secs_f64()),
            address: now.address.to_string(),
            state: if now.retiring { "retiring" } else { "up" },
            streams: now.streams,
            streams_total: now.streams_total,
            age: now.age.as_secs_f64(),
            rtt_ms: now.rtt.map(milliseconds),
            path_ms: now.path.map(milliseconds),
            bytes_up: now.bytes_up,
            bytes_down: now.bytes_down,
        }
    }
}

/// One local connection, or stream of the API, at one moment.
#[pyclass(frozen, get_all, module = "ech_workers._native")]
pub(crate) struct ConnectionSnapshot {
    id: u64,
    target: String,
    protocol: &'static str,
    way: &'static str,
    session: Option<u64>,
    upstream: Option<u32>,
    bytes_up: u64,
    bytes_down: u64,
    age: f64,
}

impl From<tunnel::ConnectionSnapshot> for ConnectionSnapshot {
    fn from(now: tunnel::ConnectionSnapshot) -> Self {
        let (way, session, upstream) = match now.carried {
            tunnel::Carried::Waiting => ("waiting", None, None),
            tunnel::Carried::Direct => ("direct", None, None),
            tunnel::Carried::Session(session, upstream) => {
                ("tunnel", Some(session), Some(upstream))
            }
        };
        Self {
            id: now.id,
            target: now.target,
            protocol: now.protocol,
            way,
            session,
            upstream,
            bytes_up: now.bytes_up,
            bytes_down: now.bytes_down,
            age: now.age.as_secs_f64(),
        }
    }
}

/// One session on the server at one moment.
#[pyclass(frozen, get_all, module = "ech_workers._native")]
pub(crate) struct ServedSession {
    session: u64,
    label: String,
    peer: String,
    mode: Option<&'static str>,
    streams: u64,
    streams_total: u64,
    bytes_up: u64,
    bytes_down: u64,
    age: f64,
}

impl From<tunnel::ServedSession> for ServedSession {
    fn from(now: tunnel::ServedSession) -> Self {
        Self {
            session: now.session,
            label: now.label,
            peer: now.peer.to_string(),
            mode: now.mode,
            streams: now.streams,
            streams_total: now.streams_total,
            bytes_up: now.bytes_up,
            bytes_down: now.bytes_down,
            age: now.age.as_secs_f64(),
        }
    }
}

/// The server's counters at one moment.
#[pyclass(frozen, get_all, module = "ech_workers._native")]
pub(crate) struct ServerSnapshot {
    uptime: f64,
    sessions: u64,
    sessions_total: u64,
    streams: u64,
    streams_total: u64,
    streams_failed: u64,
    echoes_total: u64,
    bytes_up: u64,
    bytes_down: u64,
    handshakes_failed: u64,
    ech_accepted: u64,
    ech_rejected: u64,
    ech_absent: u64,
    ech_by_config: BTreeMap<u8, u64>,
    tokens_rejected: u64,
}

impl ServerSnapshot {
    pub(crate) fn new(server: &tunnel::Server) -> Self {
        let stats = server.stats();
        let streams = &stats.streams;
        Self {
            uptime: server.started().elapsed().as_secs_f64(),
            sessions: stats.sessions.value(),
            sessions_total: stats.sessions_total.value(),
            streams: streams.streams.value(),
            streams_total: streams.streams_total.value(),
            streams_failed: stats.streams_failed.value(),
            echoes_total: stats.echoes_total.value(),
            bytes_up: streams.traffic.up.value(),
            bytes_down: streams.traffic.down.value(),
            handshakes_failed: stats.handshakes_failed.value(),
            ech_accepted: stats.ech_accepted.value(),
            ech_rejected: stats.ech_rejected.value(),
            ech_absent: stats.ech_absent.value(),
            ech_by_config: stats.ech_offered.counted().collect(),
            tokens_rejected: stats.tokens_rejected.value(),
        }
    }
}
