//! Whether more than the beginning of a connection gets through: a server that announces it sends back 64 KiB. What that says of a
//! server is its owner's to decide.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ech_workers_session::Open;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::client::ClientState;
use crate::client::dial::DialPlan;
use crate::client::event::{Echo, Event};
use crate::client::load::Ticket;
use crate::client::pool::Purpose;
use crate::client::program::Program;
use crate::client::reply::Reply;
use crate::client::sessions::Running;
use crate::driver::{Handle, SessionStats};
use crate::echo::{Asking, TARGET};
use crate::panics::caught;
use crate::socket::Socket;

/// Nothing gets through any more when nothing at all has come from the server for so long.
const SILENT: Duration = Duration::from_secs(5);
/// How often it is looked whether that is so.
const LOOK: Duration = Duration::from_millis(250);
/// How long all of it may take.
const LIMIT: Duration = Duration::from_secs(60);

impl ClientState {
    /// Has the server of a session, by its number, send back 64 KiB, and reports what came of it.
    pub(super) async fn echo(self: Arc<Self>, number: u64, session: u64, upstream: u32) {
        let (outcome, received) = match self.pool.place_for_echo(session) {
            Ok((handle, ticket, stats)) => {
                let asking = ask(&handle, &stats, upstream, Some(ticket));
                let outcome = caught(asking).await.unwrap_or(Echo::Failed);
                (outcome, stats.traffic.down.value())
            }
            Err(why) => (why, 0),
        };
        self.tell_echoed(number, upstream, None, outcome, received);
    }

    /// Dials for one exchange with the reserved target, and ends the connection with it.
    pub(super) async fn echo_alone(self: Arc<Self>, number: u64, plan: DialPlan) {
        let upstream = plan.upstream;
        let tell = move |shared: &Self, address, outcome, received| {
            shared.tell_echoed(number, upstream, address, outcome, received);
        };
        let (carrier, dialed) = match self.dial(0, &plan).await {
            Ok(made) => made,
            Err(failure) => {
                tell(&self, None, Echo::Failed, 0);
                return self.tell_dial_failed(0, &plan, failure);
            }
        };
        let address = Some(dialed.address);
        let (thread, counted) = self.threads.least_busy();
        let home = thread.number;
        thread.spawn(async move {
            let _counted = counted;
            let Ok(carrier) = carrier.into_current_runtime() else {
                return tell(&self, address, Echo::Failed, 0);
            };
            let (running, member) =
                self.start_session(carrier, &dialed, &plan, Purpose::Taken, home);
            let Running { driver, observer } = running;
            let (session, echoes) = (member.session, member.echoes);
            let (handle, stats) = (member.handle.clone(), Arc::clone(&member.stats));
            self.pool.add(member);
            let asking = async {
                let outcome = if echoes {
                    let asking = ask(&handle, &stats, upstream, None);
                    caught(asking).await.unwrap_or(Echo::Failed)
                } else {
                    Echo::Failed
                };
                tell(&self, address, outcome, stats.traffic.down.value());
                handle.end();
            };
            let shared = Arc::clone(&self);
            let running =
                shared.keep_session(session, Purpose::Taken, &observer, driver.run(&observer));
            tokio::join!(running, asking);
        });
    }

    fn tell_echoed(
        &self,
        echo: u64,
        upstream: u32,
        address: Option<SocketAddr>,
        outcome: Echo,
        received: u64,
    ) {
        self.events.push(Event::Echoed {
            echo,
            upstream,
            address,
            outcome,
            received,
        });
    }
}

/// Has the server of a session send back what goes to it. `ticket`: the place in the session, if it has others.
async fn ask(
    handle: &Handle<Program>,
    stats: &Arc<SessionStats>,
    upstream: u32,
    ticket: Option<Ticket>,
) -> Echo {
    let begun = Instant::now();
    let (tell, told) = oneshot::channel();
    let Ok(asking) = Asking::new(tell) else {
        return Echo::Failed;
    };
    let mut end = Program::new(Socket::Echo(asking), Reply::Api, None, None);
    end.restrict(upstream);
    if let Some(ticket) = ticket {
        end.hold(ticket);
    }
    let mut open = Open::new(end, TARGET.to_vec(), begun + LIMIT);
    open.confirm = true;
    match timeout(LIMIT, handle.reserve()).await {
        Ok(Ok(permit)) => permit.send(Box::new(open)),
        _ => return Echo::Failed,
    }
    outcome(told, stats, begun).await
}

/// Waits for the end of it. Dropping the receiver ends the stream.
async fn outcome(
    mut told: oneshot::Receiver<Duration>,
    stats: &SessionStats,
    begun: Instant,
) -> Echo {
    loop {
        match timeout(LOOK, &mut told).await {
            Ok(Ok(took)) => return Echo::Passed(took),
            Ok(Err(_)) => return Echo::Failed,
            Err(_) => {
                let heard = stats.heard.moment().map_or(begun, |heard| heard.max(begun));
                if heard.elapsed() >= SILENT {
                    return Echo::Stopped;
                }
                if begun.elapsed() >= LIMIT {
                    return Echo::Failed;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn silence_is_a_stop_and_an_end_without_an_answer_is_none() {
        let stats = SessionStats::default();
        let (tell, told) = oneshot::channel();
        tell.send(Duration::from_millis(7)).unwrap();
        let passed = outcome(told, &stats, Instant::now()).await;
        assert_eq!(passed, Echo::Passed(Duration::from_millis(7)));
        let (tell, told) = oneshot::channel();
        drop(tell);
        assert_eq!(outcome(told, &stats, Instant::now()).await, Echo::Failed);
        let (_tell, told) = oneshot::channel();
        let long_ago = Instant::now().checked_sub(SILENT).unwrap();
        assert_eq!(outcome(told, &stats, long_ago).await, Echo::Stopped);
        // Something still comes: it is slow, which is no stop.
        stats.heard.set(Instant::now());
        let (_tell, told) = oneshot::channel();
        let long_ago = Instant::now().checked_sub(LIMIT).unwrap();
        assert_eq!(outcome(told, &stats, long_ago).await, Echo::Failed);
    }
}
