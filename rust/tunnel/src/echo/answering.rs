//! The server's end: gives back what it was given.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut, Read as _};
use std::task::{Context, Poll, Waker};

use super::TOTAL;

/// What it keeps of that. The rest waits in the session, where it is counted.
const ROOM: usize = 4096;

/// A stream to the reserved target.
#[derive(Debug, Default)]
pub(crate) struct Answering {
    kept: VecDeque<u8>,
    /// Bytes taken so far.
    taken: usize,
    /// The client sends no more.
    is_finished: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Answering {
    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        spaces: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.kept.is_empty() {
            if self.is_finished || self.taken == TOTAL {
                return Poll::Ready(Ok(0));
            }
            self.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let given = self.kept.read_vectored(spaces);
        wake(&mut self.writer);
        Poll::Ready(given)
    }

    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.taken == TOTAL {
            return Poll::Ready(Err(io::ErrorKind::InvalidInput.into()));
        }
        let before = self.taken;
        for piece in pieces {
            let room = (ROOM - self.kept.len()).min(TOTAL - self.taken);
            let piece = piece.get(..room.min(piece.len())).unwrap_or_default();
            self.kept.extend(piece);
            self.taken += piece.len();
        }
        if self.taken == before {
            self.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        wake(&mut self.reader);
        Poll::Ready(Ok(self.taken - before))
    }

    pub(crate) fn finish(&mut self) {
        self.is_finished = true;
        wake(&mut self.reader);
    }
}

fn wake(who: &mut Option<Waker>) {
    if let Some(who) = who.take() {
        who.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(end: &mut Answering, room: usize) -> Poll<Vec<u8>> {
        let mut space = vec![0; room];
        let mut cx = Context::from_waker(Waker::noop());
        end.poll_read(&mut cx, &mut [IoSliceMut::new(&mut space)])
            .map(|read| space[..read.unwrap()].to_vec())
    }

    fn write(end: &mut Answering, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut cx = Context::from_waker(Waker::noop());
        end.poll_write(&mut cx, &[IoSlice::new(bytes)])
    }

    #[test]
    fn it_gives_back_what_it_was_given_and_keeps_little_of_it() {
        let mut end = Answering::default();
        assert!(read(&mut end, 10).is_pending());
        let bytes: Vec<u8> = (0..=255).cycle().take(ROOM + 100).collect();
        assert!(matches!(write(&mut end, &bytes), Poll::Ready(Ok(ROOM))));
        assert!(write(&mut end, &bytes[ROOM..]).is_pending());
        assert_eq!(read(&mut end, 100), Poll::Ready(bytes[..100].to_vec()));
        assert!(matches!(
            write(&mut end, &bytes[ROOM..]),
            Poll::Ready(Ok(100))
        ));
        end.finish();
        let mut back = Vec::new();
        while let Poll::Ready(more) = read(&mut end, 1000)
            && !more.is_empty()
        {
            back.extend(more);
        }
        assert_eq!(back, bytes[100..]);
    }

    #[test]
    fn it_ends_after_64_kib_and_takes_no_more() {
        let mut end = Answering::default();
        for _ in 0..TOTAL / ROOM {
            assert!(matches!(write(&mut end, &[7; ROOM]), Poll::Ready(Ok(ROOM))));
            assert_eq!(read(&mut end, ROOM), Poll::Ready(vec![7; ROOM]));
        }
        assert_eq!(read(&mut end, 1), Poll::Ready(Vec::new()));
        assert!(matches!(write(&mut end, &[7]), Poll::Ready(Err(_))));
    }
}
