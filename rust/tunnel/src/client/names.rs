//! Names of targets that are connected to directly. The client's owner looks them up, over HTTPS: here it is asked, once for
//! everybody who waits for the same name, and its answers are kept as long as they hold.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use ech_workers_sync::Mutex;
use tokio::sync::watch;
use tokio::time::timeout;

/// Names that are waited for at a time.
const WAITING_MAX: usize = 256;
/// Answers that are kept.
const KNOWN_MAX: usize = 4096;
/// How long an answer is kept at most, and one that names nothing.
const KEPT: Duration = Duration::from_secs(3600);
const KEPT_WITHOUT: Duration = Duration::from_secs(60);
/// How long the owner may take before it is asked again: another one may have taken its place.
const ASK_AGAIN: Duration = Duration::from_secs(3);

/// What the owner has found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolved {
    /// The addresses, the best first.
    Addresses(Arc<[IpAddr]>),
    /// The name does not exist, or has no address.
    NotFound,
    /// Nobody answers for it.
    Failed,
}

type Answers = watch::Sender<Option<Resolved>>;

/// The names, and who asks for them.
#[derive(Debug, Default)]
pub(crate) struct Names {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    known: HashMap<String, (Resolved, Instant)>,
    /// Alive as long as somebody waits.
    asked: HashMap<String, Weak<Answers>>,
}

impl Names {
    /// The answer for a name in lower case. `ask` tells the owner that it is wanted.
    pub(crate) async fn look_up(&self, name: &str, ask: impl Fn()) -> Resolved {
        let (answers, is_first) = {
            let mut state = self.state.lock();
            if let Some((answer, until)) = state.known.get(name)
                && *until > Instant::now()
            {
                return answer.clone();
            }
            match state.asked.get(name).and_then(Weak::upgrade) {
                Some(answers) => (answers, false),
                None => {
                    state.asked.retain(|_, answers| answers.strong_count() > 0);
                    if state.asked.len() >= WAITING_MAX {
                        return Resolved::Failed;
                    }
                    let answers = Arc::new(Answers::new(None));
                    state
                        .asked
                        .insert(name.to_owned(), Arc::downgrade(&answers));
                    (answers, true)
                }
            }
        };
        let mut arrived = answers.subscribe();
        if is_first {
            ask();
        }
        loop {
            match timeout(ASK_AGAIN, arrived.wait_for(Option::is_some)).await {
                Ok(Ok(answer)) => return answer.clone().unwrap_or(Resolved::Failed),
                // The sender is held here.
                Ok(Err(_)) => return Resolved::Failed,
                Err(_) => ask(),
            }
        }
    }

    /// Nothing that is known holds any more.
    pub(crate) fn forget(&self) {
        self.state.lock().known.clear();
    }

    /// The owner's answer, which holds for `ttl`.
    pub(crate) fn resolved(&self, name: &str, answer: Resolved, ttl: Duration) {
        let mut state = self.state.lock();
        let kept = match answer {
            Resolved::Addresses(_) => ttl.min(KEPT),
            Resolved::NotFound => ttl.min(KEPT_WITHOUT),
            Resolved::Failed => Duration::ZERO,
        };
        let now = Instant::now();
        if !kept.is_zero() {
            if state.known.len() >= KNOWN_MAX {
                state.known.retain(|_, (_, until)| *until > now);
            }
            if state.known.len() < KNOWN_MAX {
                state
                    .known
                    .insert(name.to_owned(), (answer.clone(), now + kept));
            }
        }
        if let Some(answers) = state.asked.remove(name).and_then(|asked| asked.upgrade()) {
            answers.send_replace(Some(answer));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    fn addresses(text: &str) -> Resolved {
        Resolved::Addresses([text.parse().unwrap()].into())
    }

    #[tokio::test]
    async fn a_name_is_asked_for_once_and_its_answer_is_kept() {
        let (names, asked) = (Names::default(), AtomicUsize::new(0));
        let ask = || {
            asked.fetch_add(1, Ordering::Relaxed);
        };
        let answering = async {
            // Both wait by now.
            tokio::task::yield_now().await;
            names.resolved("a.example", addresses("192.0.2.1"), LIMIT);
        };
        let (first, second, ()) = tokio::join!(
            names.look_up("a.example", ask),
            names.look_up("a.example", ask),
            answering
        );
        let third = names.look_up("a.example", ask).await;
        for answer in [first, second, third] {
            assert_eq!(answer, addresses("192.0.2.1"));
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn what_is_forgotten_is_asked_for_again() {
        let (names, asked) = (Names::default(), AtomicUsize::new(0));
        for _ in 0..2 {
            let found = names.look_up("a.example", || {
                asked.fetch_add(1, Ordering::Relaxed);
                names.resolved("a.example", addresses("192.0.2.1"), LIMIT);
            });
            assert_eq!(found.await, addresses("192.0.2.1"));
            names.forget();
        }
        assert_eq!(asked.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn a_failure_is_not_kept_and_what_holds_for_no_time_neither() {
        let (names, asked) = (Names::default(), AtomicUsize::new(0));
        for (answer, ttl) in [
            (Resolved::Failed, LIMIT),
            (addresses("192.0.2.1"), Duration::ZERO),
        ] {
            let found = names.look_up("a.example", || {
                asked.fetch_add(1, Ordering::Relaxed);
                names.resolved("a.example", answer.clone(), ttl);
            });
            assert_eq!(found.await, answer);
        }
        assert_eq!(asked.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn an_owner_that_says_nothing_is_asked_again() {
        let (names, asked) = (Names::default(), AtomicUsize::new(0));
        let found = names.look_up("a.example", || {
            if asked.fetch_add(1, Ordering::Relaxed) == 1 {
                names.resolved("a.example", Resolved::NotFound, LIMIT);
            }
        });
        assert_eq!(found.await, Resolved::NotFound);
    }

    #[tokio::test]
    async fn names_that_nobody_waits_for_any_more_make_room() {
        let names = Names::default();
        for number in 0..2 * WAITING_MAX {
            let name = format!("{number}.example");
            let looking = names.look_up(&name, || {});
            assert!(timeout(Duration::ZERO, looking).await.is_err());
        }
        assert!(names.state.lock().asked.len() <= WAITING_MAX);
    }
}
