//! File descriptors: how many the system allows this process, and what they are for.

use std::io;

use crate::failure::{Code, Layer};
use crate::os;
use crate::seldom::{Seldom, times};

/// For everything that is not counted: standard streams, listeners, event queues, files that are read, the program around us.
const RESERVE: u64 = 64;
/// Connections whose TLS handshake is not over.
const HANDSHAKES: u64 = 1024;
/// Connections of web visitors.
const VISITORS: u64 = 1024;
/// Name look-ups.
const LOOKUPS: u64 = 256;
/// A look-up asks two name servers for two kinds of addresses at a time.
const SOCKETS_OF_LOOKUP: u64 = 4;
/// Attempts to connect to a target.
const ATTEMPTS: u64 = 4096;

/// Raises the soft limit of file descriptors to the hard limit. Returns the limit that holds then, `None` if the system does not
/// say.
pub(crate) fn raise() -> Option<u64> {
    rlimit::increase_nofile_limit(u64::MAX).ok()
}

/// Whether an operation failed because this process or the system has no descriptor left.
pub(crate) fn exhausted(error: &io::Error) -> bool {
    error
        .raw_os_error()
        .is_some_and(|code| os::EXHAUSTED.contains(&code))
}

/// Says once a minute, with a count, that there is no descriptor left, if that is why `what` failed. Whatever had no
/// descriptor: they are the process's.
pub(crate) fn note(what: &str, error: &io::Error) {
    static TOLD: Seldom = Seldom::new();
    if exhausted(error)
        && let Some(count) = TOLD.happened()
    {
        tracing::warn!(
            layer = Layer::Local.name(),
            code = Code::Local.as_str(),
            "{what}: {error}: this process has no file descriptor left{}; raise its limit (ulimit -n, LimitNOFILE= in a \
             systemd unit)",
            times(count)
        );
    }
}

/// How many connections of each kind a server may have, so that together they have a descriptor each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Budget {
    pub(crate) handshakes: usize,
    pub(crate) visitors: usize,
    pub(crate) sessions: usize,
    /// Name look-ups at a time.
    pub(crate) lookups: usize,
    /// Connection attempts at a time.
    pub(crate) attempts: usize,
    /// Sockets of targets, connected or not yet.
    pub(crate) targets: usize,
}

impl Budget {
    /// Divides `limit` descriptors. A quarter of them at least is for targets; what the rest wants beyond three quarters is
    /// reduced in proportion.
    pub(crate) fn new(limit: u64, max_sessions: usize) -> Self {
        let available = limit.saturating_sub(RESERVE.min(limit / 4)).max(8);
        let most = available - available / 4;
        let wanted = HANDSHAKES + VISITORS + max_sessions as u64 + LOOKUPS * SOCKETS_OF_LOOKUP;
        let fit = |want: u64| {
            let part = if wanted <= most {
                want
            } else {
                (u128::from(want) * u128::from(most) / u128::from(wanted)) as u64
            };
            part.max(1)
        };
        let (handshakes, visitors, sessions) =
            (fit(HANDSHAKES), fit(VISITORS), fit(max_sessions as u64));
        let lookups = fit(LOOKUPS * SOCKETS_OF_LOOKUP).div_ceil(SOCKETS_OF_LOOKUP);
        let targets = available
            .saturating_sub(handshakes + visitors + sessions + lookups * SOCKETS_OF_LOOKUP)
            .max(1);
        Self {
            handshakes: handshakes as usize,
            visitors: visitors as usize,
            sessions: sessions as usize,
            lookups: lookups as usize,
            attempts: ATTEMPTS.min(targets.div_ceil(2)) as usize,
            targets: usize::try_from(targets).unwrap_or(usize::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_configured_holds_where_the_system_allows_it() {
        let budget = Budget::new(524_288, 10_000);
        assert_eq!(
            (budget.handshakes, budget.visitors, budget.sessions),
            (1024, 1024, 10_000)
        );
        assert_eq!((budget.lookups, budget.attempts), (256, 4096));
        assert!(budget.targets > 500_000);
    }

    #[test]
    fn all_connections_together_fit_into_the_limit() {
        for limit in [64, 256, 1024, 4096, 20_000, 1_048_576, u64::MAX] {
            for sessions in [1, 20, 10_000, 1_000_000] {
                let budget = Budget::new(limit, sessions);
                let sum = budget.handshakes as u64
                    + budget.visitors as u64
                    + budget.sessions as u64
                    + budget.lookups as u64 * SOCKETS_OF_LOOKUP
                    + budget.targets as u64;
                assert!(sum <= limit, "{limit} {sessions} {budget:?}");
                assert!(budget.sessions >= 1 && budget.attempts >= 1, "{budget:?}");
                // Rounding up gives the others a few more.
                assert!(budget.targets as u64 + 8 >= (limit - RESERVE.min(limit / 4)) / 4);
            }
        }
    }

    #[test]
    fn the_soft_limit_becomes_the_hard_limit() {
        let (_, hard) = rlimit::Resource::NOFILE.get().unwrap();
        assert_eq!(raise(), Some(hard));
        assert_eq!(rlimit::Resource::NOFILE.get_soft().unwrap(), hard);
    }
}
