//! What Python asks for: dials and exchanges.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use ech_workers_tls::{Profile, profile};
use ech_workers_tunnel::{self as tunnel, Mode};
use pyo3::prelude::*;

use crate::failure::argument;

/// How to reach one server.
#[pyclass(frozen, module = "ech_workers._native")]
pub(crate) struct DialPlan(pub(crate) tunnel::DialPlan);

#[pymethods]
impl DialPlan {
    #[new]
    #[pyo3(signature = (*, server_name, port, path, token, addresses, ech, profile="firefox", alpn="auto", h2_known=false, mode="yamux", tcp_timeout=5.0, handshake_timeout=10.0, authority_port=None, upstream=0))]
    #[allow(
        clippy::too_many_arguments,
        reason = "keyword arguments of the Python class"
    )]
    fn new(
        server_name: String,
        port: u16,
        path: String,
        token: Option<String>,
        addresses: Vec<String>,
        ech: Option<Vec<u8>>,
        profile: &str,
        alpn: &str,
        h2_known: bool,
        mode: &str,
        tcp_timeout: f64,
        handshake_timeout: f64,
        authority_port: Option<u16>,
        upstream: u32,
    ) -> PyResult<Self> {
        if server_name.is_empty() {
            return Err(argument("server_name", None, "it is empty"));
        }
        Ok(Self(tunnel::DialPlan {
            upstream,
            server_name,
            port: nonzero(port)?,
            authority_port: authority_port.map(nonzero).transpose()?,
            path,
            token,
            addresses: parse_addresses(&addresses)?,
            ech,
            profile: named(profile)?,
            websocket_hello: http1_only(alpn)? || h2_known,
            mode: match mode {
                "yamux" => Mode::Yamux,
                "simple" => Mode::Simple,
                other => {
                    return Err(argument(
                        "mode",
                        None,
                        format_args!("yamux or simple, not {other:?}"),
                    ));
                }
            },
            tcp_timeout: seconds("tcp_timeout", tcp_timeout)?,
            handshake_timeout: seconds("handshake_timeout", handshake_timeout)?,
        }))
    }

    fn __repr__(&self) -> String {
        let plan = &self.0;
        format!(
            "<DialPlan {}:{}{} by {:?}, ech={}>",
            plan.server_name,
            plan.port,
            plan.path,
            plan.addresses,
            plan.ech.is_some()
        )
    }
}

/// One HTTPS exchange with a resolver.
#[pyclass(frozen, module = "ech_workers._native")]
pub(crate) struct FetchPlan(pub(crate) tunnel::FetchPlan);

#[pymethods]
impl FetchPlan {
    #[new]
    #[pyo3(signature = (*, server_name, port, addresses, path, method="POST", body=Vec::new(), profile="firefox", alpn="auto", timeout=5.0, max_body=65536))]
    #[allow(
        clippy::too_many_arguments,
        reason = "keyword arguments of the Python class"
    )]
    fn new(
        server_name: String,
        port: u16,
        addresses: Vec<String>,
        path: String,
        method: &str,
        body: Vec<u8>,
        profile: &str,
        alpn: &str,
        timeout: f64,
        max_body: usize,
    ) -> PyResult<Self> {
        Ok(Self(tunnel::FetchPlan {
            server_name,
            port: nonzero(port)?,
            addresses: parse_addresses(&addresses)?,
            path,
            post: match method {
                "POST" => true,
                "GET" => false,
                other => {
                    return Err(argument(
                        "method",
                        None,
                        format_args!("GET or POST, not {other:?}"),
                    ));
                }
            },
            body: Bytes::from(body),
            profile: named(profile)?,
            http1_only: http1_only(alpn)?,
            timeout: seconds("timeout", timeout)?,
            max_body,
        }))
    }

    fn __repr__(&self) -> String {
        format!(
            "<FetchPlan https://{}:{}{}>",
            self.0.server_name, self.0.port, self.0.path
        )
    }
}

/// A positive number of seconds; a year is for ever.
pub(crate) fn seconds(what: &str, value: f64) -> PyResult<Duration> {
    if value.is_finite() && value > 0.0 {
        Ok(Duration::from_secs_f64(value.min(31_536_000.0)))
    } else {
        Err(argument(
            what,
            None,
            format_args!("a positive number of seconds, not {value}"),
        ))
    }
}

fn nonzero(port: u16) -> PyResult<u16> {
    if port == 0 {
        Err(argument("port", None, "1 to 65535, not 0"))
    } else {
        Ok(port)
    }
}

fn parse_addresses(addresses: &[String]) -> PyResult<Vec<IpAddr>> {
    let bare = |text: &str| {
        text.trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned()
    };
    addresses
        .iter()
        .enumerate()
        .map(|(index, text)| {
            bare(text).parse().map_err(|_| {
                argument(
                    "addresses",
                    Some(index),
                    format_args!("{text:?} is no IP address"),
                )
            })
        })
        .collect()
}

fn named(name: &str) -> PyResult<&'static Profile> {
    Profile::named(name).ok_or_else(|| {
        let known: Vec<&str> = profile::ALL.iter().map(|profile| profile.name).collect();
        argument(
            "profile",
            None,
            format_args!("{name:?} is none of {}", known.join(", ")),
        )
    })
}

fn http1_only(alpn: &str) -> PyResult<bool> {
    match alpn {
        "auto" => Ok(false),
        "http/1.1" => Ok(true),
        other => Err(argument(
            "alpn",
            None,
            format_args!("auto or http/1.1, not {other:?}"),
        )),
    }
}
