//! Sessions with the `yamux` crate at the other end.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use ech_workers_yamux::{Config, Side};
use futures_io::{AsyncRead, AsyncWrite};
use proptest::prelude::*;

use crate::endpoint::{Endpoint, check, write};

/// What happens on one stream.
#[derive(Clone, Debug)]
struct Plan {
    opened_by_us: bool,
    ours: u64,
    theirs: u64,
    /// We reset the stream after this much of theirs.
    reset_after: Option<u64>,
    /// For this many rounds we take nothing.
    stopped: u32,
}

fn plan() -> impl Strategy<Value = Plan> {
    let length = prop_oneof![0..100u64, 0..50_000u64, 0..1_500_000u64];
    (
        any::<bool>(),
        length.clone(),
        length,
        prop::option::weighted(0.1, 0..400_000u64),
        prop_oneof![4 => Just(0), 1 => 1..60u32],
    )
        .prop_map(|(opened_by_us, ours, theirs, reset_after, stopped)| Plan {
            opened_by_us,
            ours,
            // The crate sends a FIN without the SYN when a stream that it opened is closed before the first byte.
            theirs: theirs.max(u64::from(!opened_by_us)),
            reset_after,
            stopped,
        })
}

/// Both directions between the two, as the other implementation's socket.
#[derive(Clone, Default)]
struct Pipe(Arc<Mutex<Wires>>);

#[derive(Default)]
struct Wires {
    to_them: Vec<u8>,
    from_them: Vec<u8>,
}

impl AsyncRead for Pipe {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut wires = self.0.lock().unwrap();
        let n = buffer.len().min(wires.to_them.len());
        if n == 0 {
            return Poll::Pending;
        }
        buffer[..n].copy_from_slice(&wires.to_them[..n]);
        wires.to_them.drain(..n);
        Poll::Ready(Ok(n))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut wires = self.0.lock().unwrap();
        wires.from_them.extend_from_slice(buffer);
        Poll::Ready(Ok(buffer.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The other implementation with an application on top.
struct Theirs {
    side: Side,
    connection: yamux::Connection<Pipe>,
    streams: BTreeMap<u32, TheirStream>,
}

struct TheirStream {
    stream: yamux::Stream,
    sent: u64,
    finished: bool,
    received: u64,
    ended: bool,
}

impl Theirs {
    fn new(side: Side, pipe: Pipe) -> Self {
        let mode = match side {
            Side::Client => yamux::Mode::Client,
            Side::Server => yamux::Mode::Server,
        };
        Self {
            side,
            connection: yamux::Connection::new(pipe, yamux::Config::default(), mode),
            streams: BTreeMap::new(),
        }
    }

    fn adopt(&mut self, stream: yamux::Stream) {
        let stream = TheirStream {
            stream,
            sent: 0,
            finished: false,
            received: 0,
            ended: false,
        };
        self.streams.insert(stream.stream.id().val(), stream);
    }

    /// Lets everything go on that can.
    fn run(&mut self, plans: &BTreeMap<u32, Plan>, peer: Side) {
        let cx = &mut Context::from_waker(Waker::noop());
        let mut buffer = Vec::new();
        for _ in 0..4 {
            while let Poll::Ready(inbound) = self.connection.poll_next_inbound(cx) {
                let stream = inbound.expect("the session lives").expect("no error");
                self.adopt(stream);
            }
            for (id, stream) in &mut self.streams {
                stream.write(*id, self.side, plans[id].theirs, &mut buffer, cx);
                stream.read(*id, peer, &mut buffer, cx);
            }
        }
    }
}

impl TheirStream {
    fn write(
        &mut self,
        id: u32,
        from: Side,
        total: u64,
        buffer: &mut Vec<u8>,
        cx: &mut Context<'_>,
    ) {
        while self.sent < total {
            buffer.clear();
            let n = (total - self.sent).min(20_000) as usize;
            write(buffer, id, from, self.sent, n);
            match Pin::new(&mut self.stream).poll_write(cx, buffer) {
                Poll::Ready(Ok(n)) => self.sent += n as u64,
                // Reset by us.
                Poll::Ready(Err(_)) => self.sent = total,
                Poll::Pending => return,
            }
        }
        if !self.finished {
            self.finished = Pin::new(&mut self.stream).poll_close(cx).is_ready();
        }
    }

    fn read(&mut self, id: u32, peer: Side, buffer: &mut Vec<u8>, cx: &mut Context<'_>) {
        buffer.resize(20_000, 0);
        while !self.ended {
            match Pin::new(&mut self.stream).poll_read(cx, buffer) {
                Poll::Ready(Ok(0) | Err(_)) => self.ended = true,
                Poll::Ready(Ok(n)) => {
                    check(&buffer[..n], id, peer, self.received);
                    self.received += n as u64;
                }
                Poll::Pending => return,
            }
        }
    }
}

/// Our application's turn. True when it has nothing left to do on the streams of the plan.
fn run_ours(ours: &mut Endpoint, plans: &BTreeMap<u32, Plan>, round: u32, now: Instant) -> bool {
    let ids: Vec<_> = ours.streams.keys().copied().collect();
    let mut done = ids.len() == plans.len();
    for id in ids {
        let plan = &plans[&id.value()];
        let stream = &ours.streams[&id];
        if stream.reset {
            continue;
        }
        if plan
            .reset_after
            .is_some_and(|after| stream.received >= after)
            && !stream.finished
        {
            ours.reset(id);
            continue;
        }
        if round >= plan.stopped {
            let unconsumed = stream.unconsumed;
            ours.consume(id, unconsumed, now);
        }
        while ours.streams[&id].sent < plan.ours {
            let rest = (plan.ours - ours.streams[&id].sent) as usize;
            if ours.send(id, rest.min(16_000)) == 0 {
                break;
            }
        }
        if ours.streams[&id].sent == plan.ours && !ours.streams[&id].finished {
            ours.finish(id);
        }
        done &= !ours.connection.is_open(id);
    }
    ours.flush(now);
    done
}

fn run_session(side: Side, plans: &[Plan], cuts: &[usize]) {
    let now = Instant::now();
    let pipe = Pipe::default();
    let mut ours = Endpoint::new(side, Config::default(), now);
    let other = match side {
        Side::Client => Side::Server,
        Side::Server => Side::Client,
    };
    let mut theirs = Theirs::new(other, pipe.clone());

    let mut by_id = BTreeMap::new();
    let (mut our_next, mut their_next) = match side {
        Side::Client => (1, 2),
        Side::Server => (2, 1),
    };
    for plan in plans {
        let next = if plan.opened_by_us {
            &mut our_next
        } else {
            &mut their_next
        };
        by_id.insert(*next, plan.clone());
        *next += 2;
    }

    let mut to_open: Vec<&Plan> = plans.iter().rev().collect();
    to_open.sort_by_key(|plan| Reverse(plan.opened_by_us));
    // Each direction is cut in its own rhythm, with a large piece now and then.
    let rhythm = || cuts.iter().copied().chain([1 << 20]).cycle();
    let (mut cuts_in, mut cuts_out) = (rhythm(), rhythm());
    let mut still = 0;
    for round in 0.. {
        assert!(still < 200, "the session does not come to an end");
        if let Some(plan) = to_open.last() {
            if plan.opened_by_us {
                let id = ours.open().unwrap();
                assert!(by_id[&id.value()].opened_by_us);
                to_open.pop();
            } else {
                let cx = &mut Context::from_waker(Waker::noop());
                if let Poll::Ready(stream) = theirs.connection.poll_new_outbound(cx) {
                    theirs.adopt(stream.unwrap());
                    to_open.pop();
                }
            }
        }
        theirs.run(&by_id, side);
        let from_them: Vec<u8> = {
            let wires = &mut pipe.0.lock().unwrap();
            let n = cuts_in.next().unwrap().min(wires.from_them.len());
            wires.from_them.drain(..n).collect()
        };
        ours.deliver(&from_them, now);
        let done = run_ours(&mut ours, &by_id, round, now);
        let wires = &mut pipe.0.lock().unwrap();
        let n = cuts_out.next().unwrap().min(ours.wire.len());
        wires.to_them.extend(ours.wire.drain(..n));
        still = if n + from_them.len() > 0 {
            0
        } else {
            still + 1
        };
        if done && to_open.is_empty() && ours.wire.is_empty() && wires.to_them.is_empty() {
            break;
        }
    }
    theirs.run(&by_id, side);

    for (id, plan) in &by_id {
        let ours = ours.streams.iter().find(|(known, _)| known.value() == *id);
        let (_, ours) = ours.unwrap();
        if ours.reset {
            assert!(plan.reset_after.is_some(), "{id} was reset by the peer");
            continue;
        }
        let theirs = &theirs.streams[id];
        assert_eq!(ours.received, plan.theirs, "{id} to us");
        assert_eq!(theirs.received, plan.ours, "{id} to them");
        assert!(ours.ended && theirs.ended && theirs.finished);
    }
    assert_eq!(ours.connection.stats().streams, 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_yamux_crate_and_we_carry_each_others_streams(
        client in any::<bool>(),
        plans in prop::collection::vec(plan(), 1..12),
        cuts in prop::collection::vec(prop_oneof![1..20usize, 1..70_000usize, Just(1 << 20)], 1..50),
    ) {
        let side = if client { Side::Client } else { Side::Server };
        run_session(side, &plans, &cuts);
    }
}

#[test]
fn half_close_in_each_direction_leaves_the_other_open() {
    for (ours, theirs) in [(0, 1_000_000), (1_000_000, 1)] {
        for opened_by_us in [true, false] {
            let plan = Plan {
                opened_by_us,
                ours,
                theirs,
                reset_after: None,
                stopped: 0,
            };
            run_session(Side::Client, &[plan], &[10_000]);
        }
    }
}
