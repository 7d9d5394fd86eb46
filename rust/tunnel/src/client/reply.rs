//! How the one who asked for a stream is told what came of it.

use ech_workers_proxy::{self as proxy, Request};
use ech_workers_session::Status;

use crate::failure::{Code, Failure, Layer};

/// The one who asked.
#[derive(Debug)]
pub(crate) enum Reply {
    /// A local program, in its proxy protocol.
    Local(Request),
    /// The API, which is told by the end of its stream.
    Api,
}

/// A failure as the API tells it.
pub(crate) fn api_failure(failure: proxy::Failure, reason: &str) -> Failure {
    let (layer, code, why) = match failure {
        proxy::Failure::NotAllowed => (
            Layer::Target,
            Code::TargetNotAllowed,
            "the server does not allow it",
        ),
        proxy::Failure::Blocked => (Layer::Target, Code::TargetBlocked, "a rule blocks it"),
        proxy::Failure::NetworkUnreachable | proxy::Failure::HostUnreachable => {
            (Layer::Target, Code::TargetUnreachable, "no route to it")
        }
        proxy::Failure::ConnectionRefused => {
            (Layer::Target, Code::TargetRefused, "connection refused")
        }
        proxy::Failure::TimedOut => (Layer::Target, Code::TargetTimeout, "no answer in time"),
        proxy::Failure::NameNotFound => (
            Layer::Target,
            Code::TargetNotFound,
            "the name does not exist",
        ),
        proxy::Failure::TunnelDown => (
            Layer::Local,
            Code::NoSession,
            "there is no session to the server",
        ),
        _ => (Layer::Target, Code::TargetFailed, "it failed"),
    };
    Failure::new(layer, code, if reason.is_empty() { why } else { reason })
}

/// A status of the server in the terms of the local protocols.
pub(crate) const fn failure(status: Status) -> proxy::Failure {
    use proxy::Failure as Local;
    match status {
        Status::NotAllowed => Local::NotAllowed,
        Status::NetworkUnreachable => Local::NetworkUnreachable,
        Status::HostUnreachable => Local::HostUnreachable,
        Status::Refused => Local::ConnectionRefused,
        Status::TimedOut => Local::TimedOut,
        Status::NameNotFound => Local::NameNotFound,
        Status::SessionLost => Local::TunnelDown,
        Status::Succeeded
        | Status::General
        | Status::PlatformAddress
        | Status::SocketLimit
        | Status::NoAnswer => Local::General,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_is_told_the_code_that_the_log_has() {
        let failures = Status::ON_THE_WIRE
            .into_iter()
            .filter(|status| *status != Status::Succeeded)
            .chain([Status::NoAnswer]);
        for status in failures {
            assert_eq!(
                api_failure(failure(status), "").code,
                Code::of(status),
                "{status:?}"
            );
        }
    }
}
