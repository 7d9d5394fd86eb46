//! Two of our endpoints, joined by byte streams that are cut anywhere, under random operations.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ech_workers_yamux::{Config, Side, StreamId, WindowBudget};
use proptest::prelude::*;
use proptest::sample::Index;

use crate::endpoint::Endpoint;

#[derive(Clone, Copy, Debug)]
enum Operation {
    Open,
    Send(Index, usize),
    Finish(Index),
    Reset(Index),
    Consume(Index, usize),
    Flush,
    /// Hands this much of what the other side has sent to this side.
    Deliver(usize),
    Ping,
    Pass(Duration),
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        2 => Just(Operation::Open),
        8 => (any::<Index>(), 1..200_000usize).prop_map(|(i, n)| Operation::Send(i, n)),
        4 => (any::<Index>(), 1..64usize).prop_map(|(i, n)| Operation::Send(i, n)),
        1 => any::<Index>().prop_map(Operation::Finish),
        1 => any::<Index>().prop_map(Operation::Reset),
        8 => (any::<Index>(), 1..400_000usize).prop_map(|(i, n)| Operation::Consume(i, n)),
        8 => Just(Operation::Flush),
        4 => (1..40usize).prop_map(Operation::Deliver),
        8 => (1..300_000usize).prop_map(Operation::Deliver),
        1 => Just(Operation::Ping),
        2 => (0..100u64).prop_map(|ms| Operation::Pass(Duration::from_millis(ms))),
    ]
}

struct Session {
    client: Endpoint,
    server: Endpoint,
    budget: Arc<WindowBudget>,
    now: Instant,
}

impl Session {
    fn new(max_streams: usize) -> Self {
        let now = Instant::now();
        let budget = Arc::new(WindowBudget::new(5 << 20));
        let config = Config {
            receive_window_max: 2 << 20,
            session_window_max: 4 << 20,
            budget: budget.clone(),
            max_streams,
            ..Config::default()
        };
        Self {
            client: Endpoint::new(Side::Client, config.clone(), now),
            server: Endpoint::new(Side::Server, config, now),
            budget,
            now,
        }
    }

    fn sides(&mut self, client: bool) -> (&mut Endpoint, &mut Endpoint) {
        if client {
            (&mut self.client, &mut self.server)
        } else {
            (&mut self.server, &mut self.client)
        }
    }

    fn run(&mut self, client: bool, operation: Operation) {
        let now = self.now;
        let (here, there) = self.sides(client);
        let pick = |index: Index, live: &dyn Fn(StreamId) -> bool| {
            let ids: Vec<StreamId> = here
                .streams
                .keys()
                .copied()
                .filter(|id| live(*id))
                .collect();
            (!ids.is_empty()).then(|| ids[index.index(ids.len())])
        };
        let any = |_| true;
        match operation {
            Operation::Open => {
                let _ = here.open();
            }
            Operation::Send(index, length) => {
                if let Some(id) = pick(index, &|id| here.connection.send_window(id) > 0) {
                    here.send(id, length);
                }
            }
            Operation::Finish(index) => {
                if let Some(id) = pick(index, &any) {
                    here.finish(id);
                }
            }
            Operation::Reset(index) => {
                if let Some(id) = pick(index, &any) {
                    here.reset(id);
                }
            }
            Operation::Consume(index, length) => {
                if let Some(id) = pick(index, &|id| here.streams[&id].unconsumed > 0) {
                    here.consume(id, length, now);
                }
            }
            Operation::Flush => {
                here.flush(now);
            }
            Operation::Deliver(length) => {
                let length = length.min(there.wire.len());
                let bytes: Vec<u8> = there.wire.drain(..length).collect();
                here.deliver(&bytes, now);
            }
            Operation::Ping => here.connection.ping(now),
            Operation::Pass(time) => {
                self.now += time;
            }
        }
        let budget = self.client.connection.stats().window_growth
            + self.server.connection.stats().window_growth;
        assert_eq!(budget, self.budget.used());
        assert!(budget <= self.budget.limit());
    }

    /// Delivers, consumes and finishes until nothing moves any more.
    fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 1000, "the session does not come to rest");
            let mut moved = 0;
            for client in [true, false] {
                let now = self.now;
                let (here, there) = self.sides(client);
                let ids: Vec<StreamId> = here.streams.keys().copied().collect();
                for id in ids {
                    let unconsumed = here.streams[&id].unconsumed;
                    moved += unconsumed;
                    here.consume(id, unconsumed, now);
                    if !here.streams[&id].finished {
                        here.finish(id);
                        moved += 1;
                    }
                }
                moved += here.flush(now);
                moved += here.wire.len();
                there.deliver(&std::mem::take(&mut here.wire), now);
            }
            if moved == 0 {
                return;
            }
        }
    }

    fn check_the_end(&self) {
        for (here, there) in [(&self.client, &self.server), (&self.server, &self.client)] {
            assert_eq!(here.connection.stats().streams, 0, "{:?}", here.streams);
            assert_eq!(here.connection.stats().unacknowledged, 0);
            for (id, stream) in &here.streams {
                let Some(other) = there.streams.get(id) else {
                    // Reset before it was announced, or refused.
                    assert!(stream.reset, "{id} was never seen by the peer");
                    continue;
                };
                if !stream.reset && !other.reset {
                    assert!(stream.ended, "{id} never ended");
                    assert_eq!(stream.received, other.sent, "bytes of {id}");
                }
            }
        }
        assert_eq!(self.budget.used(), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_reordered_or_sent_beyond_a_window(
        max_streams in prop_oneof![Just(3usize), Just(4096)],
        operations in prop::collection::vec((any::<bool>(), operation()), 1..400),
    ) {
        let mut session = Session::new(max_streams);
        for (client, operation) in operations {
            session.run(client, operation);
        }
        session.settle();
        session.check_the_end();
    }
}

#[test]
fn a_stopped_reader_stops_its_own_sender_and_nobody_else() {
    let mut session = Session::new(4096);
    let stopped = session.client.open().unwrap();
    let other = session.client.open().unwrap();
    while session.client.send(stopped, 16_000) > 0 {}
    for _ in 0..100 {
        let sent = session.client.send(other, 16_000);
        session.run(true, Operation::Flush);
        session.run(false, Operation::Deliver(usize::MAX));
        let now = session.now;
        session.server.consume(other, sent, now);
        session.run(false, Operation::Flush);
        session.run(true, Operation::Deliver(usize::MAX));
        assert_eq!(sent, 16_000);
        assert_eq!(session.client.connection.send_window(stopped), 0);
    }
    assert_eq!(session.server.streams[&stopped].unconsumed, 256 * 1024);
    session.settle();
    session.check_the_end();
}

#[test]
fn ten_thousand_streams_share_one_session() {
    let mut session = Session::new(20_000);
    let ids: Vec<StreamId> = (0..10_000)
        .map(|n| {
            let id = session.client.open().unwrap();
            session.client.send(id, 1 + n % 7);
            if n % 200 == 199 {
                session.run(true, Operation::Flush);
                session.run(false, Operation::Deliver(usize::MAX));
                session.run(false, Operation::Flush);
                session.run(true, Operation::Deliver(usize::MAX));
            }
            id
        })
        .collect();
    assert_eq!(session.server.connection.stats().streams, 10_000);
    for id in ids.iter().rev() {
        assert_eq!(session.server.send(*id, 100), 100);
    }
    session.settle();
    session.check_the_end();
}
