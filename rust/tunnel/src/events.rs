//! What the engine reports, and the bounded queue it waits in until somebody takes it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use ech_workers_sync::{Condvar, Mutex};

/// More than any burst that an owner who is awake lets build up.
const EVENTS_MAX: usize = 4096;
/// Log lines may not crowd out what the owner must know.
const LOG_LINES_MAX: usize = 512;

/// A line for the owner's log.
#[derive(Debug, Clone)]
pub struct LogLine {
    /// How much it matters.
    pub level: tracing::Level,
    /// The module it comes from.
    pub target: &'static str,
    /// One line.
    pub message: String,
    /// What it is about.
    pub about: About,
}

/// What a log line is about, as far as it is about one such thing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct About {
    /// Where something failed, as of [`Layer::name`](crate::Layer::name).
    pub layer: Option<String>,
    /// What failed, as of [`Code::as_str`](crate::Code::as_str).
    pub code: Option<String>,
    /// The number of the session.
    pub session: Option<u64>,
    /// The number of the server, on the client.
    pub upstream: Option<u32>,
}

/// Reports in the order in which they were made; the oldest go first when nobody takes them.
#[derive(Debug)]
pub struct Events<E> {
    state: Mutex<State<E>>,
    arrived: Condvar,
}

#[derive(Debug)]
struct State<E> {
    waiting: VecDeque<E>,
    log: VecDeque<LogLine>,
    woken: bool,
    closed: bool,
    lost: u64,
}

/// What a wait for a report came to.
#[derive(Debug)]
pub enum Next<E> {
    /// A report.
    Event(E),
    /// A log line.
    Log(LogLine),
    /// [`Events::wake`] was called.
    Woken,
    /// Nothing in the time given.
    TimedOut,
    /// The engine has ended.
    Closed,
}

impl<E> Default for Events<E> {
    fn default() -> Self {
        let state = State {
            waiting: VecDeque::new(),
            log: VecDeque::new(),
            woken: false,
            closed: false,
            lost: 0,
        };
        Self {
            state: Mutex::new(state),
            arrived: Condvar::new(),
        }
    }
}

impl<E> Events<E> {
    /// Adds a report.
    pub(crate) fn push(&self, event: E) {
        let mut state = self.state.lock();
        if state.waiting.len() == EVENTS_MAX {
            state.waiting.pop_front();
            state.lost += 1;
        }
        state.waiting.push_back(event);
        drop(state);
        self.arrived.notify_one();
    }

    /// Adds a log line.
    pub fn log(&self, line: LogLine) {
        let mut state = self.state.lock();
        if state.log.len() == LOG_LINES_MAX {
            state.log.pop_front();
            state.lost += 1;
        }
        state.log.push_back(line);
        drop(state);
        self.arrived.notify_one();
    }

    /// Makes the next wait end.
    pub fn wake(&self) {
        self.state.lock().woken = true;
        self.arrived.notify_one();
    }

    /// Ends every wait from now on, once what is there has been taken.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.arrived.notify_all();
    }

    /// Waits for the next report; `None` waits without limit.
    pub fn next(&self, limit: Option<Duration>) -> Next<E> {
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        let mut state = self.state.lock();
        loop {
            if state.lost > 0 {
                let lost = std::mem::take(&mut state.lost);
                let message = format!("{lost} reports were lost: nobody took them in time");
                return Next::Log(LogLine {
                    level: tracing::Level::WARN,
                    target: "ech_workers_tunnel",
                    message,
                    about: About::default(),
                });
            }
            if let Some(line) = state.log.pop_front() {
                return Next::Log(line);
            }
            if let Some(event) = state.waiting.pop_front() {
                return Next::Event(event);
            }
            if std::mem::take(&mut state.woken) {
                return Next::Woken;
            }
            if state.closed {
                return Next::Closed;
            }
            match deadline {
                None => state = self.arrived.wait(state),
                Some(deadline) => {
                    let late;
                    (state, late) = self.arrived.wait_until(state, deadline);
                    if late
                        && state.waiting.is_empty()
                        && state.log.is_empty()
                        && !state.woken
                        && !state.closed
                    {
                        return Next::TimedOut;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_come_in_order_and_the_end_comes_last() {
        let events = Events::default();
        events.push(1);
        events.push(2);
        events.close();
        assert!(matches!(events.next(None), Next::Event(1)));
        assert!(matches!(events.next(None), Next::Event(2)));
        assert!(matches!(events.next(None), Next::Closed));
    }

    #[test]
    fn a_queue_that_nobody_empties_stays_bounded_and_says_what_it_lost() {
        let events = Events::default();
        for n in 0..EVENTS_MAX + 3 {
            events.push(n);
        }
        let Next::Log(line) = events.next(None) else {
            panic!("expected the loss to be told first")
        };
        assert!(line.message.starts_with("3 reports"), "{}", line.message);
        assert!(matches!(events.next(None), Next::Event(3)));
    }

    #[test]
    fn a_wake_ends_a_wait_and_a_limit_does_too() {
        let events = Events::<()>::default();
        events.wake();
        assert!(matches!(events.next(None), Next::Woken));
        assert!(matches!(
            events.next(Some(Duration::from_millis(1))),
            Next::TimedOut
        ));
    }
}
