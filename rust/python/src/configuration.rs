//! What may be changed while a client or a server runs.

use std::sync::Arc;

use crate::failure::argument;
use crate::plan::seconds;
use crate::rules::Rule;
use ech_workers_rules as rules;
use ech_workers_tls::ech::EchKey;
use ech_workers_tls::{ClientContext, Identity, TicketKey, Trust};
use ech_workers_tunnel::{ClientLimits, ClientSettings, FaceConfig, ServerLimits, ServerSettings};
use pyo3::prelude::*;

/// A client's.
#[pyclass(frozen, module = "ech_workers._native")]
pub(crate) struct EngineConfiguration {
    pub(crate) limits: ClientLimits,
    pub(crate) trust: Trust,
    pub(crate) tls: ClientContext,
    rules: Vec<Arc<rules::Rule>>,
}

#[pymethods]
impl EngineConfiguration {
    #[new]
    #[pyo3(signature = (*, ca_pem=Vec::new(), system_roots=true, rules=Vec::new(), max_connections=4096, open_timeout=8.0, idle_timeout=600.0, memory_limit=268_435_456, reply="optimistic"))]
    #[allow(
        clippy::too_many_arguments,
        reason = "keyword arguments of the Python class"
    )]
    fn new(
        py: Python<'_>,
        ca_pem: Vec<Vec<u8>>,
        system_roots: bool,
        rules: Vec<Bound<'_, Rule>>,
        max_connections: usize,
        open_timeout: f64,
        idle_timeout: f64,
        memory_limit: usize,
        reply: &str,
    ) -> PyResult<Self> {
        let limits = ClientLimits {
            max_connections,
            open_timeout: seconds("open_timeout", open_timeout)?,
            idle_timeout: seconds("idle_timeout", idle_timeout)?,
            memory_limit,
            confirmed: match reply {
                "optimistic" => false,
                "confirmed" => true,
                other => {
                    return Err(argument(
                        "reply",
                        None,
                        format_args!("optimistic or confirmed, not {other:?}"),
                    ));
                }
            },
        };
        let trust = Trust {
            system: system_roots,
            extra_pem: ca_pem,
        };
        let tls = py
            .detach(|| ClientContext::new(&trust))
            .map_err(|error| argument("ca_pem", None, error))?;
        Ok(Self {
            limits,
            trust,
            tls,
            rules: rules.iter().map(|rule| rule.get().shared()).collect(),
        })
    }
}

impl EngineConfiguration {
    /// For a client that believes `present`: where that does not change, its session tickets stay.
    pub(crate) fn settings(&self, present: &Trust) -> ClientSettings {
        ClientSettings {
            limits: self.limits,
            tls: (self.trust != *present).then(|| self.tls.clone()),
            rules: rules::Rules::new(self.rules.clone()),
        }
    }
}

/// A server's.
#[pyclass(frozen, module = "ech_workers._native")]
pub(crate) struct ServerConfiguration {
    pub(crate) identities: Vec<Identity>,
    pub(crate) ech_keys: Vec<EchKey>,
    /// Those that were given; None: they are BoringSSL's own.
    pub(crate) ticket_keys: Option<Vec<TicketKey>>,
    pub(crate) face: FaceConfig,
    pub(crate) limits: ServerLimits,
}

#[pymethods]
impl ServerConfiguration {
    #[new]
    #[pyo3(signature = (*, certificates, tokens, path="/".to_owned(), decoy=None, healthz=false, ech_keys=Vec::new(), ticket_keys=None, allow_private_targets=false, max_sessions=10000, max_streams=1024, memory_limit=268_435_456, connect_timeout=10.0, idle_timeout=600.0))]
    #[allow(
        clippy::too_many_arguments,
        reason = "keyword arguments of the Python class"
    )]
    fn new(
        certificates: Vec<(Vec<u8>, Vec<u8>)>,
        tokens: Vec<(String, String)>,
        path: String,
        decoy: Option<Vec<u8>>,
        healthz: bool,
        ech_keys: Vec<(Vec<u8>, bool)>,
        ticket_keys: Option<Vec<Vec<u8>>>,
        allow_private_targets: bool,
        max_sessions: usize,
        max_streams: usize,
        memory_limit: usize,
        connect_timeout: f64,
        idle_timeout: f64,
    ) -> PyResult<Self> {
        Ok(Self {
            identities: identities(certificates),
            ech_keys: keys(&ech_keys)?,
            ticket_keys: ticket_keys.as_deref().map(self::ticket_keys).transpose()?,
            face: face(path, tokens, decoy, healthz)?,
            limits: ServerLimits {
                max_sessions,
                memory_limit,
                max_streams,
                allow_private_targets,
                connect_timeout: seconds("connect_timeout", connect_timeout)?,
                idle_timeout: seconds("idle_timeout", idle_timeout)?,
            },
        })
    }
}

impl ServerConfiguration {
    pub(crate) fn settings(&self) -> ServerSettings {
        ServerSettings {
            identities: self.identities.clone(),
            ech_keys: self.ech_keys.clone(),
            face: self.face.clone(),
            limits: self.limits,
        }
    }
}

fn face(
    path: String,
    tokens: Vec<(String, String)>,
    decoy: Option<Vec<u8>>,
    healthz: bool,
) -> PyResult<FaceConfig> {
    if tokens.is_empty() || tokens.iter().any(|(token, _)| token.is_empty()) {
        return Err(argument(
            "tokens",
            None,
            "at least one, and none of them empty",
        ));
    }
    if !path.starts_with('/') {
        return Err(argument(
            "path",
            None,
            format_args!("it must begin with a slash, not {path:?}"),
        ));
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
        .enumerate()
        .map(|(index, key)| {
            TicketKey::new(key)
                .ok_or_else(|| argument("ticket_keys", Some(index), "a key has 80 bytes"))
        })
        .collect()
}

fn keys(pems: &[(Vec<u8>, bool)]) -> PyResult<Vec<EchKey>> {
    let mut keys = Vec::new();
    for (index, (pem, retry)) in pems.iter().enumerate() {
        let read = EchKey::from_pem(&String::from_utf8_lossy(pem)).map_err(|error| {
            argument(
                "ech_keys",
                Some(index),
                format_args!("key {index}: {error}"),
            )
        })?;
        keys.extend(read.into_iter().map(|key| key.with_retry(*retry)));
    }
    Ok(keys)
}
