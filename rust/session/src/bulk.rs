//! Which streams move much: what is small does well to keep away from them.

/// A stream that moves so many bytes between two looks is a bulk transfer, until it moves fewer than the second.
const TRANSFER: u64 = 512 << 10;
const TRANSFER_LEAST: u64 = 128 << 10;

/// How much a stream moves.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Pace {
    /// Payload that went either way since the last look.
    moved: u64,
    is_transfer: bool,
    /// It is no program's, and bounded: nobody need keep away from it.
    is_exempt: bool,
}

/// What a stream has moved since the last look.
#[derive(Debug, Clone, Copy)]
#[must_use]
pub(crate) struct Moved {
    bytes: u64,
    /// With this it is a bulk transfer.
    begins: bool,
}

impl Pace {
    /// Of a stream that is never a bulk transfer, and never may become one.
    pub(crate) fn exempt() -> Self {
        Self {
            is_exempt: true,
            ..Self::default()
        }
    }

    /// Payload went either way.
    pub(crate) fn note(&mut self, bytes: usize) -> Moved {
        if !self.is_exempt {
            self.moved += bytes as u64;
        }
        let begins = !self.is_transfer && self.moved >= TRANSFER;
        self.is_transfer |= begins;
        Moved {
            bytes: self.moved,
            begins,
        }
    }
}

/// What the owner of a session knows of this.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct BulkLoad {
    /// Streams that are bulk transfers.
    pub transfers: usize,
    /// A stream has moved so much that it may become one. Stays until a look finds none that has.
    pub is_growing: bool,
}

/// The same of all streams of a session.
#[derive(Debug)]
pub(crate) struct Bulk {
    load: BulkLoad,
    /// A stream that moves so many bytes between two looks may become a bulk transfer. `None`: nobody wants to know.
    early: Option<u64>,
}

impl Bulk {
    pub(crate) const fn new(early: Option<u64>) -> Self {
        Self {
            load: BulkLoad {
                transfers: 0,
                is_growing: false,
            },
            early,
        }
    }

    pub(crate) const fn load(&self) -> BulkLoad {
        self.load
    }

    /// Payload of a stream went either way.
    pub(crate) fn note(&mut self, moved: Moved) {
        self.load.transfers += usize::from(moved.begins);
        self.load.is_growing |= self.early.is_some_and(|early| moved.bytes >= early);
    }

    /// A stream has ended.
    pub(crate) fn forget(&mut self, pace: Pace) {
        self.load.transfers -= usize::from(pace.is_transfer);
    }

    /// A look at all streams after a while.
    pub(crate) fn look<'a>(&mut self, paces: impl Iterator<Item = &'a mut Pace>) {
        self.load = BulkLoad::default();
        for pace in paces {
            pace.is_transfer &= pace.moved >= TRANSFER_LEAST;
            self.load.transfers += usize::from(pace.is_transfer);
            self.load.is_growing |= self.early.is_some_and(|early| pace.moved >= early);
            pace.moved = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EARLY: usize = 32 << 10;

    fn load(transfers: usize, is_growing: bool) -> BulkLoad {
        BulkLoad {
            transfers,
            is_growing,
        }
    }

    #[test]
    fn a_stream_grows_before_it_is_a_bulk_transfer_and_is_neither_after_two_looks_without_a_byte() {
        let mut bulk = Bulk::new(Some(EARLY as u64));
        let mut pace = Pace::default();
        bulk.note(pace.note(EARLY - 1));
        assert_eq!(bulk.load(), load(0, false));
        bulk.note(pace.note(1));
        assert_eq!(bulk.load(), load(0, true));
        bulk.note(pace.note(512 << 10));
        assert_eq!(bulk.load(), load(1, true));
        bulk.look(std::iter::once(&mut pace));
        assert_eq!(bulk.load(), load(1, true));
        bulk.look(std::iter::once(&mut pace));
        assert_eq!(bulk.load(), load(0, false));
    }

    #[test]
    fn that_a_stream_grew_is_known_until_the_look_after_its_end() {
        let mut bulk = Bulk::new(Some(EARLY as u64));
        let mut pace = Pace::default();
        bulk.note(pace.note(600 << 10));
        bulk.forget(pace);
        assert_eq!(bulk.load(), load(0, true));
        bulk.look(std::iter::empty());
        assert_eq!(bulk.load(), load(0, false));
    }

    #[test]
    fn a_stream_that_is_exempt_never_counts() {
        let mut bulk = Bulk::new(Some(EARLY as u64));
        let mut pace = Pace::exempt();
        bulk.note(pace.note(600 << 10));
        assert_eq!(bulk.load(), load(0, false));
        bulk.look(std::iter::once(&mut pace));
        assert_eq!(bulk.load(), load(0, false));
    }

    #[test]
    fn where_nobody_wants_to_know_of_growing_streams_there_are_bulk_transfers_alone() {
        let mut bulk = Bulk::new(None);
        let mut pace = Pace::default();
        bulk.note(pace.note(600 << 10));
        assert_eq!(bulk.load(), load(1, false));
    }
}
