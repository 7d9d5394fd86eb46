//! ECH configurations and keys.

use ech_workers_tls::ech::{self, ConfigList, EchKey};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// One entry of an `ECHConfigList`.
#[pyclass(frozen, get_all, module = "ech_workers._native")]
pub(crate) struct EchConfig {
    version: u16,
    config_id: Option<u8>,
    public_name: Option<String>,
    maximum_name_length: Option<u8>,
    kem: Option<u16>,
}

#[pyfunction]
pub(crate) fn parse_ech_config_list(data: &[u8]) -> PyResult<Vec<EchConfig>> {
    let list = ConfigList::parse(data).map_err(|error| PyValueError::new_err(error.to_string()))?;
    let entries = list.configs().iter().map(|config| EchConfig {
        version: ech::VERSION,
        config_id: Some(config.id),
        public_name: Some(config.public_name.clone()),
        maximum_name_length: Some(config.maximum_name_length),
        kem: Some(config.kem),
    });
    Ok(entries.collect())
}

#[pyfunction]
#[pyo3(signature = (config_id, public_name, maximum_name_length=64))]
pub(crate) fn generate_ech_key<'py>(
    py: Python<'py>,
    config_id: u8,
    public_name: &str,
    maximum_name_length: u8,
) -> PyResult<(Bound<'py, PyBytes>, Bound<'py, PyBytes>)> {
    let key = EchKey::generate(config_id, public_name, maximum_name_length)
        .map_err(|error| PyValueError::new_err(error.to_string()))?;
    let list = ech::config_list(std::slice::from_ref(&key));
    Ok((
        PyBytes::new(py, key.to_pem().as_bytes()),
        PyBytes::new(py, &list),
    ))
}

#[pyfunction]
pub(crate) fn read_ech_pem<'py>(
    py: Python<'py>,
    pem: &[u8],
) -> PyResult<(bool, Bound<'py, PyBytes>)> {
    let wrong = |error: &dyn std::fmt::Display| PyValueError::new_err(error.to_string());
    match EchKey::from_pem(&String::from_utf8_lossy(pem)) {
        Ok(keys) => Ok((true, PyBytes::new(py, &ech::config_list(&keys)))),
        Err(ech::EchKeyError::Missing) => {
            let list = ech::decode_list(pem).map_err(|error| wrong(&error))?;
            Ok((false, PyBytes::new(py, &list)))
        }
        Err(error) => Err(wrong(&error)),
    }
}
