//! Receive windows: what the peer may send, how it grows with bandwidth and round trip, and what limits the growth.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::frame::INITIAL_WINDOW;

/// Memory that the receive windows of all sessions of the process may grow by, beyond the first 256 KiB of each stream.
///
/// When it runs short, the streams that hold the most give back as they go, so that new ones can grow.
#[derive(Debug)]
pub struct WindowBudget {
    limit: AtomicUsize,
    used: AtomicUsize,
    holders: AtomicUsize,
}

impl WindowBudget {
    /// A budget of `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            limit: AtomicUsize::new(limit),
            used: AtomicUsize::new(0),
            holders: AtomicUsize::new(0),
        }
    }

    /// The limit, in bytes.
    pub fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// Another limit. What is handed out beyond a smaller one comes back as the streams that hold it go on.
    pub fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// What is handed out now, in bytes.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes up to `wanted` bytes.
    fn take(&self, wanted: usize) -> usize {
        let (limit, mut taken) = (self.limit(), 0);
        // The closure always returns a value, so the update cannot fail.
        let _ = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                taken = wanted.min(limit.saturating_sub(used));
                Some(used + taken)
            });
        taken
    }

    fn release(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn fair_share(&self) -> usize {
        fair_share(
            self.limit(),
            self.used(),
            self.holders.load(Ordering::Relaxed),
        )
    }
}

/// What one holder may keep: anything while there is room, an equal part with room for a newcomer when there is not.
fn fair_share(limit: usize, used: usize, holders: usize) -> usize {
    let short = limit - limit / 8;
    if used < short {
        usize::MAX
    } else {
        short / (holders + 1)
    }
}

/// The growth of one session's windows, within its own limit and the process's budget.
#[derive(Debug)]
pub(crate) struct Growth {
    limit: usize,
    used: usize,
    holders: usize,
    budget: Arc<WindowBudget>,
}

impl Growth {
    pub(crate) fn new(limit: usize, budget: Arc<WindowBudget>) -> Self {
        Self {
            limit,
            used: 0,
            holders: 0,
            budget,
        }
    }

    pub(crate) fn used(&self) -> usize {
        self.used
    }

    /// Takes up to `wanted` bytes for a window that had `held` beyond its first.
    fn take(&mut self, held: u32, wanted: u32) -> u32 {
        let wanted = (wanted as usize).min(self.limit.saturating_sub(self.used));
        let taken = self.budget.take(wanted);
        if taken > 0 && held == 0 {
            self.holders += 1;
            self.budget.holders.fetch_add(1, Ordering::Relaxed);
        }
        self.used += taken;
        taken as u32
    }

    /// Gives `bytes` back of the `held` that a window had.
    fn release(&mut self, held: u32, bytes: u32) {
        if bytes == 0 {
            return;
        }
        if held == bytes {
            self.holders -= 1;
            self.budget.holders.fetch_sub(1, Ordering::Relaxed);
        }
        self.used -= bytes as usize;
        self.budget.release(bytes as usize);
    }

    fn fair_share(&self) -> usize {
        fair_share(self.limit, self.used, self.holders).min(self.budget.fair_share())
    }
}

impl Drop for Growth {
    fn drop(&mut self) {
        self.budget.release(self.used);
        self.budget
            .holders
            .fetch_sub(self.holders, Ordering::Relaxed);
    }
}

/// On a shorter path the first 256 KiB allow 2 Gbit/s, and what is measured is mostly how long the two ends take to wake up.
const SHORT: Duration = Duration::from_millis(1);

/// What a window may grow to on a short path while nobody waits behind it. With 256 KiB the two ends mostly wait for each other:
/// on loopback 1 MiB carried 1.7 times as much for three quarters of the CPU time, and 4 MiB hardly more.
const ALONE_MAX: u32 = 1 << 20;

/// What is held back of the window of the only bulk stream on a short path while others receive something: what they wait behind is
/// less by that. Several bulk streams have all of theirs, since it would cost them one part in twenty.
const RESERVE: u32 = 64 * 1024;

/// How long no other stream must have received anything for one to be alone, or a window update for one to be the only bulk stream.
const ALONE_AFTER: Duration = Duration::from_millis(100);

/// Which stream of a session was the last, and when it is the only one if no other comes.
#[derive(Debug)]
struct Last {
    stream: u32,
    only_from: Instant,
}

impl Last {
    fn note(&mut self, stream: u32, now: Instant) {
        if self.stream != stream {
            self.stream = stream;
            self.only_from = now + ALONE_AFTER;
        }
    }

    fn is_only(&self, stream: u32, now: Instant) -> bool {
        self.stream == stream && now >= self.only_from
    }
}

/// Who receives on a session.
#[derive(Debug)]
pub(crate) struct Company {
    /// Anything.
    any: Last,
    /// As much as makes a window update due.
    bulk: Last,
}

impl Company {
    /// Nobody yet.
    pub(crate) fn new(now: Instant) -> Self {
        let nobody = || Last {
            stream: 0,
            only_from: now,
        };
        Self {
            any: nobody(),
            bulk: nobody(),
        }
    }

    /// A window update of `stream` is due.
    pub(crate) fn updated(&mut self, stream: u32, now: Instant) {
        self.bulk.note(stream, now);
    }
}

/// What a window may grow to, what of it is held back, and the round trip that says whether it should grow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    max: u32,
    reserve: u32,
    round_trip: Option<Duration>,
}

impl Bounds {
    /// The bounds for `stream`, of which data was taken, on a path of `round_trip` if that is known.
    ///
    /// On a short path larger windows are a longer queue more than anything: small requests beside a download on loopback waited
    /// 2.4 ms behind grown windows, 0.8 ms behind the first ones. So there a window grows only while its stream is alone.
    pub(crate) fn new(
        stream: u32,
        max: u32,
        round_trip: Option<Duration>,
        company: &mut Company,
        now: Instant,
    ) -> Self {
        company.any.note(stream, now);
        match round_trip {
            Some(path) if path < SHORT && company.any.is_only(stream, now) => Self {
                max: max.min(ALONE_MAX),
                reserve: 0,
                round_trip: Some(SHORT),
            },
            Some(path) if path < SHORT => Self {
                max: INITIAL_WINDOW,
                reserve: if company.bulk.is_only(stream, now) {
                    RESERVE
                } else {
                    0
                },
                round_trip: None,
            },
            _ => Self {
                max,
                reserve: 0,
                round_trip,
            },
        }
    }
}

/// A window update is sent for each quarter of the window: often enough that the peer is left with most of it while it
/// waits, seldom enough to cost nothing.
const UPDATES_PER_WINDOW: u32 = 4;

/// The receive window of one stream. Always `credit + held <= size`: the peer never has leave to send what there is no
/// room for.
#[derive(Debug)]
pub(crate) struct ReceiveWindow {
    /// What the peer may have under way or with us at a time.
    size: u32,
    /// What the peer may still send.
    credit: u32,
    /// What the peer has sent and the application has not taken.
    held: u32,
    /// When the current round began: a round trip in which consumption is counted.
    round: Option<Instant>,
    /// What the application has taken in this round.
    consumed: u32,
    /// What is not given back now.
    reserve: u32,
    /// A window update is to be sent.
    update_due: bool,
}

impl ReceiveWindow {
    pub(crate) fn new() -> Self {
        Self {
            size: INITIAL_WINDOW,
            credit: INITIAL_WINDOW,
            held: 0,
            round: None,
            consumed: 0,
            reserve: 0,
            update_due: false,
        }
    }

    pub(crate) fn size(&self) -> u32 {
        self.size
    }

    pub(crate) fn held(&self) -> u32 {
        self.held
    }

    /// The peer announced a frame of `length` bytes. The error is the credit it had, if that was less.
    pub(crate) fn receive(&mut self, length: u32) -> Result<(), u32> {
        self.credit = self.credit.checked_sub(length).ok_or(self.credit)?;
        self.held += length;
        Ok(())
    }

    /// The application took `bytes`. True when that makes a window update due.
    pub(crate) fn consume(
        &mut self,
        bytes: u32,
        bounds: Bounds,
        growth: &mut Growth,
        now: Instant,
    ) -> bool {
        let bytes = bytes.min(self.held);
        self.held -= bytes;
        self.give_back(bytes, bounds.max, growth);
        self.reserve = bounds.reserve;
        if let Some(round_trip) = bounds.round_trip {
            let round = self.round.get_or_insert(now);
            if now.saturating_duration_since(*round) >= round_trip {
                *round = now;
                self.consumed = 0;
            }
            self.consumed = self.consumed.saturating_add(bytes);
        }
        if self.update_due || self.due() < self.size / UPDATES_PER_WINDOW {
            return false;
        }
        // What is consumed in a round trip is the product of bandwidth and delay, or else what the window allows: at least
        // three quarters of it, the rest being credit not worth an update yet. So a window that grows by half whenever more
        // than half of it is consumed in a round grows as long as it is what holds the peer back, and ends between two and
        // three times the product.
        if self.consumed > self.size / 2 {
            let wanted = (self.size / 2).min(bounds.max.saturating_sub(self.size));
            self.size += growth.take(self.size - INITIAL_WINDOW, wanted);
        }
        self.update_due = true;
        true
    }

    /// The credit that a frame sent now must carry; it counts as given.
    pub(crate) fn grant(&mut self) -> u32 {
        if !std::mem::take(&mut self.update_due) {
            return 0;
        }
        let due = self.due();
        self.credit += due;
        due
    }

    /// Ends the window: what it had grown by goes back.
    pub(crate) fn close(&mut self, growth: &mut Growth) {
        let excess = self.size - INITIAL_WINDOW;
        growth.release(excess, excess);
        self.size = INITIAL_WINDOW;
        self.credit = 0;
        self.held = 0;
    }

    fn due(&self) -> u32 {
        self.size
            .saturating_sub(self.credit + self.held + self.reserve)
    }

    /// Bytes that were taken are not granted anew until the window is down to `max`, and when memory is short to its share.
    fn give_back(&mut self, bytes: u32, max: u32, growth: &mut Growth) {
        let excess = self.size - INITIAL_WINDOW;
        if excess == 0 {
            return;
        }
        let share = u32::try_from(growth.fair_share())
            .unwrap_or(u32::MAX)
            .min(max.saturating_sub(INITIAL_WINDOW));
        let cut = bytes.min(excess.saturating_sub(share));
        growth.release(excess, cut);
        self.size -= cut;
    }
}
