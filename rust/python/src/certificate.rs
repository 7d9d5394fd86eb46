//! A private certificate authority for demonstrations and tests.

use std::time::{Duration, SystemTime};

use ech_workers_tls::authority;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// A private authority (P-256).
#[pyclass(frozen, module = "ech_workers._native")]
pub(crate) struct CertificateAuthority(authority::CertificateAuthority);

#[pymethods]
impl CertificateAuthority {
    #[new]
    fn new() -> PyResult<Self> {
        authority::CertificateAuthority::new()
            .map(Self)
            .map_err(|error| PyValueError::new_err(error.to_string()))
    }

    #[getter]
    fn pem<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let pem = self
            .0
            .root_pem()
            .map_err(|error| PyValueError::new_err(error.to_string()))?;
        Ok(PyBytes::new(py, &pem))
    }

    #[pyo3(signature = (names, *, not_before=-3600, not_after=604_800))]
    fn issue<'py>(
        &self,
        py: Python<'py>,
        names: Vec<String>,
        not_before: i64,
        not_after: i64,
    ) -> PyResult<(Bound<'py, PyBytes>, Bound<'py, PyBytes>)> {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let now = SystemTime::now();
        let validity = authority::Validity {
            not_before: at(now, not_before)?,
            not_after: at(now, not_after)?,
        };
        let issued = self
            .0
            .issue(&names, validity)
            .map_err(|error| PyValueError::new_err(error.to_string()))?;
        Ok((
            PyBytes::new(py, &issued.chain_pem),
            PyBytes::new(py, &issued.key_pem),
        ))
    }
}

/// The DNS names of a server's certificate, and from when to when it is valid (seconds since the epoch).
#[pyfunction]
pub(crate) fn inspect_certificate(
    chain_pem: Vec<u8>,
    key_pem: Vec<u8>,
) -> PyResult<(Vec<String>, i64, i64)> {
    let identity = ech_workers_tls::Identity { chain_pem, key_pem };
    let facts = ech_workers_tls::inspect(&identity)
        .map_err(|error| PyValueError::new_err(error.to_string()))?;
    Ok((facts.names, facts.not_before, facts.not_after))
}

fn at(now: SystemTime, seconds: i64) -> PyResult<SystemTime> {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 {
        now.checked_sub(distance)
    } else {
        now.checked_add(distance)
    };
    time.ok_or_else(|| PyValueError::new_err(format!("{seconds} seconds from now is out of range")))
}
