//! Why something failed, and the exception it becomes.

use ech_workers_tunnel as tunnel;
use pyo3::call::PyCallArgs;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// Why something failed, for a person and for a program.
#[pyclass(frozen, module = "ech_workers._native")]
#[derive(Clone)]
pub(crate) struct Failure(pub(crate) tunnel::Failure);

#[pymethods]
impl Failure {
    #[getter]
    fn layer(&self) -> &'static str {
        self.0.layer.name()
    }

    #[getter]
    fn code(&self) -> &'static str {
        self.0.code.as_str()
    }

    #[getter]
    fn message(&self) -> &str {
        &self.0.message
    }

    #[getter]
    fn detail(&self) -> Option<&str> {
        self.0.detail.as_deref()
    }

    #[getter]
    fn retry_configs<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
        self.0
            .retry_configs
            .as_deref()
            .map(|configs| PyBytes::new(py, configs))
    }

    #[getter]
    fn retry_after(&self) -> Option<f64> {
        self.0.retry_after.map(|wait| wait.as_secs_f64())
    }

    #[getter]
    fn ech_rejected(&self) -> bool {
        self.0.is_ech_rejected
    }

    fn __repr__(&self) -> String {
        format!(
            "<Failure {} {}: {}>",
            self.layer(),
            self.code(),
            self.message()
        )
    }
}

/// The exception of `ech_workers.errors` that a failure is raised as.
pub(crate) fn raise(py: Python<'_>, failure: tunnel::Failure) -> PyErr {
    let exception = py
        .import("ech_workers.errors")
        .and_then(|errors| errors.getattr("from_failure"))
        .and_then(|from_failure| from_failure.call1((Failure(failure),)));
    match exception {
        Ok(exception) => PyErr::from_value(exception),
        Err(error) => error,
    }
}

/// `ech_workers.arguments.ArgumentError`: what was given cannot be used. `index`: which one, where the argument is a list.
pub(crate) fn argument(name: &str, index: Option<usize>, problem: impl std::fmt::Display) -> PyErr {
    let problem = problem.to_string();
    Python::attach(|py| {
        let exception = py
            .import("ech_workers.arguments")
            .and_then(|arguments| arguments.getattr("ArgumentError"))
            .and_then(|class| class.call1((name, problem, index)));
        match exception {
            Ok(exception) => PyErr::from_value(exception),
            Err(error) => error,
        }
    })
}

/// `EngineClosed`: the engine, or server, was used after its end.
pub(crate) fn closed(py: Python<'_>) -> PyErr {
    engine_closed(py, ())
}

/// `EngineClosed` for another reason.
pub(crate) fn closed_because(py: Python<'_>, message: &str) -> PyErr {
    engine_closed(py, (message,))
}

fn engine_closed<'py>(py: Python<'py>, arguments: impl PyCallArgs<'py>) -> PyErr {
    match py
        .import("ech_workers.errors")
        .and_then(|errors| errors.getattr("EngineClosed"))
        .and_then(|class| class.call1(arguments))
    {
        Ok(exception) => PyErr::from_value(exception),
        Err(error) => error,
    }
}
