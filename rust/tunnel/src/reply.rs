//! How the one who asked for a stream is told what came of it.

use std::io;
use std::task::{Context, Waker};

use ech_workers_proxy::{self as proxy, Request};

use crate::endpoint::{Endpoint, Socket};
use crate::failure::{Code, Failure, Layer};
use crate::preamble::Status;

/// The one who asked.
#[derive(Debug)]
pub(crate) enum Reply {
    /// A local program, in its proxy protocol.
    Local(Request),
    /// The API, which is told by the end of its stream.
    Api,
}

impl Reply {
    /// Tells of success.
    pub(crate) fn succeed(self, endpoint: &mut Endpoint, cx: &mut Context<'_>) -> io::Result<()> {
        match self {
            Self::Local(request) => endpoint.tell(cx, &request.success()),
            Self::Api => endpoint.socket.opened(),
        }
    }

    /// Tells of a failure and closes the socket. A local program hears the `cause`, which may be empty, the API's user the
    /// `reason`.
    pub(crate) fn refuse(
        self,
        mut endpoint: Endpoint,
        failure: proxy::Failure,
        cause: &'static str,
        reason: &str,
    ) {
        match self {
            Self::Local(request) => {
                let bytes = request.failure(failure, cause);
                // A few bytes into a fresh socket's empty buffer: there is nothing to wait for, and no one to tell otherwise.
                let _: io::Result<()> =
                    endpoint.tell(&mut Context::from_waker(Waker::noop()), &bytes);
                endpoint.socket.finish();
            }
            Self::Api => {
                if let Socket::Stream(stream) = endpoint.socket {
                    stream.refuse(api_failure(failure, reason));
                }
            }
        }
    }
}

/// A failure as the API tells it.
fn api_failure(failure: proxy::Failure, reason: &str) -> Failure {
    let (layer, code, why) = match failure {
        proxy::Failure::NotAllowed => (
            Layer::Target,
            Code::TargetNotAllowed,
            "the server does not allow it",
        ),
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

impl From<Status> for proxy::Failure {
    fn from(status: Status) -> Self {
        match status {
            Status::NotAllowed => Self::NotAllowed,
            Status::NetworkUnreachable => Self::NetworkUnreachable,
            Status::HostUnreachable => Self::HostUnreachable,
            Status::Refused => Self::ConnectionRefused,
            Status::TimedOut => Self::TimedOut,
            Status::NameNotFound => Self::NameNotFound,
            Status::Succeeded | Status::General => Self::General,
        }
    }
}
