//! The Python bindings: `ech_workers._native`, one class a file. Types and meanings are documented in `_native.pyi`.

#![allow(
    clippy::needless_pass_by_value,
    reason = "PyO3 hands arguments over by value"
)]

mod certificate;
mod configuration;
mod ech;
mod engine;
mod events;
mod failure;
mod notifier;
mod opening;
mod plan;
mod process;
mod rules;
mod server;
mod snapshot;

use pyo3::prelude::*;

/// The native core of ech_workers.
#[pymodule]
mod _native {
    use super::*;

    #[pymodule_export]
    use crate::certificate::{CertificateAuthority, inspect_certificate};
    #[pymodule_export]
    use crate::configuration::{EngineConfiguration, ServerConfiguration};
    #[pymodule_export]
    use crate::ech::{EchConfig, generate_ech_key, parse_ech_config_list, read_ech_pem};
    #[pymodule_export]
    use crate::engine::{Engine, Listener};
    #[pymodule_export]
    use crate::events::{
        BulkChanged, DialFailed, EchLearned, Echoed, FetchFailed, Fetched, H2Chosen, LogLine,
        NameWanted, SessionLost, SessionUp, SessionsFull, Unreached, Woken,
    };
    #[pymodule_export]
    use crate::failure::Failure;
    #[pymodule_export]
    use crate::opening::{Opening, StreamEnd};
    #[pymodule_export]
    use crate::plan::{DialPlan, FetchPlan};
    #[pymodule_export]
    use crate::rules::Rule;
    #[pymodule_export]
    use crate::server::Server;
    #[pymodule_export]
    use crate::snapshot::{
        ConnectionSnapshot, ServedSession, ServerSnapshot, SessionSnapshot, Snapshot,
        UpstreamSnapshot,
    };

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        process::refuse_other_interpreters(module.py())?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        module.add("BORINGSSL_REVISION", ech_workers_tls::BORINGSSL_REVISION)?;
        module.add("COMMIT", option_env!("ECH_WORKERS_COMMIT"))?;
        let profiles: Vec<&str> = ech_workers_tls::profile::ALL
            .iter()
            .map(|profile| profile.name)
            .collect();
        module.add(
            "PROFILES",
            pyo3::types::PyTuple::new(module.py(), profiles)?,
        )
    }
}
