//! The threads of a client or a server: some for dials, handshakes and look-ups, some that carry traffic.
//!
//! A handshake takes about a millisecond of computing, in which nothing else of its thread moves. So sessions have threads of
//! their own, each with a runtime for itself: what is spawned on one of them stays there, with its sockets and timers.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tracing::Dispatch;

use crate::counters::{Counted, Counter};
use crate::log;

/// How many threads are wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Numbers {
    /// For dials, handshakes and look-ups.
    pub(crate) control: usize,
    /// For traffic.
    pub(crate) traffic: usize,
}

/// The threads, which end with it.
#[derive(Debug)]
pub(crate) struct Threads {
    control: Runtime,
    traffic: TrafficThreads,
    owned: Vec<Owned>,
}

/// The threads that carry traffic, for those who give them something to do.
#[derive(Debug, Clone)]
pub(crate) struct TrafficThreads {
    first: Arc<TrafficThread>,
    all: Arc<[Arc<TrafficThread>]>,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct TrafficThread {
    /// Its place among them.
    pub(crate) number: usize,
    handle: Handle,
    sessions: Arc<Counter>,
}

/// What ends a thread.
#[derive(Debug)]
struct Owned {
    stop: oneshot::Sender<()>,
    /// Its other half goes with the thread.
    ended: Receiver<()>,
    thread: JoinHandle<()>,
}

impl Threads {
    /// Starts threads whose names begin with `name`.
    pub(crate) fn start(name: &str, numbers: Numbers, log: &Dispatch) -> io::Result<Self> {
        let adopt = log.clone();
        let control = Builder::new_multi_thread()
            .worker_threads(numbers.control.max(1))
            .event_interval(1)
            .on_thread_start(move || log::adopt_thread(&adopt))
            .thread_name(name)
            .enable_all()
            .build()?;
        let mut owned = Vec::new();
        let mut start = |number| -> io::Result<Arc<TrafficThread>> {
            let runtime = Builder::new_current_thread()
                // A driver under load is always ready, and tokio looks at the sockets only every so many polls (61 unless
                // told): everybody else would wait for dozens of its turns. With fewer than three, a wake-up that concerns a
                // desk and a driver costs a system call more.
                .event_interval(3)
                .enable_all()
                .build()?;
            let thread = TrafficThread {
                number,
                handle: runtime.handle().clone(),
                sessions: Arc::default(),
            };
            owned.push(Owned::start(
                format!("{name}-{number}"),
                runtime,
                log.clone(),
            )?);
            Ok(Arc::new(thread))
        };
        let first = start(0)?;
        let mut all = vec![Arc::clone(&first)];
        for number in 1..numbers.traffic {
            all.push(start(number)?);
        }
        Ok(Self {
            control,
            traffic: TrafficThreads {
                first,
                all: all.into(),
            },
            owned,
        })
    }

    /// Where dials and handshakes run.
    pub(crate) fn control(&self) -> &Handle {
        self.control.handle()
    }

    pub(crate) fn traffic(&self) -> TrafficThreads {
        self.traffic.clone()
    }

    /// Ends all tasks and then the threads, and waits for these until `limit`.
    pub(crate) fn shutdown(self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let ending: Vec<_> = self.owned.into_iter().map(Owned::stop).collect();
        self.control.shutdown_timeout(limit);
        for (ended, thread) in ending {
            let left = deadline.saturating_duration_since(Instant::now());
            // Nothing is ever sent: the thread has ended, or takes too long.
            if ended.recv_timeout(left) == Err(std::sync::mpsc::RecvTimeoutError::Disconnected) {
                // A panic of the thread was logged when it happened.
                let _ = thread.join();
            }
        }
    }
}

impl Owned {
    fn start(name: String, runtime: Runtime, log: Dispatch) -> io::Result<Self> {
        let (stop, stopped) = oneshot::channel::<()>();
        let (alive, ended) = sync_channel::<()>(0);
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            let _alive = alive;
            log::adopt_thread(&log);
            // Told to end, or the owner is gone.
            let _ = runtime.block_on(stopped);
            // With the runtime all its tasks end, here, where they ran.
            drop(runtime);
        })?;
        Ok(Self {
            stop,
            ended,
            thread,
        })
    }

    fn stop(self) -> (Receiver<()>, JoinHandle<()>) {
        // A thread that has ended already needs no word.
        let _ = self.stop.send(());
        (self.ended, self.thread)
    }
}

impl TrafficThreads {
    /// The thread with the fewest sessions, and its count of them, of which this is one more until it is dropped.
    pub(crate) fn least_busy(&self) -> (Arc<TrafficThread>, Counted) {
        let least = self.iter().min_by_key(|thread| thread.sessions.value());
        let thread = least.unwrap_or(&self.first);
        (Arc::clone(thread), Counted::new(&thread.sessions))
    }

    /// The thread with this number, counted likewise.
    pub(crate) fn numbered(&self, number: usize) -> (Arc<TrafficThread>, Counted) {
        let thread = self.all.get(number).unwrap_or(&self.first);
        (Arc::clone(thread), Counted::new(&thread.sessions))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<TrafficThread>> {
        self.all.iter()
    }
}

impl TrafficThread {
    /// Sessions on this thread now.
    pub(crate) fn sessions(&self) -> u64 {
        self.sessions.value()
    }

    /// Runs a task on this thread, until it ends or the thread does.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        self.handle.spawn(task).abort_handle()
    }

    /// The runtime that sockets are registered with for tasks of this thread.
    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }
}

/// As many threads as this process may run at the same moment, by its affinity and its control group.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc::SyncSender;
    use std::thread::ThreadId;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn threads(traffic: usize) -> Threads {
        let numbers = Numbers {
            control: 1,
            traffic,
        };
        Threads::start("test", numbers, &Dispatch::none()).unwrap()
    }

    /// Says on which thread it runs, each time that it is polled.
    async fn wander(seen: SyncSender<ThreadId>, turns: usize) {
        for turn in 0..turns {
            seen.send(std::thread::current().id()).unwrap();
            if turn % 2 == 0 {
                tokio::task::yield_now().await;
            } else {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    #[test]
    fn a_task_stays_on_its_thread_and_each_session_goes_where_the_fewest_are() {
        let threads = threads(3);
        let mut homes = Vec::new();
        let mut counted = Vec::new();
        for _ in 0..6 {
            let (thread, count) = threads.traffic().least_busy();
            let (seen, polled) = sync_channel(64);
            thread.spawn(wander(seen, 20));
            let polled: Vec<_> = polled.iter().collect();
            assert_eq!(polled.len(), 20);
            assert!(polled.iter().all(|id| *id == polled[0]));
            homes.push(polled[0]);
            counted.push(count);
        }
        assert_eq!(homes[..3], homes[3..]);
        homes.sort_by_key(|id| format!("{id:?}"));
        homes.dedup();
        assert_eq!(homes.len(), 3);
        // The one that a session has left is the next.
        let (expected, _) = (threads.traffic().all[1].clone(), counted.remove(1));
        let (thread, _) = threads.traffic().least_busy();
        assert!(Arc::ptr_eq(&thread, &expected));
        threads.shutdown(LIMIT);
    }

    #[test]
    fn the_end_of_the_threads_ends_their_tasks() {
        struct Guard(Arc<AtomicBool>);
        impl Drop for Guard {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let threads = threads(1);
        let ended = Arc::<AtomicBool>::default();
        let guard = Guard(Arc::clone(&ended));
        let (begun, has_begun) = sync_channel(1);
        let (thread, _) = threads.traffic().least_busy();
        thread.spawn(async move {
            begun.send(()).unwrap();
            std::future::pending::<()>().await;
            drop(guard);
        });
        has_begun.recv_timeout(LIMIT).unwrap();
        threads.shutdown(LIMIT);
        assert!(ended.load(Ordering::SeqCst));
    }

    #[test]
    fn a_thread_that_does_not_end_is_not_waited_for_beyond_the_limit() {
        let threads = threads(1);
        let (thread, _) = threads.traffic().least_busy();
        let (begun, has_begun) = sync_channel(1);
        let (release, released) = sync_channel::<()>(0);
        thread.spawn(async move {
            begun.send(()).unwrap();
            // Holds the thread.
            let _ = released.recv();
        });
        has_begun.recv_timeout(LIMIT).unwrap();
        threads.shutdown(Duration::from_millis(50));
        drop(release);
    }
}
