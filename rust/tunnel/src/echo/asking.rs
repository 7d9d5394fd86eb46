//! The client's end: sends random bytes in steps, each when the one before has come back.

use std::io::{self, IoSlice, IoSliceMut};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::TOTAL;

/// How much has been sent at the end of each step. Short ones first: where a path lets so many bytes through, that many come back.
const STEPS: [usize; 6] = [4 << 10, 8 << 10, 12 << 10, 16 << 10, 32 << 10, TOTAL];

/// One exchange with the reserved target.
#[derive(Debug)]
pub(crate) struct Asking {
    content: Vec<u8>,
    sent: usize,
    returned: usize,
    /// Since the stream is open.
    begun: Option<Instant>,
    /// Whom to tell that all has come back. Nobody waits any more when the other half of the channel is gone.
    told: Option<oneshot::Sender<Duration>>,
    reader: Option<Waker>,
}

impl Asking {
    /// An error: there are no random bytes to be had.
    pub(crate) fn new(told: oneshot::Sender<Duration>) -> Result<Self, getrandom::Error> {
        let mut content = vec![0; TOTAL];
        getrandom::fill(&mut content)?;
        Ok(Self {
            content,
            sent: 0,
            returned: 0,
            begun: None,
            told: Some(told),
            reader: None,
        })
    }

    /// The server answers for the target.
    pub(crate) fn opened(&mut self) {
        self.begun = Some(Instant::now());
        self.wake();
    }

    /// Ready when nobody waits for the outcome any more.
    pub(crate) fn poll_abandoned(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.told {
            Some(told) => told.poll_closed(cx),
            None => Poll::Pending,
        }
    }

    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        spaces: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.poll_abandoned(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        if self.returned == TOTAL {
            return Poll::Ready(Ok(0));
        }
        let end = if self.begun.is_some() { self.step() } else { 0 };
        let mut rest = self.content.get(self.sent..end).unwrap_or_default();
        if rest.is_empty() {
            self.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let given = io::Read::read_vectored(&mut rest, spaces)?;
        self.sent += given;
        Poll::Ready(Ok(given))
    }

    pub(crate) fn poll_write(&mut self, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut taken = 0;
        for piece in pieces {
            let expected = self.content.get(self.returned..self.sent);
            if expected.and_then(|expected| expected.get(..piece.len())) != Some(piece) {
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
            self.returned += piece.len();
            taken += piece.len();
        }
        if self.returned == TOTAL
            && let (Some(told), Some(begun)) = (self.told.take(), self.begun)
        {
            // Whoever does not wait any more need not know.
            let _ = told.send(begun.elapsed());
        }
        self.wake();
        Poll::Ready(Ok(taken))
    }

    /// Where the step under way ends.
    fn step(&self) -> usize {
        let mut ends = STEPS.into_iter();
        ends.find(|&end| end > self.returned).unwrap_or(TOTAL)
    }

    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(end: &mut Asking) -> Poll<io::Result<Vec<u8>>> {
        let mut space = vec![0; TOTAL];
        let mut cx = Context::from_waker(Waker::noop());
        end.poll_read(&mut cx, &mut [IoSliceMut::new(&mut space)])
            .map_ok(|read| space[..read].to_vec())
    }

    fn write(end: &mut Asking, bytes: &[u8]) -> bool {
        matches!(end.poll_write(&[IoSlice::new(bytes)]), Poll::Ready(Ok(n)) if n == bytes.len())
    }

    #[test]
    fn each_step_waits_for_the_one_before_and_the_last_one_is_told() {
        let (tell, mut told) = oneshot::channel();
        let mut end = Asking::new(tell).unwrap();
        assert!(read(&mut end).is_pending());
        end.opened();
        let mut steps = Vec::new();
        while let Poll::Ready(Ok(step)) = read(&mut end)
            && !step.is_empty()
        {
            assert!(read(&mut end).is_pending());
            assert!(told.try_recv().is_err());
            let (first, rest) = step.split_at(step.len() / 3);
            assert!(write(&mut end, first));
            assert!(read(&mut end).is_pending());
            assert!(write(&mut end, rest));
            steps.push(step.len());
        }
        assert_eq!(steps, [4096, 4096, 4096, 4096, 16384, 32768]);
        assert!(told.try_recv().is_ok());
    }

    #[test]
    fn what_was_not_sent_does_not_count_as_having_come_back() {
        let (tell, _told) = oneshot::channel();
        let mut end = Asking::new(tell).unwrap();
        end.opened();
        assert!(!write(&mut end, &[0]));
        let Poll::Ready(Ok(step)) = read(&mut end) else {
            panic!("nothing is sent");
        };
        assert!(!write(&mut end, &[&step[..], &[0]].concat()));
        assert!(!write(&mut end, &step[1..]));
        assert!(write(&mut end, &step));
    }

    #[test]
    fn when_nobody_waits_any_more_the_stream_is_ended() {
        let (tell, told) = oneshot::channel();
        let mut end = Asking::new(tell).unwrap();
        end.opened();
        drop(told);
        assert!(matches!(read(&mut end), Poll::Ready(Err(_))));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(end.poll_abandoned(&mut cx).is_ready());
    }
}
