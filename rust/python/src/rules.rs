//! Rules for which way a connection goes.

use std::sync::Arc;

use ech_workers_rules::{self as rules, Mistake, Way};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;

use crate::failure::argument;

/// One rule, compiled.
#[pyclass(frozen, module = "ech_workers._native")]
pub(crate) struct Rule(Arc<rules::Rule>);

#[pymethods]
impl Rule {
    #[new]
    #[pyo3(signature = (to, *, server=0, domains=Vec::new(), exact_domains=Vec::new(), keywords=Vec::new(), domain_lists=Vec::new(), networks=Vec::new(), network_lists=Vec::new(), ports=Vec::new()))]
    #[allow(
        clippy::too_many_arguments,
        reason = "keyword arguments of the Python class"
    )]
    fn new(
        py: Python<'_>,
        to: &str,
        server: u32,
        domains: Vec<String>,
        exact_domains: Vec<String>,
        keywords: Vec<String>,
        domain_lists: Vec<PyBackedBytes>,
        networks: Vec<String>,
        network_lists: Vec<PyBackedBytes>,
        ports: Vec<String>,
    ) -> PyResult<Self> {
        let mut rule = rules::Rule::new(match to {
            "tunnel" => Way::Tunnel,
            "direct" => Way::Direct,
            "block" => Way::Block,
            "server" => Way::Server(server),
            other => {
                return Err(argument(
                    "to",
                    None,
                    format_args!("tunnel, direct, block or server, not {other:?}"),
                ));
            }
        });
        // Millions of lines take a moment.
        py.detach(|| {
            fill("domains", &domains, |one| rule.add_domain(one))?;
            fill("exact_domains", &exact_domains, |one| {
                rule.add_exact_domain(one)
            })?;
            fill("keywords", &keywords, |one| rule.add_keyword(one))?;
            fill("domain_lists", &domain_lists, |one| {
                rule.add_domain_list(one)
            })?;
            fill("networks", &networks, |one| rule.add_network(one))?;
            fill("network_lists", &network_lists, |one| {
                rule.add_network_list(one)
            })?;
            fill("ports", &ports, |one| rule.add_ports(one))
        })?;
        Ok(Self(Arc::new(rule)))
    }
}

impl Rule {
    pub(crate) fn shared(&self) -> Arc<rules::Rule> {
        Arc::clone(&self.0)
    }
}

fn fill<T>(name: &str, all: &[T], mut add: impl FnMut(&T) -> Result<(), Mistake>) -> PyResult<()> {
    for (number, one) in all.iter().enumerate() {
        add(one).map_err(|mistake| argument(name, Some(number), mistake))?;
    }
    Ok(())
}
