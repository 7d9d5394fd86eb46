//! The scheduler: what goes into the next records, and when.

use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::task::{Context, Poll};
use std::time::Instant;

use ech_workers_yamux::{self as yamux, StreamId};

use crate::budget::Budget;
use crate::carrier::Carrier;
use crate::end::{Abort, LocalEnd};
use crate::preamble::PLAIN_MAX;
use crate::stream::{ClientState, Outbound, State};
use crate::streams::Streams;

/// Records that a bulk stream may fill with one read: all that go out with one system call.
const BULK_RECORDS: usize = 16;
/// With less window than this, several records would not be filled anyway.
const BULK_WINDOW_MIN: usize = 16 * 1024;
/// Below this much room a message is ended rather than filled with another stream's bytes. A preamble, which must be in one
/// frame, has room in it.
const ROOM_MIN: usize = 1024;
const _: () = assert!(yamux::HEADER_LEN + PLAIN_MAX < ROOM_MIN);
/// Records sent in one turn.
const TURN_RECORDS: usize = 64;
/// Streams that have little to send go before those that have much, but no more than this many in a row.
const SMALL_TURNS: u32 = 8;

/// Ids of streams that have ended may be in line beside as many as there are streams, twice.
const SPARE_IDS: usize = 64;

/// Whose turn it is to send.
///
/// Control frames go before data, and streams with little to send (`small`), each at most the rest of one record, before
/// bulk streams, which fill what one system call sends and go to the back of their line.
#[derive(Debug, Default)]
pub(crate) struct Egress {
    /// Streams that filled what they were given the last time.
    bulk: VecDeque<StreamId>,
    /// The others that may have something to send.
    small: VecDeque<StreamId>,
    /// How many of these went in a row.
    small_turns: u32,
}

/// What became of an attempt to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// There is nothing more to send, or the carrier takes nothing more now.
    All,
    /// There is more, but this turn is over.
    More,
}

/// What one stream gave.
enum Filled {
    /// Bytes of the message.
    Bytes,
    /// Nothing now.
    Nothing,
}

impl Egress {
    /// When something that is held back now may be sent. What is not held back is sent at once, or when the carrier, an
    /// end or the peer gives cause to.
    ///
    /// Only the first bytes of a stream wait, for others to travel with. A traffic shaper would answer here, too.
    pub(crate) fn next_send<L: LocalEnd>(&self, streams: &Streams<L>) -> Option<Instant> {
        streams.next_release()
    }

    /// Gives up the memory of a busy time.
    pub(crate) fn shrink(&mut self) {
        self.bulk.shrink_to(16);
        self.small.shrink_to(16);
    }

    /// Fills records with control frames and with what the ends give, until there is nothing left, the carrier has no
    /// room, or the turn is over.
    pub(crate) fn send<C: Carrier, L: LocalEnd>(
        &mut self,
        carrier: &mut C,
        streams: &mut Streams<L>,
        cx: &mut Context<'_>,
        budget: &Budget<'_>,
    ) -> Result<Sent, C::Error> {
        let mut records = 0;
        loop {
            self.collect(streams);
            match carrier.poll_ready(cx) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => return Ok(Sent::All),
            }
            let many = self.fill_many(carrier, streams)?;
            if many > 0 {
                records += many;
            } else if self.fill_message(carrier, streams)? {
                records += 1;
            } else if self.small.is_empty() && self.bulk.is_empty() && !streams.wire.has_control() {
                return Ok(Sent::All);
            }
            if records >= TURN_RECORDS || budget.is_spent() {
                return Ok(Sent::More);
            }
        }
    }

    /// Puts the streams that were woken into line.
    fn collect<L: LocalEnd>(&mut self, streams: &mut Streams<L>) {
        let mut woken = std::mem::take(&mut streams.woken);
        for id in woken.drain(..) {
            if let Some(stream) = streams.get_mut(id) {
                if stream.bulk {
                    self.bulk.push_back(id);
                } else {
                    self.small.push_back(id);
                }
            }
        }
        streams.woken = woken;
        // While the carrier takes nothing, streams that have ended leave their ids behind.
        let most = 2 * streams.len() + SPARE_IDS;
        for line in [&mut self.small, &mut self.bulk] {
            if line.len() > most {
                line.retain(|id| streams.get_mut(*id).is_some());
            }
        }
    }

    /// The stream whose turn it is.
    fn next(&mut self) -> Option<StreamId> {
        if (self.small_turns < SMALL_TURNS || self.bulk.is_empty())
            && let Some(id) = self.small.pop_front()
        {
            self.small_turns += 1;
            return Some(id);
        }
        self.small_turns = 0;
        self.bulk.pop_front()
    }

    /// The bulk stream whose turn it is fills several records in one system call. Returns how many; 0: it is not the turn
    /// of one, or something has to go before.
    fn fill_many<C: Carrier, L: LocalEnd>(
        &mut self,
        carrier: &mut C,
        streams: &mut Streams<L>,
    ) -> Result<usize, C::Error> {
        if self.small_turns < SMALL_TURNS && !self.small.is_empty() {
            return Ok(0);
        }
        let Some(&id) = self.bulk.front() else {
            return Ok(0);
        };
        let now = streams.now;
        let header = streams.wire.header_len();
        let control = streams.wire.has_control();
        let Some((stream, wire)) = streams.split(id) else {
            self.bulk.pop_front();
            return Ok(0);
        };
        let mut window = wire.poll_room(id, now);
        let may_fill_many = stream.bulk
            && stream.first.is_empty()
            && stream.outbound == Outbound::Open
            && stream.is_relaying()
            && window > BULK_WINDOW_MIN
            && !control;
        let Some(end) = &mut stream.end else {
            return Ok(0);
        };
        if !may_fill_many || !end.reads_many() {
            return Ok(0);
        }
        let per_message = carrier.spaces_per_message().max(1);
        let mut room = 0;
        let mut sizes = Vec::with_capacity(BULK_RECORDS);
        let mut spaces = Vec::with_capacity(BULK_RECORDS);
        for (number, space) in carrier.spaces(BULK_RECORDS).enumerate() {
            sizes.push(space.len());
            let begins = number % per_message == 0;
            let Some(space) = space.get_mut(if begins { header } else { 0 }..) else {
                break;
            };
            let length = space.len().min(window);
            window -= length;
            room += length;
            spaces.push(IoSliceMut::new(space.get_mut(..length).unwrap_or_default()));
            if window == 0 {
                break;
            }
        }
        let mut cx = Context::from_waker(stream.waker.waker());
        let mut rest = match end.poll_read(&mut cx, &mut spaces) {
            Poll::Ready(Ok(n)) => n,
            // The socket tells of its reset once: the next read would look like a clean end.
            Poll::Ready(Err(_)) => {
                self.bulk.pop_front();
                streams.cut(id, Abort::Local);
                return Ok(0);
            }
            Poll::Pending => 0,
        };
        stream.bulk = rest == room;
        if rest == 0 {
            return Ok(0);
        }
        self.bulk.rotate_left(1);
        self.small_turns = 0;
        stream.active = now;
        let moved = stream.pace.note(rest);
        streams.bulk.note(moved);
        streams.traffic.sent += rest as u64;
        let mut records = 0;
        for sizes in sizes.chunks(per_message) {
            let length = rest.min(sizes.iter().sum::<usize>().saturating_sub(header));
            if length == 0 {
                break;
            }
            rest -= length;
            let message = streams.wire.begin_message(id, length, carrier.space());
            records += commit_all(carrier, message, header + length, sizes)?;
        }
        Ok(records)
    }

    /// Fills one message. False if there was nothing to put into it.
    fn fill_message<C: Carrier, L: LocalEnd>(
        &mut self,
        carrier: &mut C,
        streams: &mut Streams<L>,
    ) -> Result<bool, C::Error> {
        let header = streams.wire.header_len();
        loop {
            let begun = carrier.filled() > 0;
            let space = carrier.space();
            if space.len() <= header || begun && space.len() <= ROOM_MIN {
                break;
            }
            if let Some(length) = streams.wire.poll_control(space, streams.now) {
                carrier.add(length);
                continue;
            }
            if let Some(text) = streams.wire.poll_text() {
                carrier.text(text);
                return Ok(true);
            }
            let Some(id) = self.next() else { break };
            match self.fill_from(id, carrier, streams)? {
                Filled::Bytes if streams.wire.is_simple() => return Ok(true),
                Filled::Bytes | Filled::Nothing => {}
            }
        }
        if carrier.filled() == 0 {
            return Ok(false);
        }
        carrier.commit(0)?;
        Ok(true)
    }

    /// One stream puts what it has into the message: its first bytes, and what its end gives behind them.
    fn fill_from<C: Carrier, L: LocalEnd>(
        &mut self,
        id: StreamId,
        carrier: &mut C,
        streams: &mut Streams<L>,
    ) -> Result<Filled, C::Error> {
        let now = streams.now;
        let header = streams.wire.header_len();
        let Some((stream, wire)) = streams.split(id) else {
            return Ok(Filled::Nothing);
        };
        stream.queued = false;
        if let State::Client(ClientState::Draining(_)) = stream.state {
            return Ok(self.drain(id, carrier, streams));
        }
        let space = carrier.space().get_mut(header..).unwrap_or_default();
        let room = space.len().min(wire.poll_room(id, now));
        let first = stream.first.len().min(room);
        if first == 0 && !stream.first.is_empty() {
            // Event::Writable brings it back.
            return Ok(Filled::Nothing);
        }
        let (place, behind) = space.split_at_mut(first);
        place.copy_from_slice(stream.first.get(..first).unwrap_or_default());
        let whole_first = first == stream.first.len();
        let readable = stream.readable(room - first).min(behind.len());
        let mut read = 0;
        let mut ended = stream.outbound != Outbound::Open;
        let window = behind.get_mut(..readable).unwrap_or_default();
        if !ended
            && whole_first
            && !window.is_empty()
            && let Some(end) = &mut stream.end
        {
            let mut cx = Context::from_waker(stream.waker.waker());
            match end.poll_read(&mut cx, &mut [IoSliceMut::new(window)]) {
                Poll::Pending => {}
                Poll::Ready(Ok(0)) => ended = true,
                Poll::Ready(Ok(n)) => {
                    read = n;
                    stream.bulk = n == readable;
                }
                Poll::Ready(Err(_)) => {
                    streams.cut(id, Abort::Local);
                    return Ok(Filled::Nothing);
                }
            }
        }
        if read == 0 && !ended && stream.hold_until.is_some_and(|until| until > now) {
            // The first bytes wait for others: the end's waker or the time brings the stream back.
            return Ok(Filled::Nothing);
        }
        stream.hold_until = None;
        let length = first + read;
        if length == 0 {
            if ended {
                streams.end_outbound(id);
            }
            return Ok(Filled::Nothing);
        }
        let sent = carrier
            .space()
            .get(header..header + length)
            .unwrap_or_default();
        stream.note_sent(sent);
        if whole_first {
            // Nothing is kept of it: an idle stream holds no buffer.
            stream.first = Vec::new();
        } else {
            stream.first.drain(..first);
        }
        stream.active = now;
        let moved = stream.pace.note(read);
        streams.bulk.note(moved);
        streams.traffic.sent += read as u64;
        let message = streams.wire.begin_message(id, length, carrier.space());
        if streams.wire.is_simple() {
            commit_all(carrier, message, length, &[length])?;
        } else {
            carrier.add(message);
        }
        if ended && whole_first {
            streams.end_outbound(id);
        } else {
            streams.wake(id);
        }
        Ok(Filled::Bytes)
    }

    /// Reads and drops what a local program still sends after the server has closed both directions.
    fn drain<C: Carrier, L: LocalEnd>(
        &mut self,
        id: StreamId,
        carrier: &mut C,
        streams: &mut Streams<L>,
    ) -> Filled {
        let Some((stream, _)) = streams.split(id) else {
            return Filled::Nothing;
        };
        let Some(end) = &mut stream.end else {
            return Filled::Nothing;
        };
        let mut cx = Context::from_waker(stream.waker.waker());
        match end.poll_read(&mut cx, &mut [IoSliceMut::new(carrier.space())]) {
            Poll::Pending => {}
            Poll::Ready(Ok(0)) => streams.end_outbound(id),
            Poll::Ready(Ok(_)) => streams.wake(id),
            Poll::Ready(Err(_)) => streams.cut(id, Abort::Local),
        }
        Filled::Nothing
    }
}

/// Sends a binary message of `message` bytes, which lies in spaces of these sizes, and the rest of `length` in one more.
/// Returns how many were sent.
fn commit_all<C: Carrier>(
    carrier: &mut C,
    message: usize,
    length: usize,
    sizes: &[usize],
) -> Result<usize, C::Error> {
    let mut held = Vec::new();
    if message < length {
        let rest = carrier.space().get(message..length);
        held = rest.unwrap_or_default().to_vec();
    }
    let (mut left, mut used) = (message, 0);
    for size in sizes {
        let part = left.min(*size);
        if part == 0 {
            break;
        }
        left -= part;
        carrier.add(part);
        carrier.commit(left)?;
        used += 1;
    }
    if !held.is_empty() {
        let space = carrier.space();
        let rest = held.len().min(space.len());
        space
            .iter_mut()
            .zip(&held)
            .for_each(|(to, from)| *to = *from);
        carrier.add(rest);
        carrier.commit(0)?;
        used += 1;
    }
    Ok(used)
}

#[cfg(test)]
mod tests {
    use std::io::{self, IoSlice};
    use std::sync::Arc;
    use std::time::Duration;

    use ech_workers_yamux::{Config, Connection, Side};

    use super::*;
    use crate::config::Limits;
    use crate::end::Refusal;
    use crate::ledger::{Allowance, Ledger, Share};
    use crate::open::Open;
    use crate::streams::Role;
    use crate::wire::Wire;

    /// A program that says nothing and takes nothing.
    #[derive(Debug)]
    struct Silent;

    impl LocalEnd for Silent {
        fn poll_read(
            &mut self,
            _: &mut Context<'_>,
            _: &mut [IoSliceMut<'_>],
        ) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn poll_write(
            &mut self,
            _: &mut Context<'_>,
            _: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn finish(&mut self) {}

        fn close(self) {}

        fn abort(self, _: Abort) {}

        fn refuse(self, _: &Refusal) {}
    }

    #[test]
    fn streams_that_come_and_go_while_nothing_can_be_sent_leave_little_behind() {
        let now = Instant::now();
        let connection = Connection::new(Side::Client, Config::default(), now);
        let limits = Limits {
            answer: Duration::from_secs(30),
            idle: Duration::from_secs(600),
            half_closed_idle: Duration::from_secs(120),
        };
        let mut streams = Streams::<Silent>::new(
            Wire::Yamux(Box::new(connection)),
            Role::Client { extended: true },
            Share::new(Arc::new(Ledger::new(1 << 20)), Allowance::Part(1)),
            limits,
            None,
            now,
        );
        let mut egress = Egress::default();
        for number in 0..2000 {
            streams.open(Open::new(Silent, b"a.test:1".to_vec(), now));
            if number % 2 == 0 {
                for id in streams.woken.clone() {
                    streams.get_mut(id).unwrap().bulk = true;
                }
            }
            egress.collect(&mut streams);
            let last = [egress.small.back(), egress.bulk.back()];
            let newest = last.into_iter().flatten().max().copied();
            streams.cut(newest.expect("it is in line"), Abort::Local);
        }
        assert_eq!(streams.len(), 0);
        assert!(egress.small.len() <= 65 && egress.bulk.len() <= 65);
    }
}
