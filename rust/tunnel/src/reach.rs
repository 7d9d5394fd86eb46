//! Attempts to reach a target by its addresses, and what their failures mean: for the server, and for connections that go
//! directly.

use std::io;
use std::net::IpAddr;

use ech_workers_session::Status;
use futures_util::stream::{Stream, StreamExt};

use crate::race::{HEAD_START, race};

/// Addresses of one target that are tried.
const ADDRESSES_MAX: usize = 8;
/// Addresses of one target that are tried at a time.
const AT_ONCE: usize = 3;

/// Why an address could not be reached, as a status and in words.
pub(crate) type Unreachable = (Status, String);

/// Connects to the first of these addresses that can be reached. An error: what says most about the target; `None`: it has no
/// address.
pub(crate) async fn reach<F, T>(
    addresses: impl Stream<Item = IpAddr>,
    connect: impl FnMut(IpAddr) -> F,
) -> Result<T, Option<Unreachable>>
where
    F: Future<Output = Result<T, Unreachable>>,
{
    let addresses = addresses.take(ADDRESSES_MAX);
    race(addresses, HEAD_START, AT_ONCE, connect)
        .await
        .map_err(|failures| {
            let failures = failures.into_iter();
            failures.max_by_key(|(status, _)| rank(*status))
        })
}

/// How much a failure says about a target with several addresses: what came from it says more than what the way to it said.
const fn rank(status: Status) -> u8 {
    match status {
        Status::Refused => 5,
        Status::TimedOut => 4,
        Status::General => 3,
        Status::HostUnreachable => 2,
        Status::NetworkUnreachable => 1,
        _ => 0,
    }
}

/// What a failed connection attempt means.
pub(crate) fn unreachable(error: &io::Error) -> Unreachable {
    let (status, words) = match error.kind() {
        io::ErrorKind::ConnectionRefused => (Status::Refused, "connection refused"),
        io::ErrorKind::NetworkUnreachable => (Status::NetworkUnreachable, "no route to it"),
        io::ErrorKind::HostUnreachable => (Status::HostUnreachable, "no route to it"),
        io::ErrorKind::TimedOut => (Status::TimedOut, "no answer in time"),
        _ => return (Status::General, error.to_string()),
    };
    (status, words.to_owned())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use futures_util::stream;

    use super::*;

    fn address(last: u8) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, last).into()
    }

    #[tokio::test]
    async fn what_a_target_answers_says_more_than_what_the_way_to_it_says() {
        let kinds = [
            io::ErrorKind::NetworkUnreachable,
            io::ErrorKind::ConnectionRefused,
            io::ErrorKind::HostUnreachable,
        ];
        let addresses = stream::iter((0..3).map(address));
        let mut left = kinds.into_iter();
        let outcome: Result<(), _> = reach(addresses, |_| {
            let failure = unreachable(&left.next().unwrap().into());
            async { Err(failure) }
        })
        .await;
        let expected = (Status::Refused, "connection refused".to_owned());
        assert_eq!(outcome, Err(Some(expected)));
    }

    #[tokio::test]
    async fn no_more_than_eight_addresses_of_a_target_are_tried() {
        let mut tried = 0;
        let outcome: Result<(), _> = reach(stream::iter((0..20).map(address)), |_| {
            tried += 1;
            async { Err((Status::TimedOut, String::new())) }
        })
        .await;
        assert_eq!(outcome, Err(Some((Status::TimedOut, String::new()))));
        assert_eq!(tried, 8);
    }

    #[tokio::test]
    async fn a_target_without_an_address_has_no_failure_of_an_address() {
        let outcome = reach(stream::empty(), |_| async { Ok(()) }).await;
        assert_eq!(outcome, Err(None));
    }
}
