//! Two sessions on a virtual link with a virtual clock: thousands of random schedules of delays, split and merged bytes, full
//! sockets, readers that stop, resets, cuts, go-aways and half-closes. After each step the invariants are checked. A failure
//! prints its seed; `SIMULATION_SEED=N` runs that one alone, `SIMULATION_SCHEDULES=N` runs so many.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod ends;
mod link;
mod random;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use ech_workers_session::{
    Abort, Allowance, Config, Ended, Event, Ledger, Limits, LocalEnd as _, Lost, Mode, Open,
    Returned, Session, Status,
};
use ech_workers_yamux as yamux;

use crate::ends::{End, EndState, Fate, Script, Targets};
use crate::link::{Clock, Cut, Link, Pipe};
use crate::random::Random;

const SCHEDULES: u64 = 1000;
/// Streams of one schedule, at most.
const STREAMS: u64 = 8;
/// A schedule must have come to rest by then, in its own time, whatever happens in it.
const LIMIT: Duration = Duration::from_secs(4000);

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// One side with what its owner does.
struct Party {
    name: &'static str,
    session: Option<Session<Link, End>>,
    flag: Arc<Flag>,
    waker: Waker,
    ended: Option<Ended<Cut>>,
    returned: Vec<(Open<End>, Returned)>,
    failed: Vec<Status>,
    gone_away: bool,
    memory: Arc<Ledger>,
    share: usize,
}

impl Party {
    fn new(
        name: &'static str,
        session: Session<Link, End>,
        memory: Arc<Ledger>,
        share: usize,
    ) -> Self {
        let flag = Arc::new(Flag(AtomicBool::new(true)));
        Self {
            name,
            session: Some(session),
            waker: Waker::from(Arc::clone(&flag)),
            flag,
            ended: None,
            returned: Vec::new(),
            failed: Vec::new(),
            gone_away: false,
            memory,
            share,
        }
    }

    /// A turn, if there is cause for one. True if there was.
    fn turn(&mut self, clock: &Clock) -> bool {
        let Some(session) = &mut self.session else {
            return false;
        };
        let now = clock.now();
        // After its end only what the carrier still takes counts.
        let due = self.ended.is_none() && session.next_timeout().is_some_and(|at| at <= now);
        if !self.flag.0.swap(false, Ordering::SeqCst) && !due {
            return false;
        }
        let mut cx = Context::from_waker(&self.waker);
        if self.ended.is_none()
            && let Poll::Ready(ended) = session.poll(&mut cx, &|| clock.now())
        {
            session.say_goodbye(&ended);
            self.ended = Some(ended);
        }
        while let Some(event) = session.poll_event() {
            match event {
                Event::GoneAway(_) => self.gone_away = true,
                Event::BulkChanged(_) => {}
                Event::TargetFailed(refusal) => self.failed.push(refusal.status),
                Event::Returned(open, why) => self.returned.push((open, why)),
                Event::Unreached(open, refusal) => {
                    open.end.assert_all_is_in(&open.early);
                    if open.told {
                        open.end.abort(Abort::Reset);
                    } else {
                        open.end.refuse(&refusal);
                    }
                }
            }
        }
        if self.ended.is_some() {
            if session.poll_close(&mut cx).is_ready() {
                self.session = None;
            }
        } else {
            self.check();
        }
        true
    }

    fn check(&self) {
        let Some(session) = &self.session else { return };
        if session.streams() == 0 {
            assert_eq!(
                session.held(),
                0,
                "{}: memory is held for streams that are gone",
                self.name
            );
        }
        // One buffer may be taken in before the limit is looked at, and small pieces take up to twice their length.
        assert!(
            session.held() <= self.share + 2 * 132 * 1024 + 4096 * session.streams(),
            "{}: {} bytes are held, and {} may be",
            self.name,
            session.held(),
            self.share
        );
        assert_eq!(self.memory.held(), session.held());
    }

    fn next(&self) -> Option<Instant> {
        let session = self.session.as_ref().filter(|_| self.ended.is_none());
        session.and_then(Session::next_timeout)
    }
}

/// What is done to a schedule from outside.
#[derive(Debug, Clone, Copy)]
enum Deed {
    Cut,
    RetireClient,
    RetireServer,
    EndClient,
    EndServer,
    Probe,
}

struct World {
    clock: Clock,
    start: Instant,
    random: Random,
    simple: bool,
    extended: bool,
    /// In simple mode, bytes that the client and the server take at a time.
    windows: Option<(usize, usize)>,
    client: Party,
    server: Party,
    pipes: [Arc<Mutex<Pipe>>; 2],
    /// Streams to be opened: when, by which script, and whether with confirmation.
    opens: Vec<(Instant, usize, bool)>,
    client_scripts: Vec<Script>,
    programs: Vec<Arc<Mutex<EndState>>>,
    targets: Arc<Mutex<Vec<Arc<Mutex<EndState>>>>>,
    deeds: Vec<(Instant, Deed)>,
    disturbed: bool,
    /// How long the schedule may take.
    limit: Duration,
}

fn script(random: &mut Random, pair: u64, stops: bool) -> (Script, Script) {
    let size = |random: &mut Random| match random.range(0, 4) {
        0 => 0,
        1 => random.range(1, 200) as usize,
        2 => random.range(1, 20_000) as usize,
        _ => random.range(1, 600_000) as usize,
    };
    let (up, down) = (size(random), size(random));
    let program = Script {
        seed: pair * 2 + 1,
        sends: up,
        expects_seed: pair * 2 + 2,
        expects: down,
        stops_reading: if stops && random.once_in(6) {
            // For a moment, or for minutes.
            let most = if random.once_in(3) { 150_000 } else { 9000 };
            Duration::from_millis(random.range(1, most))
        } else {
            Duration::ZERO
        },
        slow: Duration::ZERO,
        fails_after: random
            .once_in(25)
            .then(|| random.range(0, up as u64 + 1) as usize),
        answers_at_the_end: false,
        connect_takes: Duration::ZERO,
        refuses: None,
        stays: random.once_in(3),
    };
    let target = Script {
        seed: program.expects_seed,
        sends: down,
        expects_seed: program.seed,
        expects: up,
        stops_reading: if stops && random.once_in(6) {
            // For a moment, or for minutes.
            let most = if random.once_in(3) { 150_000 } else { 9000 };
            Duration::from_millis(random.range(1, most))
        } else {
            Duration::ZERO
        },
        slow: Duration::ZERO,
        fails_after: random
            .once_in(25)
            .then(|| random.range(0, down as u64 + 1) as usize),
        // Only one of the two may wait for the other's end.
        answers_at_the_end: !program.stays && random.once_in(3),
        connect_takes: Duration::from_micros(random.range(0, 200_000)),
        refuses: random.once_in(8).then_some(if pair.is_multiple_of(2) {
            Status::Refused
        } else {
            Status::NotAllowed
        }),
        stays: false,
    };
    (program, target)
}

/// A schedule that is not left to chance altogether: one stream between our own ends.
struct Chosen {
    simple: bool,
    program: Script,
    target: Script,
}

impl World {
    fn new(seed: u64) -> Self {
        Self::build(seed, None)
    }

    /// An undisturbed schedule.
    fn chosen(seed: u64, chosen: Chosen) -> Self {
        Self {
            deeds: Vec::new(),
            disturbed: false,
            limit: LIMIT,
            ..Self::build(seed, Some(chosen))
        }
    }

    fn build(seed: u64, chosen: Option<Chosen>) -> Self {
        let mut random = Random(seed);
        let clock = Clock::new();
        let start = clock.now();
        let simple = random.once_in(3);
        let simple = chosen.as_ref().map_or(simple, |chosen| chosen.simple);
        let extended = !random.once_in(3) || chosen.is_some();
        let delay = Duration::from_micros([50, 5000, 80_000][random.range(0, 3) as usize]);
        let capacity = [2_000, 60_000, 400_000][random.range(0, 3) as usize];
        let [up, down] = pipes(capacity, delay, &mut random);
        let count = if simple || chosen.is_some() {
            1
        } else {
            random.range(1, STREAMS + 1)
        };
        let stops = !random.once_in(2);
        let (mut client_scripts, mut server_scripts) = (Vec::new(), Vec::new());
        for pair in 0..count {
            let (mut program, mut target) = script(&mut random, pair, stops);
            if !extended {
                // The deployed protocol ends both directions with one: only a program that waits for its answer gets it.
                program.stays = true;
                target.answers_at_the_end = false;
            }
            client_scripts.push(program);
            server_scripts.push(target);
        }
        if let Some(chosen) = chosen {
            client_scripts = vec![chosen.program];
            server_scripts = vec![chosen.target];
        }
        // Where nothing stands still on purpose, nothing may: a full pipe a round trip, and time for the pauses.
        let windows = (simple && random.once_in(2)).then(|| {
            let client = [8_000, 100_000, 1 << 20][random.range(0, 3) as usize];
            let server = [1_000, 300_000][random.range(0, 2) as usize];
            (client, server)
        });
        let bytes: usize = client_scripts
            .iter()
            .chain(&server_scripts)
            .map(|script| script.sends)
            .sum();
        let limit = if stops || !extended {
            LIMIT
        } else {
            // A window that was used up is given back by quarters.
            let window = windows.map_or(usize::MAX, |(client, server)| client.min(server) / 4);
            let trips = (bytes / capacity.min(50_000).min(window) + 20) as u32;
            Duration::from_secs(10) + (delay * 2 + Duration::from_millis(8)) * trips
        };
        let opens = (0..count as usize)
            .map(|number| {
                let at = start + Duration::from_micros(random.range(0, 300_000));
                (at, number, random.once_in(2))
            })
            .collect();
        let mut deeds = Vec::new();
        for _ in 0..random.range(0, 3) {
            let deed = match random.range(0, 6) {
                0 => Deed::Cut,
                1 => Deed::RetireClient,
                2 => Deed::RetireServer,
                3 => Deed::EndClient,
                4 => Deed::EndServer,
                _ => Deed::Probe,
            };
            deeds.push((
                start + Duration::from_micros(random.range(0, 3_000_000)),
                deed,
            ));
        }
        let share = if simple {
            64 << 10
        } else {
            [400 << 10, 2 << 20][random.range(0, 2) as usize]
        };
        let mut config = |extended, window, ping_timeout| {
            let memory = Arc::new(Ledger::new(usize::MAX / 2));
            let config = Config {
                mode: if simple {
                    Mode::Simple { window }
                } else {
                    Mode::Yamux(yamux::Config {
                        max_streams: 6,
                        ..yamux::Config::default()
                    })
                },
                extended,
                limits: Limits {
                    answer: Duration::from_secs(30),
                    idle: Duration::from_secs(600),
                    half_closed_idle: Duration::from_secs(120),
                },
                ping_interval: Duration::from_secs(28),
                ping_timeout: Duration::from_secs(ping_timeout),
                memory: Arc::clone(&memory),
                memory_share: Allowance::Bytes(share),
                early_bulk: None,
                seed: random.next(),
            };
            (config, memory)
        };
        let (client_config, client_memory) =
            config(extended, windows.map(|(client, _)| client), 10);
        let (server_config, server_memory) = config(true, windows.map(|(_, server)| server), 15);
        let targets = Arc::default();
        let connector = Targets {
            clock: clock.clone(),
            scripts: server_scripts,
            made: Arc::clone(&targets),
            random: random.fork(),
        };
        let client_link = Link::new(
            clock.clone(),
            Arc::clone(&up),
            Arc::clone(&down),
            &mut random,
        );
        let server_link = Link::new(
            clock.clone(),
            Arc::clone(&down),
            Arc::clone(&up),
            &mut random,
        );
        let client = Session::client(client_link, client_config, start);
        let server = Session::server(server_link, Box::new(connector), server_config, start);
        Self {
            client: Party::new("client", client, client_memory, share),
            server: Party::new("server", server, server_memory, share),
            clock,
            start,
            random,
            simple,
            extended,
            windows,
            pipes: [up, down],
            opens,
            client_scripts,
            programs: Vec::new(),
            targets,
            disturbed: !deeds.iter().all(|(_, deed)| matches!(deed, Deed::Probe)),
            deeds,
            limit,
        }
    }

    fn act(&mut self) {
        let now = self.clock.now();
        let (due, later): (Vec<_>, Vec<_>) = self.opens.drain(..).partition(|(at, ..)| *at <= now);
        self.opens = later;
        for (_, number, confirm) in due {
            let state = EndState::new(
                self.client_scripts[number].clone(),
                &self.clock,
                self.random.fork(),
            );
            self.programs.push(Arc::clone(&state));
            let end = End::new(&self.clock, &state);
            let mut open = Open::new(
                end,
                format!("{number}.test:1").into_bytes(),
                now + Duration::from_secs(8),
            );
            open.confirm = confirm;
            match &mut self.client.session {
                Some(session) if self.client.ended.is_none() => {
                    session.open(open, now);
                    self.client.flag.0.store(true, Ordering::SeqCst);
                }
                _ => self.client.returned.push((open, Returned::Ended)),
            }
        }
        let (due, later): (Vec<_>, Vec<_>) = self.deeds.drain(..).partition(|(at, _)| *at <= now);
        self.deeds = later;
        for (_, deed) in due {
            let (party, retire) = match deed {
                Deed::Cut => {
                    self.pipes
                        .iter()
                        .for_each(|pipe| pipe.lock().unwrap().cut());
                    continue;
                }
                Deed::RetireClient => (&mut self.client, true),
                Deed::RetireServer => (&mut self.server, true),
                Deed::EndClient => (&mut self.client, false),
                Deed::EndServer => (&mut self.server, false),
                Deed::Probe => {
                    if let Some(session) = &mut self.client.session {
                        session.probe(now);
                    }
                    self.client.flag.0.store(true, Ordering::SeqCst);
                    continue;
                }
            };
            if let Some(session) = &mut party.session {
                if retire {
                    session.retire();
                } else {
                    session.shut_down();
                }
            }
            party.flag.0.store(true, Ordering::SeqCst);
        }
    }

    fn all_ends(&self) -> Vec<Arc<Mutex<EndState>>> {
        let targets = self.targets.lock().unwrap();
        self.programs
            .iter()
            .chain(targets.iter())
            .cloned()
            .collect()
    }

    /// The next moment at which something happens.
    fn next(&self) -> Option<Instant> {
        let pipes = self
            .pipes
            .iter()
            .filter_map(|pipe| pipe.lock().unwrap().next_arrival());
        let targets = self.targets.lock().unwrap();
        let ends = self
            .programs
            .iter()
            .chain(targets.iter())
            .filter_map(|end| end.lock().unwrap().next_move());
        pipes
            .chain(ends)
            .chain(
                [self.client.next(), self.server.next()]
                    .into_iter()
                    .flatten(),
            )
            .chain(self.opens.iter().map(|(at, ..)| *at))
            .chain(self.deeds.iter().map(|(at, _)| *at))
            .min()
    }

    /// All streams have come to an end.
    fn is_at_rest(&self) -> bool {
        let over = |end: &Arc<Mutex<EndState>>| end.lock().unwrap().fate != Fate::Open;
        self.opens.is_empty()
            && self.deeds.is_empty()
            && self.programs.iter().all(over)
            && self.targets.lock().unwrap().iter().all(over)
    }

    fn run(&mut self) {
        let mut steps = 0_u64;
        loop {
            self.act();
            let mut progress = true;
            while progress {
                progress = self.client.turn(&self.clock);
                progress |= self.server.turn(&self.clock);
                // Requests that came back are not placed anew: they are dropped.
                self.client.returned.clear();
                self.check_windows();
                steps += 1;
                assert!(
                    steps < 300_000,
                    "it never comes to rest: at {:?}, client {:?}, server {:?}\n{}",
                    self.clock.now() - self.start,
                    self.client.next().map(|at| at - self.start),
                    self.server.next().map(|at| at - self.start),
                    self.describe()
                );
            }
            if self.is_at_rest() {
                break;
            }
            let Some(next) = self.next() else { break };
            assert!(
                next - self.start < self.limit,
                "it takes too long:\n{}",
                self.describe()
            );
            self.clock.advance_to(next);
            let now = self.clock.now();
            self.pipes
                .iter()
                .for_each(|pipe| pipe.lock().unwrap().wake(now));
            for end in self.all_ends() {
                end.lock().unwrap().wake(now);
            }
        }
        self.judge();
    }

    /// What one side has sent and the other's end has not taken is never more than the other takes at a time.
    fn check_windows(&self) {
        let Some((client, server)) = self.windows.filter(|_| self.extended) else {
            return;
        };
        let targets = self.targets.lock().unwrap();
        let ([program], [target]) = (self.programs.as_slice(), targets.as_slice()) else {
            return;
        };
        let (program, target) = (program.lock().unwrap(), target.lock().unwrap());
        // Before the server has said how much it takes, a client may send 256 KiB.
        for (from, to, window) in [
            (&program, &target, server.max(256 << 10)),
            (&target, &program, client),
        ] {
            assert!(
                from.sent <= to.got + window,
                "{} bytes were sent and {} taken, with a window of {window}",
                from.sent,
                to.got
            );
        }
    }

    fn describe(&self) -> String {
        let mut text = format!(
            "simple {} extended {} windows {:?} client {:?} {:?} server {:?} {:?}\n",
            self.simple,
            self.extended,
            self.windows,
            self.client.session,
            self.client.ended,
            self.server.session,
            self.server.ended
        );
        for end in self.all_ends() {
            let end = end.lock().unwrap();
            text += &format!(
                "  {:?} sent {}/{} got {}/{} finished {} {:?}\n",
                end.fate,
                end.sent,
                end.script.sends,
                end.got,
                end.script.expects,
                end.finished,
                end.next_move().map(|at| at - self.start)
            );
        }
        text
    }

    /// What must be true in the end.
    fn judge(&self) {
        let fault = |party: &Party| {
            matches!(
                party.ended,
                Some(Ended::Lost(Lost::Fault(_) | Lost::PingTimeout))
            )
        };
        assert!(
            !fault(&self.client) && !fault(&self.server),
            "{}",
            self.describe()
        );
        for end in self.all_ends() {
            let (fate, got, expects, finished) = {
                let end = end.lock().unwrap();
                (end.fate.clone(), end.got, end.script.expects, end.finished)
            };
            assert_ne!(
                fate,
                Fate::Open,
                "an end was forgotten\n{}",
                self.describe()
            );
            // A clean end is the end of the data. In the deployed protocol one direction ends both.
            if finished && fate == Fate::Closed && self.extended {
                assert_eq!(got, expects, "data is missing\n{}", self.describe());
            }
        }
        if self.disturbed {
            return;
        }
        for program in &self.programs {
            let (fate, opened) = {
                let program = program.lock().unwrap();
                (program.fate.clone(), program.opened)
            };
            let refused = matches!(fate, Fate::Refused(_) | Fate::Dropped);
            assert!(
                opened == 1 || refused || fate == Fate::Aborted(Abort::Local),
                "a request was not answered\n{}",
                self.describe()
            );
        }
    }
}

fn run(seed: u64) {
    let outcome = std::panic::catch_unwind(|| World::new(seed).run());
    if let Err(panic) = outcome {
        eprintln!("the schedule with SIMULATION_SEED={seed} failed");
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn every_schedule_keeps_the_invariants() {
    if let Ok(seed) = std::env::var("SIMULATION_SEED") {
        return run(seed.parse().expect("a number"));
    }
    let schedules = std::env::var("SIMULATION_SCHEDULES")
        .map_or(SCHEDULES, |count| count.parse().expect("a number"));
    for seed in 0..schedules {
        run(seed);
    }
}

/// Both directions of a link.
fn pipes(capacity: usize, delay: Duration, random: &mut Random) -> [Arc<Mutex<Pipe>>; 2] {
    [(); 2].map(|()| Pipe::new(capacity, delay, random.fork()))
}

const TRANSFER: usize = 600_000;

/// An end that sends and expects as much as the other.
fn transfer(seed: u64, expects_seed: u64) -> Script {
    Script {
        seed,
        sends: TRANSFER,
        expects_seed,
        expects: TRANSFER,
        stops_reading: Duration::ZERO,
        slow: Duration::ZERO,
        fails_after: None,
        answers_at_the_end: false,
        connect_takes: Duration::ZERO,
        refuses: None,
        stays: false,
    }
}

#[test]
fn a_reader_that_stops_for_minutes_or_is_slow_loses_nothing_in_either_mode_or_direction() {
    for case in 0..8 {
        let (simple, is_slow, program_reads) = (case & 1 == 0, case & 2 == 0, case & 4 == 0);
        for seed in 0..6 {
            let (mut program, mut target) = (transfer(1, 2), transfer(2, 1));
            let reader = if program_reads {
                &mut program
            } else {
                &mut target
            };
            if is_slow {
                reader.slow = Duration::from_millis(700);
            } else {
                // Less than the time after which a half-closed stream ends on which nothing moves.
                reader.stops_reading = Duration::from_secs(100);
            }
            let chosen = Chosen {
                simple,
                program,
                target,
            };
            let mut world = World::chosen(seed, chosen);
            world.run();
            for end in world.all_ends() {
                let (fate, got) = {
                    let end = end.lock().unwrap();
                    (end.fate.clone(), end.got)
                };
                assert_eq!(
                    (fate, got),
                    (Fate::Closed, TRANSFER),
                    "simple {simple} slow {is_slow} program {program_reads} seed {seed}\n{}",
                    world.describe()
                );
            }
        }
    }
}

/// A session's configuration in the tests of one session.
fn config(mode: Mode) -> Config {
    Config {
        mode,
        extended: true,
        limits: Limits {
            answer: Duration::from_secs(30),
            idle: Duration::from_secs(600),
            half_closed_idle: Duration::from_secs(120),
        },
        ping_interval: Duration::from_secs(28),
        ping_timeout: Duration::from_secs(15),
        memory: Arc::new(Ledger::new(1 << 20)),
        memory_share: Allowance::Bytes(1 << 20),
        early_bulk: None,
        seed: 3,
    }
}

/// The link of a session by itself, what goes into it, and what comes out.
struct Wire {
    clock: Clock,
    random: Random,
    link: Link,
    sent: Arc<Mutex<Pipe>>,
    received: Arc<Mutex<Pipe>>,
}

impl Wire {
    fn new() -> Self {
        let mut random = Random(5);
        let clock = Clock::new();
        let [sent, received] = pipes(1 << 20, Duration::ZERO, &mut random);
        let link = Link::new(
            clock.clone(),
            Arc::clone(&sent),
            Arc::clone(&received),
            &mut random,
        );
        Self {
            clock,
            random,
            link,
            sent,
            received,
        }
    }
}

/// A client's session by itself, whose messages can be looked at.
struct Alone {
    clock: Clock,
    session: Session<Link, End>,
    sent: Arc<Mutex<Pipe>>,
    received: Arc<Mutex<Pipe>>,
}

impl Alone {
    fn new(mode: Mode) -> Self {
        Self::with(config(mode))
    }

    fn with(config: Config) -> Self {
        let Wire {
            clock,
            link,
            sent,
            received,
            ..
        } = Wire::new();
        let session = Session::client(link, config, clock.now());
        Self {
            clock,
            session,
            sent,
            received,
        }
    }

    /// The messages that go out now, as their kind and payload.
    fn messages(&mut self) -> Vec<(u8, Vec<u8>)> {
        let clock = self.clock.clone();
        let mut cx = Context::from_waker(Waker::noop());
        assert!(self.session.poll(&mut cx, &|| clock.now()).is_pending());
        self.sent.lock().unwrap().messages()
    }

    fn wait(&self, time: Duration) {
        self.clock.advance_to(self.clock.now() + time);
    }

    fn open(&mut self, sends: usize) -> Arc<Mutex<EndState>> {
        self.open_within(sends, Duration::from_secs(8))
    }

    fn open_within(&mut self, sends: usize, limit: Duration) -> Arc<Mutex<EndState>> {
        let script = Script {
            sends,
            expects: 0,
            stays: true,
            ..transfer(1, 2)
        };
        self.open_as(script, limit)
    }

    fn open_as(&mut self, script: Script, limit: Duration) -> Arc<Mutex<EndState>> {
        let state = EndState::new(script, &self.clock, Random(1));
        let deadline = self.clock.now() + limit;
        let end = End::new(&self.clock, &state);
        let now = self.clock.now();
        self.session
            .open(Open::new(end, b"0.test:1".to_vec(), deadline), now);
        state
    }
}

#[test]
fn a_preamble_and_the_first_bytes_travel_in_one_message() {
    let mut alone = Alone::new(Mode::Yamux(yamux::Config::default()));
    assert_eq!(alone.messages(), [], "nothing follows the 101 by itself");
    let program = alone.open(100);
    // The program speaks a moment later.
    let mut messages = alone.messages();
    for _ in 0..20 {
        alone.wait(Duration::from_micros(90));
        program.lock().unwrap().wake(alone.clock.now());
        messages.append(&mut alone.messages());
    }
    assert_eq!(messages.len(), 1, "{messages:?}");
    // The frame's header, the preamble's, the target, and the bytes.
    assert_eq!(messages[0].1.len(), 12 + 6 + 8 + 100);
}

#[test]
fn a_program_that_waits_for_its_server_does_not_wait_for_long() {
    let mut alone = Alone::new(Mode::Yamux(yamux::Config::default()));
    alone.open(0);
    assert_eq!(alone.messages(), []);
    alone.wait(Duration::from_millis(2));
    let messages = alone.messages();
    assert_eq!(messages.len(), 1, "{messages:?}");
    assert_eq!(messages[0].1.len(), 12 + 6 + 8);
}

#[test]
fn a_stream_that_is_opened_after_a_quiet_time_is_not_taken_for_an_idle_one() {
    for mode in [
        Mode::Yamux(yamux::Config::default()),
        Mode::Simple { window: None },
    ] {
        let mut alone = Alone::new(mode);
        alone.messages();
        // Longer than a stream may wait for its answer.
        alone.wait(Duration::from_secs(35));
        let program = alone.open(100);
        alone.messages();
        assert_eq!(alone.session.streams(), 1);
        drop(program);
    }
}

#[test]
fn a_preamble_waits_for_the_first_bytes_after_a_quiet_time_as_well() {
    let mut alone = Alone::new(Mode::Yamux(yamux::Config::default()));
    alone.messages();
    alone.wait(Duration::from_secs(10));
    alone.open(0);
    assert_eq!(alone.messages(), []);
}

#[test]
fn a_stream_of_which_nothing_was_sent_comes_back_when_the_session_breaks() {
    let mut alone = Alone::new(Mode::Yamux(yamux::Config::default()));
    let sent = alone.open(100);
    for _ in 0..20 {
        alone.wait(Duration::from_millis(1));
        sent.lock().unwrap().wake(alone.clock.now());
        alone.messages();
    }
    let begun = alone.open(100);
    alone.sent.lock().unwrap().cut();
    alone.received.lock().unwrap().cut();
    let clock = alone.clock.clone();
    let mut cx = Context::from_waker(Waker::noop());
    let Poll::Ready(ended) = alone.session.poll(&mut cx, &|| clock.now()) else {
        panic!("it goes on")
    };
    alone.session.say_goodbye(&ended);
    let Some(Event::Returned(open, Returned::Ended)) = alone.session.poll_event() else {
        panic!("it did not come back")
    };
    assert_eq!(
        (open.authority.as_slice(), open.early.len()),
        (&b"0.test:1"[..], 0)
    );
    assert_eq!(begun.lock().unwrap().fate, Fate::Open);
    // The other one may have reached its target.
    assert_eq!(sent.lock().unwrap().fate, Fate::Aborted(Abort::SessionLost));
    assert!(alone.session.poll_event().is_none());
}

#[test]
fn a_quiet_session_sends_pings_of_changing_length_in_both_modes() {
    for mode in [
        Mode::Yamux(yamux::Config::default()),
        Mode::Simple { window: None },
    ] {
        let mut alone = Alone::new(mode);
        let (mut lengths, mut times) = (Vec::new(), vec![alone.clock.now()]);
        while lengths.len() < 3 {
            let next = alone.session.next_timeout().expect("a time");
            alone.clock.advance_to(next);
            let clock = alone.clock.clone();
            let mut cx = Context::from_waker(Waker::noop());
            if alone.session.poll(&mut cx, &|| clock.now()).is_ready() {
                break;
            }
            for (kind, payload) in alone.sent.lock().unwrap().messages() {
                if kind == 2 {
                    lengths.push(payload.len());
                    times.push(alone.clock.now());
                }
            }
        }
        assert!(!lengths.is_empty());
        assert!(
            lengths.windows(2).all(|two| two[0] != two[1]),
            "{lengths:?}"
        );
        assert!(
            times
                .windows(2)
                .all(|two| two[1] - two[0] < Duration::from_secs(30))
        );
    }
}

#[test]
fn an_answer_to_a_ping_counts_beside_one_that_nobody_asked_for() {
    let mut alone = Alone::new(Mode::Simple { window: None });
    let mut pings = Vec::new();
    while pings.is_empty() {
        let next = alone.session.next_timeout().expect("a time");
        alone.clock.advance_to(next);
        pings = alone.messages();
    }
    let trip = Duration::from_millis(80);
    alone.wait(trip);
    {
        let mut received = alone.received.lock().unwrap();
        received.put(3, &pings[0].1, alone.clock.now());
        received.put(3, b"nobody asked", alone.clock.now());
    }
    // The link may split what it carries.
    alone.wait(Duration::from_millis(1));
    alone.messages();
    let measured = alone.session.round_trip().expect("a round trip");
    assert!(measured >= trip, "{measured:?}");
}

#[test]
fn a_request_that_waits_for_earlier_ones_comes_back_when_its_time_is_over() {
    let mut alone = Alone::new(Mode::Yamux(yamux::Config {
        accept_backlog: 1,
        ..yamux::Config::default()
    }));
    alone.open(0);
    alone.messages();
    // The one that came last may wait for the shortest time.
    let (long, short) = (Duration::from_secs(8), Duration::from_secs(3));
    for limit in [long, short] {
        alone.open_within(0, limit);
    }
    let start = alone.clock.now();
    let mut back = Vec::new();
    while back.len() < 2 {
        let next = alone.session.next_timeout().expect("a time");
        alone.clock.advance_to(next);
        alone.messages();
        while let Some(event) = alone.session.poll_event() {
            assert!(matches!(event, Event::Returned(_, Returned::Full)));
            back.push(alone.clock.now() - start);
        }
    }
    assert_eq!(back, [short, long]);
}

/// A server's session by itself, and what a peer sends it.
struct AloneServer {
    clock: Clock,
    session: Session<Link, End>,
    sent: Arc<Mutex<Pipe>>,
    received: Arc<Mutex<Pipe>>,
    targets: Arc<Mutex<Vec<Arc<Mutex<EndState>>>>>,
}

impl AloneServer {
    fn new(mode: Mode, target: Script) -> Self {
        let Wire {
            clock,
            mut random,
            link,
            sent,
            received,
        } = Wire::new();
        let targets = Arc::default();
        let connector = Targets {
            clock: clock.clone(),
            scripts: vec![target],
            made: Arc::clone(&targets),
            random: random.fork(),
        };
        let session = Session::server(link, Box::new(connector), config(mode), clock.now());
        Self {
            clock,
            session,
            sent,
            received,
            targets,
        }
    }

    fn receives(&mut self, kind: u8, payload: &[u8]) {
        let now = self.clock.now();
        self.received.lock().unwrap().put(kind, payload, now);
    }

    /// Turns until nothing more is to be done, and how the session ended, if it did.
    fn turn(&mut self) -> Option<Ended<Cut>> {
        // The link may split what it carries.
        self.clock
            .advance_to(self.clock.now() + Duration::from_millis(1));
        let clock = self.clock.clone();
        for target in self.targets.lock().unwrap().iter() {
            target.lock().unwrap().wake(clock.now());
        }
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..10 {
            if let Poll::Ready(ended) = self.session.poll(&mut cx, &|| clock.now()) {
                return Some(ended);
            }
        }
        None
    }

    /// Targets that are connected, or being connected.
    fn open_targets(&self) -> usize {
        let targets = self.targets.lock().unwrap();
        let fates = targets
            .iter()
            .map(|target| target.lock().unwrap().fate.clone());
        fates.filter(|fate| *fate == Fate::Open).count()
    }
}

// yamux: types and flags of a frame.
const DATA: u8 = 0;
const WINDOW_UPDATE: u8 = 1;
const SYN: u8 = 1;
const FIN: u8 = 4;
const RST: u8 = 8;

fn header(kind: u8, flags: u8, stream: u32, length: usize) -> Vec<u8> {
    let mut header = vec![0, kind, 0, flags];
    header.extend(stream.to_be_bytes());
    header.extend((length as u32).to_be_bytes());
    header
}

/// The lengths of the data frames in these messages.
fn data_frames(messages: &[(u8, Vec<u8>)]) -> Vec<usize> {
    let bytes: Vec<u8> = messages
        .iter()
        .filter(|(kind, _)| *kind == 0)
        .flat_map(|(_, payload)| payload.clone())
        .collect();
    let mut rest = bytes.as_slice();
    let mut lengths = Vec::new();
    while let Some((header, behind)) = rest.split_at_checked(12) {
        rest = behind;
        if header[1] == DATA && header[3] & FIN == 0 {
            let length = u32::from_be_bytes(header[8..].try_into().unwrap()) as usize;
            lengths.push(length);
            rest = &behind[length..];
        }
    }
    lengths
}

/// A target whose connection is never made.
fn never_connected() -> Script {
    Script {
        connect_takes: Duration::from_secs(300),
        ..transfer(1, 2)
    }
}

/// What a server sends of a stream whose target sends so many bytes, and when it begins to.
fn answer_of_a_target(sends: usize, may_wait: bool) -> (Vec<usize>, Duration) {
    let target = Script {
        sends,
        stays: true,
        ..transfer(1, 2)
    };
    let mut server = AloneServer::new(Mode::Yamux(yamux::Config::default()), target);
    let preamble = [&[2, 1, 1, u8::from(may_wait), 0, 8][..], b"0.test:1"].concat();
    let opening = [header(DATA, SYN, 1, preamble.len()), preamble].concat();
    server.receives(0, &opening);
    let start = server.clock.now();
    let (mut lengths, mut begun) = (Vec::new(), None);
    for _ in 0..400 {
        assert!(server.turn().is_none());
        let messages = server.sent.lock().unwrap().messages();
        lengths.extend(data_frames(&messages));
        if !lengths.is_empty() && begun.is_none() {
            begun = Some(server.clock.now() - start);
        }
    }
    (lengths, begun.expect("a status"))
}

/// A status without a reason, in bytes.
const STATUS: usize = 3;

#[test]
fn a_status_and_the_targets_first_bytes_travel_together_where_the_client_allows_it() {
    let (lengths, _) = answer_of_a_target(100, true);
    assert_eq!(lengths, [STATUS + 100]);
    // A target that says nothing holds the status up for a quarter of a second.
    let (lengths, begun) = answer_of_a_target(0, true);
    assert_eq!(lengths, [STATUS]);
    let limit = Duration::from_millis(250);
    assert!(begun >= limit && begun < limit * 2, "{begun:?}");
    // And not where a program waits for it.
    let (_, begun) = answer_of_a_target(0, false);
    assert!(begun < Duration::from_millis(10), "{begun:?}");
}

#[test]
fn a_quiet_session_of_a_server_sends_pings_in_both_modes() {
    for mode in [
        Mode::Yamux(yamux::Config::default()),
        Mode::Simple { window: None },
    ] {
        let mut server = AloneServer::new(mode, never_connected());
        assert!(server.turn().is_none());
        assert_eq!(server.sent.lock().unwrap().messages(), []);
        let start = server.clock.now();
        let mut pings = Vec::new();
        while pings.is_empty() {
            let next = server.session.next_timeout().expect("a time");
            server.clock.advance_to(next);
            assert!(server.turn().is_none());
            pings = server.sent.lock().unwrap().messages();
            pings.retain(|(kind, _)| *kind == 2);
        }
        assert!(server.clock.now() - start < Duration::from_secs(30));
    }
}

#[test]
fn an_attempt_to_reach_a_target_ends_with_a_reset_behind_the_end_of_the_data() {
    let mut server = AloneServer::new(Mode::Yamux(yamux::Config::default()), never_connected());
    let preamble = b"0.test:1\n";
    for number in 0..2000 {
        let stream = 2 * number + 1;
        let frames = [
            header(WINDOW_UPDATE, SYN, stream, 0),
            header(DATA, 0, stream, preamble.len()),
            preamble.to_vec(),
            header(WINDOW_UPDATE, FIN, stream, 0),
            header(WINDOW_UPDATE, RST, stream, 0),
        ];
        server.receives(0, &frames.concat());
    }
    assert!(server.turn().is_none());
    assert_eq!(server.targets.lock().unwrap().len(), 2000);
    assert_eq!((server.session.streams(), server.open_targets()), (0, 0));
}

#[test]
fn an_attempt_to_reach_a_target_ends_with_the_connection_of_simple_mode() {
    for (request, behind) in [
        ("CONNECT:0.test:1|", None),
        ("CONNECT:0.test:1|", Some("CLOSE")),
        ("OPEN:0.test:1", None),
        ("OPEN:0.test:1", Some("FIN")),
    ] {
        let mut server = AloneServer::new(Mode::Simple { window: None }, never_connected());
        server.receives(1, request.as_bytes());
        assert!(server.turn().is_none());
        assert_eq!((server.session.streams(), server.open_targets()), (1, 1));
        if let Some(text) = behind {
            server.receives(1, text.as_bytes());
            assert!(server.turn().is_none());
        }
        // A goodbye with 1000.
        server.receives(4, &1000_u16.to_be_bytes());
        let ended = server.turn();
        assert!(matches!(ended, Some(Ended::Retired)), "{ended:?}");
        assert_eq!(server.open_targets(), 0, "{request} {behind:?}");
    }
}
