//! A stream that is being opened for a program: who waits for it, until when, and how to give it up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ech_workers_sync::{Condvar, Mutex};
use tokio::sync::{oneshot, watch};

use crate::failure::{Code, Failure, Layer};
use crate::stream::{Answer, Stream};

/// Called once when the opening has ended, in a thread of the client, which it must not hold up.
pub type Done = Box<dyn FnOnce() + Send>;

/// The owner's handle. Dropping it gives the opening up: the stream is reset, and nothing stays behind.
#[derive(Debug)]
pub struct Pending {
    outcome: Arc<Outcome>,
    cancel: Mutex<Option<oneshot::Sender<()>>>,
}

#[derive(Debug)]
struct Outcome {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug)]
enum State {
    Opening,
    Ended(Answer),
    /// The outcome was taken, or nobody wants it any more.
    Over,
}

impl Pending {
    /// Waits until the opening has ended, for `limit` at most. True: it has.
    pub fn wait(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.outcome.state.lock();
        while matches!(*state, State::Opening) {
            let late;
            (state, late) = self.outcome.ended.wait_until(state, deadline);
            if late {
                return !matches!(*state, State::Opening);
            }
        }
        true
    }

    /// The outcome, once; `None` while there is none, and when it was taken or given up.
    pub fn take(&self) -> Option<Result<Stream, Failure>> {
        let mut state = self.outcome.state.lock();
        if matches!(*state, State::Opening) {
            return None;
        }
        match std::mem::replace(&mut *state, State::Over) {
            State::Ended(outcome) => Some(outcome),
            State::Opening | State::Over => None,
        }
    }

    /// Gives the opening up. An outcome that nobody has taken is dropped.
    pub fn cancel(&self) {
        self.cancel.lock().take();
        let former = std::mem::replace(&mut *self.outcome.state.lock(), State::Over);
        drop(former);
        self.outcome.ended.notify_all();
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// The client's half: waits for the answer.
pub(crate) struct Opening {
    /// The stream has gone to the server, so that a deadline that passes is the target's.
    pub(crate) begun: Arc<AtomicBool>,
    outcome: Arc<Outcome>,
    done: Option<Done>,
    cancelled: oneshot::Receiver<()>,
}

/// The two halves of an opening.
pub(crate) fn pending(done: Option<Done>) -> (Pending, Opening) {
    let (cancel, cancelled) = oneshot::channel();
    let outcome = Arc::new(Outcome {
        state: Mutex::new(State::Opening),
        ended: Condvar::new(),
    });
    let pending = Pending {
        outcome: Arc::clone(&outcome),
        cancel: Mutex::new(Some(cancel)),
    };
    let opening = Opening {
        begun: Arc::default(),
        outcome,
        done,
        cancelled,
    };
    (pending, opening)
}

impl Opening {
    /// Waits for the answer, until `deadline`, until the owner gives it up, or until the client is closed.
    pub(crate) async fn run(
        mut self,
        answered: oneshot::Receiver<Answer>,
        deadline: Instant,
        mut closing: watch::Receiver<bool>,
    ) {
        let outcome = tokio::select! {
            biased;
            // The sender sends nothing, it is dropped.
            _ = &mut self.cancelled => return,
            _ = closing.wait_for(|&closing| closing) => Err(closed()),
            outcome = answered => outcome.unwrap_or_else(|_| Err(closed())),
            () = tokio::time::sleep_until(deadline.into()) => Err(self.late()),
        };
        self.end(outcome);
    }

    /// Ends the opening with what came of it.
    pub(crate) fn end(&mut self, outcome: Answer) {
        let mut state = self.outcome.state.lock();
        if matches!(*state, State::Opening) {
            *state = State::Ended(outcome);
            drop(state);
            self.outcome.ended.notify_all();
            if let Some(done) = self.done.take() {
                done();
            }
        }
    }

    fn late(&self) -> Failure {
        if self.begun.load(Ordering::Relaxed) {
            Failure::new(
                Layer::Target,
                Code::TargetTimeout,
                "no answer before the deadline",
            )
        } else {
            Failure::new(
                Layer::Local,
                Code::SessionTimeout,
                "no session came up before the deadline",
            )
        }
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        // The client's end takes its tasks with it.
        self.end(Err(closed()));
    }
}

fn closed() -> Failure {
    Failure::new(Layer::Local, Code::Shutdown, "the tunnel is closed")
}
