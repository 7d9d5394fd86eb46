//! Errors of this program itself: a panic ends what it happened in, and is reported like any other failure.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;

use crate::failure::{Code, Failure, Layer};

/// Calls `work`. A panic in it becomes a failure; what `work` was changing may be half changed then.
pub(crate) fn catch<T>(work: impl FnOnce() -> T) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| {
        Failure::new(
            Layer::Local,
            Code::Internal,
            format!("an error in this program: {}", text(&*payload)),
        )
    })
}

/// Runs `future` to its end, or to its panic.
pub(crate) async fn caught<F: Future>(future: F) -> Result<F::Output, Failure> {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| match catch(|| future.as_mut().poll(cx)) {
        Ok(poll) => poll.map(Ok),
        Err(failure) => Poll::Ready(Err(failure)),
    })
    .await
}

/// What a panic says of itself.
pub(crate) fn text(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("it gave no reason")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_becomes_a_failure_with_its_text() {
        let outcome = caught(async {
            tokio::task::yield_now().await;
            std::hint::black_box(Option::<u8>::None).expect("a byte")
        })
        .await;
        let failure = outcome.unwrap_err();
        assert_eq!(failure.code, Code::Internal);
        assert_eq!(failure.message, "an error in this program: a byte");
    }

    #[tokio::test]
    async fn without_a_panic_the_outcome_is_the_futures() {
        assert_eq!(caught(async { 7 }).await, Ok(7));
    }
}
