//! A race of attempts to reach one of several addresses (RFC 8305 section 5).

use std::time::Duration;

use futures_util::stream::{FuturesUnordered, Stream, StreamExt};
use tokio::time::{Instant, sleep_until};

/// The connection attempt delay: how long one attempt runs before the next begins beside it (RFC 8305 section 8).
pub(crate) const HEAD_START: Duration = Duration::from_millis(250);

/// Attempts the candidates in their order and returns what the first success brought. The next attempt begins when one has
/// failed or the last one has run for `head_start`, and at most `at_once` run beside each other. The candidates may still be coming in
/// while the race runs. If no attempt succeeds, the result is every failure, in the order in which they happened; it is empty if
/// there was no candidate.
///
/// The race owns its attempts: nothing is spawned, and dropping it ends all of them.
pub(crate) async fn race<C, F, T, E>(
    candidates: impl Stream<Item = C>,
    head_start: Duration,
    at_once: usize,
    mut attempt: impl FnMut(C) -> F,
) -> Result<T, Vec<E>>
where
    F: Future<Output = Result<T, E>>,
{
    let candidates = candidates.fuse();
    tokio::pin!(candidates);
    let next_start = sleep_until(Instant::now());
    tokio::pin!(next_start);
    let mut running = FuturesUnordered::new();
    let mut failures = Vec::new();
    let mut due = true;
    let mut exhausted = false;
    loop {
        tokio::select! {
            biased;
            Some(outcome) = running.next() => match outcome {
                Ok(reached) => return Ok(reached),
                Err(failure) => {
                    failures.push(failure);
                    due = true;
                }
            },
            candidate = candidates.next(), if due && !exhausted && running.len() < at_once.max(1) => match candidate {
                Some(candidate) => {
                    running.push(attempt(candidate));
                    due = false;
                    next_start.as_mut().reset(Instant::now() + head_start);
                }
                None => exhausted = true,
            },
            () = &mut next_start, if !due => due = true,
            else => return Err(failures),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::FutureExt;
    use futures_util::future::BoxFuture;
    use futures_util::stream;
    use tokio::time::{sleep, timeout};

    use super::*;

    /// Only a defect takes as long.
    const LIMIT: Duration = Duration::from_secs(60);

    type Attempt = BoxFuture<'static, Result<usize, usize>>;

    fn hangs() -> Attempt {
        std::future::pending().boxed()
    }

    fn ends(outcome: Result<usize, usize>, after: Duration) -> Attempt {
        async move {
            sleep(after).await;
            outcome
        }
        .boxed()
    }

    async fn run(attempts: Vec<Attempt>, at_once: usize) -> Result<usize, Vec<usize>> {
        timeout(
            LIMIT,
            race(stream::iter(attempts), HEAD_START, at_once, |attempt| {
                attempt
            }),
        )
        .await
        .unwrap()
    }

    #[tokio::test]
    async fn a_dead_first_address_costs_250_ms() {
        assert_eq!(HEAD_START, Duration::from_millis(250));
        let started = Instant::now();
        let second = ends(Ok(1), Duration::ZERO);
        assert_eq!(run(vec![hangs(), second], 4).await, Ok(1));
        assert!(started.elapsed() >= HEAD_START);
    }

    #[tokio::test]
    async fn a_refused_address_costs_nothing() {
        // With a head start for each it would take more than the limit.
        let mut attempts: Vec<_> = (0..1000)
            .map(|number| ends(Err(number), Duration::ZERO))
            .collect();
        attempts.push(ends(Ok(1000), Duration::ZERO));
        assert_eq!(run(attempts, 4).await, Ok(1000));
    }

    #[tokio::test]
    async fn a_slow_first_address_may_still_win() {
        let slow = ends(Ok(0), HEAD_START + Duration::from_millis(50));
        assert_eq!(run(vec![slow, ends(Ok(1), LIMIT)], 4).await, Ok(0));
    }

    #[tokio::test]
    async fn no_more_than_so_many_run_at_once() {
        let running = Arc::new(AtomicUsize::new(0));
        let attempts = (0..6)
            .map(|number| {
                let running = Arc::clone(&running);
                async move {
                    assert!(running.fetch_add(1, Ordering::Relaxed) < 2);
                    sleep(HEAD_START * 3).await;
                    running.fetch_sub(1, Ordering::Relaxed);
                    Err(number)
                }
                .boxed()
            })
            .collect();
        assert_eq!(run(attempts, 2).await, Err((0..6).collect()));
    }

    #[tokio::test]
    async fn every_failure_is_told_in_its_order() {
        let (first, second) = (ends(Err(0), HEAD_START * 2), ends(Err(1), Duration::ZERO));
        assert_eq!(run(vec![first, second], 4).await, Err(vec![1, 0]));
        assert_eq!(run(vec![], 4).await, Err(vec![]));
    }

    #[tokio::test]
    async fn candidates_that_come_later_are_tried_too() {
        let late = stream::iter([hangs()])
            .chain(stream::once(sleep(HEAD_START * 2)).map(|()| ends(Ok(1), Duration::ZERO)));
        assert_eq!(
            timeout(LIMIT, race(late, HEAD_START, 4, |attempt| attempt)).await,
            Ok(Ok(1))
        );
    }

    #[tokio::test]
    async fn dropping_the_race_ends_its_attempts() {
        let alive = Arc::new(());
        let attempts = (0..3).map(|_| {
            let alive = Arc::clone(&alive);
            async move {
                let _alive = alive;
                std::future::pending::<Result<(), ()>>().await
            }
        });
        let mut racing = Box::pin(race(stream::iter(attempts), HEAD_START, 3, |attempt| {
            attempt
        }));
        assert!(timeout(HEAD_START * 3, &mut racing).await.is_err());
        assert!(Arc::strong_count(&alive) > 1);
        drop(racing);
        assert_eq!(Arc::strong_count(&alive), 1);
    }
}
