//! Conversations with local programs, up to the point where it is known where they want to go.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ech_workers_proxy::{Credentials, Negotiation, Progress, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::counters::{Counted, Counter};

/// How long a refused program may take to read the refusal.
const LINGER: Duration = Duration::from_secs(1);

/// How many local connections there may be. The limit may change: those that are there stay.
#[derive(Debug)]
pub(crate) struct Places {
    limit: AtomicUsize,
    taken: AtomicUsize,
}

impl Places {
    pub(crate) const fn new(limit: usize) -> Self {
        Self {
            limit: AtomicUsize::new(limit),
            taken: AtomicUsize::new(0),
        }
    }

    /// Another limit, for the connections that come from now on.
    pub(crate) fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    fn take(self: &Arc<Self>) -> Option<Taken> {
        let limit = self.limit.load(Ordering::Relaxed);
        self.taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                (taken < limit).then_some(taken + 1)
            })
            .ok()?;
        Some(Taken(Arc::clone(self)))
    }
}

/// One of the [`Places`], given back when it is dropped.
#[derive(Debug)]
struct Taken(Arc<Places>);

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A place among the limited local connections, given up when the connection ends.
#[derive(Debug)]
pub(crate) struct LocalPlace {
    _counted: Counted,
    _taken: Taken,
    /// Among the connections of one thread.
    _of_thread: Option<Counted>,
}

impl LocalPlace {
    pub(crate) fn take(places: &Arc<Places>, counter: &Arc<Counter>) -> Option<Self> {
        let taken = places.take()?;
        Some(Self {
            _counted: Counted::new(counter),
            _taken: taken,
            _of_thread: None,
        })
    }

    /// Counted among the connections of one thread, too.
    pub(crate) fn on_thread(self, connections: &Arc<Counter>) -> Self {
        Self {
            _of_thread: Some(Counted::new(connections)),
            ..self
        }
    }
}

/// Speaks with a local program up to its request. `None`: it was refused, or went away.
pub(crate) async fn negotiate(
    tcp: &mut TcpStream,
    credentials: Option<Credentials>,
    limit: Duration,
) -> Option<Request> {
    let mut negotiation = Negotiation::new(credentials);
    let progress = match timeout(limit, converse(tcp, &mut negotiation)).await {
        Ok(progress) => progress?,
        Err(_) => negotiation.timed_out(),
    };
    match progress {
        Progress::Request(request) => Some(request),
        Progress::Reject { reply, error } => {
            tracing::debug!("a local program was refused: {error}");
            refuse(tcp, &reply).await;
            None
        }
        Progress::NeedMore | Progress::Send(_) => None,
    }
}

async fn converse(tcp: &mut TcpStream, negotiation: &mut Negotiation) -> Option<Progress> {
    let mut buffer = [0; 2048];
    let mut input = 0..0;
    loop {
        match negotiation.advance(&buffer[input.clone()]) {
            Progress::NeedMore => {
                let n = tcp.read(&mut buffer).await.ok()?;
                if n == 0 {
                    return Some(negotiation.end_of_input());
                }
                input = 0..n;
            }
            Progress::Send(bytes) => {
                tcp.write_all(&bytes).await.ok()?;
                input = 0..0;
            }
            end => return Some(end),
        }
    }
}

/// Writes a refusal and gives the program time to read it: a close with unread bytes would reset the connection.
async fn refuse(tcp: &mut TcpStream, reply: &[u8]) {
    let gentle = async {
        tcp.write_all(reply).await?;
        tcp.shutdown().await?;
        let mut rest = [0; 1024];
        while tcp.read(&mut rest).await? > 0 {}
        std::io::Result::Ok(())
    };
    // Whatever goes wrong here, the connection is over.
    let _ = timeout(LINGER, gentle).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_limit_of_places_holds_for_those_who_come() {
        let (places, counter) = (Arc::new(Places::new(1)), Arc::default());
        let take = || LocalPlace::take(&places, &counter);
        let first = take();
        assert!(first.is_some() && take().is_none());
        places.set_limit(3);
        let others = [take(), take()];
        assert!(others.iter().all(Option::is_some) && take().is_none());
        places.set_limit(2);
        drop(first);
        assert!(take().is_none());
        drop(others);
        assert!(take().is_some());
    }
}
