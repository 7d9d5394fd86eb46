//! One task of a traffic thread for all its short conversations with local programs.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::mpsc;

use crate::counters::Counter;
use crate::panics::caught;
use crate::runtime::TrafficThread;

/// What is done for one connection. It is polled on the desk's thread alone.
pub(crate) type Conversation = BoxFuture<'static, ()>;

/// Takes conversations for one thread.
///
/// Programs that speak at the same moment are looked after in one turn. With a task for each of them, the thread would look at
/// all its sockets between any two (`event_interval` in `runtime.rs`), a system call for every step of every conversation.
#[derive(Debug)]
pub(crate) struct Desk {
    /// Its thread.
    pub(crate) thread: Arc<TrafficThread>,
    /// Connections that were given to this thread and have not ended.
    pub(crate) connections: Arc<Counter>,
    queue: mpsc::Sender<Conversation>,
}

impl Desk {
    /// Opens a desk on `thread`, until that ends. So many conversations may wait to be begun.
    pub(crate) fn open(thread: &Arc<TrafficThread>, waiting: usize) -> Self {
        let (queue, conversations) = mpsc::channel(waiting.max(1));
        thread.spawn(run(conversations));
        Self {
            thread: Arc::clone(thread),
            connections: Arc::default(),
            queue,
        }
    }

    /// Begins a conversation. `false`: too many wait, or the thread has ended.
    pub(crate) fn take(&self, conversation: Conversation) -> bool {
        self.queue.try_send(conversation).is_ok()
    }
}

async fn run(mut conversations: mpsc::Receiver<Conversation>) {
    let mut running = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            Some(ended) = running.next() => {
                // A panic has been logged; it ends its own conversation only.
                let _: Result<(), _> = ended;
            }
            conversation = conversations.recv() => match conversation {
                Some(conversation) => running.push(caught(conversation)),
                None => return,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;
    use std::time::Duration;

    use futures_util::FutureExt;
    use tracing::level_filters::LevelFilter;

    use super::*;
    use crate::events::Events;
    use crate::log;
    use crate::runtime::{Numbers, Threads};

    const LIMIT: Duration = Duration::from_secs(20);

    #[test]
    fn a_conversation_that_panics_or_never_ends_stops_no_other() {
        let numbers = Numbers {
            control: 1,
            traffic: 1,
        };
        // A panic is logged. Where nothing takes the line, tracing would keep it from other tests too.
        let log = log::dispatch(Arc::<Events<()>>::default(), LevelFilter::DEBUG);
        let threads = Threads::start("test", numbers, &log).unwrap();
        let desk = Desk::open(threads.traffic().iter().next().unwrap(), 8);
        let (said, heard) = sync_channel(8);
        assert!(desk.take(std::future::pending().boxed()));
        assert!(
            desk.take(
                async {
                    let nothing: [u8; 0] = [];
                    std::hint::black_box(nothing[std::hint::black_box(3)]);
                }
                .boxed()
            )
        );
        assert!(
            desk.take(
                async move {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    said.send(()).unwrap();
                }
                .boxed()
            )
        );
        heard.recv_timeout(LIMIT).unwrap();
        threads.shutdown(LIMIT);
        assert!(!desk.take(std::future::ready(()).boxed()));
    }
}
