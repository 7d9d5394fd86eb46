use std::sync::Arc;

use super::*;
use crate::frame::INITIAL_WINDOW;
use crate::window::WindowBudget;

const WINDOW: usize = INITIAL_WINDOW as usize;

fn id(n: u32) -> StreamId {
    StreamId::new(n).unwrap()
}

fn header(kind: Kind, flags: Flags, stream: u32, length: u32) -> [u8; HEADER_LEN] {
    Header {
        kind,
        flags,
        stream,
        length,
    }
    .encode()
}

fn data(flags: Flags, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = header(Kind::Data, flags, stream, payload.len() as u32).to_vec();
    frame.extend_from_slice(payload);
    frame
}

fn connection(side: Side) -> Connection {
    let mut connection = Connection::new(side, Config::default(), Instant::now());
    assert_eq!(
        sent(&mut connection),
        [header(Kind::Ping, Flags::SYN, 0, 0)],
        "the first ping"
    );
    connection
}

/// All control frames that are pending.
fn sent(connection: &mut Connection) -> Vec<[u8; HEADER_LEN]> {
    std::iter::from_fn(|| connection.poll_control(Instant::now())).collect()
}

/// All events of `input`, payload copied out.
fn received(connection: &mut Connection, input: &[u8]) -> Result<Vec<(Event, Vec<u8>)>, Error> {
    let mut events = Vec::new();
    let mut at = 0;
    loop {
        let (n, event) = connection.receive(&input[at..], Instant::now())?;
        let Some(event) = event else {
            assert_eq!(at + n, input.len(), "all input is taken");
            return Ok(events);
        };
        let payload = match &event {
            Event::Data { range, .. } => input[at..][range.clone()].to_vec(),
            _ => Vec::new(),
        };
        events.push((event, payload));
        at += n;
    }
}

/// The events of `input` by name, payload of one stream joined.
fn told(connection: &mut Connection, input: &[u8]) -> Vec<String> {
    received(connection, input)
        .unwrap()
        .into_iter()
        .map(|(event, payload)| match event {
            Event::Data { stream, .. } => {
                format!("{stream}: {}", String::from_utf8(payload).unwrap())
            }
            other => format!("{other:?}"),
        })
        .collect()
}

#[test]
fn a_request_and_its_answer_take_the_fewest_frames() {
    let mut client = connection(Side::Client);
    let mut server = connection(Side::Server);
    let stream = client.open().unwrap();
    let mut wire = client.data_header(stream, 5).to_vec();
    wire.extend_from_slice(b"hello");
    assert_eq!(wire, data(Flags::SYN, 1, b"hello"));
    assert_eq!(sent(&mut client), [[0; 12]; 0], "the data frame opened it");
    assert_eq!(
        told(&mut server, &wire),
        ["Opened(StreamId(1))", "1: hello"]
    );

    let mut wire = server.data_header(stream, 2).to_vec();
    wire.extend_from_slice(b"hi");
    assert_eq!(wire, data(Flags::ACK, 1, b"hi"));
    server.finish(stream);
    wire.extend(sent(&mut server).concat());
    assert_eq!(told(&mut client, &wire), ["1: hi", "Finished(StreamId(1))"]);
    assert_eq!(client.stats().unacknowledged, 0);

    client.consumed(stream, 2, Instant::now());
    client.finish(stream);
    server.consumed(stream, 5, Instant::now());
    assert!(client.is_open(stream));
    let wire = sent(&mut client).concat();
    assert!(!client.is_open(stream));
    assert_eq!(told(&mut server, &wire), ["Finished(StreamId(1))"]);
    assert!(!server.is_open(stream));
    assert_eq!(server.stats().streams + client.stats().streams, 0);
}

#[test]
fn a_stream_that_has_nothing_to_say_yet_is_opened_and_acknowledged_all_the_same() {
    let mut client = connection(Side::Client);
    let mut server = connection(Side::Server);
    client.open().unwrap();
    let opening = sent(&mut client);
    assert_eq!(opening, [header(Kind::WindowUpdate, Flags::SYN, 1, 0)]);
    told(&mut server, &opening.concat());
    let acknowledged = sent(&mut server);
    assert_eq!(acknowledged, [header(Kind::WindowUpdate, Flags::ACK, 1, 0)]);
    assert_eq!(client.stats().unacknowledged, 1);
    told(&mut client, &acknowledged.concat());
    assert_eq!(client.stats().unacknowledged, 0);
}

#[test]
fn frames_cut_anywhere_mean_the_same() {
    let mut wire = data(Flags::SYN, 1, b"one");
    wire.extend(header(Kind::Ping, Flags::SYN, 0, 77));
    wire.extend(data(Flags::SYN.with(Flags::FIN), 3, b"three"));
    wire.extend(header(Kind::WindowUpdate, Flags::FIN, 1, 0));
    let whole = told(&mut connection(Side::Server), &wire);
    assert_eq!(
        whole,
        [
            "Opened(StreamId(1))",
            "1: one",
            "Opened(StreamId(3))",
            "3: three",
            "Finished(StreamId(3))",
            "Finished(StreamId(1))"
        ]
    );
    for cut in 0..=wire.len() {
        let mut server = connection(Side::Server);
        let mut parts = told(&mut server, &wire[..cut]);
        parts.extend(told(&mut server, &wire[cut..]));
        let text = |events: &[String]| events.join("|").replace("|1: ", "").replace("|3: ", "");
        assert_eq!(
            text(&parts).replace("1: ", "").replace("3: ", ""),
            text(&whole).replace("1: ", "").replace("3: ", ""),
            "cut at {cut}"
        );
    }
}

#[test]
fn one_frame_can_open_and_end_a_stream_without_further_input() {
    let mut server = connection(Side::Server);
    for kind in [Kind::Data, Kind::WindowUpdate] {
        let n = if kind == Kind::Data { 1 } else { 3 };
        let frame = header(kind, Flags::SYN.with(Flags::FIN), n, 0);
        assert_eq!(
            told(&mut server, &frame),
            [
                format!("Opened(StreamId({n}))"),
                format!("Finished(StreamId({n}))")
            ]
        );
    }
}

#[test]
fn a_sender_without_window_hears_when_it_may_go_on() {
    let mut client = connection(Side::Client);
    let stream = client.open().unwrap();
    assert_eq!(client.send_window(stream), WINDOW);
    client.data_header(stream, WINDOW - 1);
    let update = header(Kind::WindowUpdate, Flags::ACK, 1, 9);
    assert!(told(&mut client, &update).is_empty(), "it was not stuck");
    client.data_header(stream, 10);
    assert_eq!(client.send_window(stream), 0);
    let update = header(Kind::WindowUpdate, Flags::NONE, 1, 4096);
    assert_eq!(told(&mut client, &update), ["Writable(StreamId(1))"]);
    assert_eq!(client.send_window(stream), 4096);
}

#[test]
fn the_4_mib_window_of_the_deployed_server_is_used_from_its_acknowledgement_on() {
    let mut client = connection(Side::Client);
    let stream = client.open().unwrap();
    client.data_header(stream, 1000);
    let update = header(
        Kind::WindowUpdate,
        Flags::ACK,
        1,
        (4 << 20) - INITIAL_WINDOW,
    );
    told(&mut client, &update);
    assert_eq!(client.send_window(stream), (4 << 20) - 1000);
    let absurd = header(Kind::WindowUpdate, Flags::NONE, 1, u32::MAX);
    told(&mut client, &absurd);
    assert_eq!(client.send_window(stream), u32::MAX as usize);
}

/// A client whose round trip was measured, with a stream to a server with windows of 4 MiB.
fn to_the_deployed_server(round_trip: Duration, start: Instant) -> (Connection, StreamId, Instant) {
    let mut client = Connection::new(Side::Client, Config::default(), start);
    let stream = client.open().unwrap();
    while client.poll_control(start).is_some() {}
    let now = start + round_trip;
    client
        .receive(&header(Kind::Ping, Flags::ACK, 0, 0), now)
        .unwrap();
    let extra = (4 << 20) - INITIAL_WINDOW;
    let frame = header(Kind::WindowUpdate, Flags::ACK, stream.value(), extra);
    client.receive(&frame, now).unwrap();
    (client, stream, now)
}

#[test]
fn a_frame_ends_and_a_long_path_rests_where_the_deployed_server_gives_half_a_window_back() {
    let half = 2 << 20;
    let (mut client, stream, now) =
        to_the_deployed_server(Duration::from_millis(80), Instant::now());
    client.data_header(stream, 1000);
    assert_eq!(client.poll_room(stream, now), half - 1000);
    assert_eq!(client.poll_rested(now), None);
    client.data_header(stream, half - 1000);
    assert_eq!(client.poll_room(stream, now), 0);
    assert_eq!(client.poll_room(stream, now), 0, "asked again");
    let until = client.next_timeout().unwrap();
    assert_eq!(until, now + Duration::from_millis(2));
    assert_eq!(client.poll_rested(now), None);
    assert_eq!(client.poll_rested(until), Some(stream));
    assert_eq!(client.poll_rested(until), None);
    assert_eq!(client.poll_room(stream, until), half);
    client.data_header(stream, half);
    assert_eq!(client.poll_room(stream, until), 0);
    let update = header(
        Kind::WindowUpdate,
        Flags::NONE,
        stream.value(),
        half as u32 + 7,
    );
    client.receive(&update, until).unwrap();
    assert_eq!(client.poll_room(stream, until), 7);
}

#[test]
fn what_comes_during_a_rest_ends_it() {
    let (mut client, stream, now) =
        to_the_deployed_server(Duration::from_millis(80), Instant::now());
    client.data_header(stream, 2 << 20);
    assert_eq!(client.poll_room(stream, now), 0);
    let update = header(Kind::WindowUpdate, Flags::NONE, stream.value(), 1 << 20);
    client.receive(&update, now).unwrap();
    assert_eq!(client.poll_room(stream, now), 1 << 20);
    client.reset(stream);
    assert_eq!(client.poll_room(stream, now), 0);
    assert_eq!(client.poll_rested(now + Duration::from_secs(1)), None);
}

#[test]
fn nobody_rests_on_a_short_path_or_towards_a_peer_that_only_gives_back_what_it_read() {
    let half = 2 << 20;
    let (mut client, stream, now) =
        to_the_deployed_server(Duration::from_millis(5), Instant::now());
    client.data_header(stream, half);
    assert_eq!(client.poll_room(stream, now), half);
    let other = client.open().unwrap();
    client.data_header(other, WINDOW);
    let update = header(
        Kind::WindowUpdate,
        Flags::ACK,
        other.value(),
        INITIAL_WINDOW,
    );
    client.receive(&update, now).unwrap();
    assert_eq!(client.poll_room(other, now), WINDOW);
}

#[test]
fn the_window_opens_by_quarters_as_the_application_takes_data() {
    let mut server = connection(Side::Server);
    told(&mut server, &data(Flags::SYN, 1, &vec![b'x'; WINDOW]));
    sent(&mut server);
    server.consumed(id(1), WINDOW / 4 - 1, Instant::now());
    assert_eq!(sent(&mut server), [[0; 12]; 0]);
    server.consumed(id(1), 1, Instant::now());
    server.consumed(id(1), 100, Instant::now());
    assert_eq!(
        sent(&mut server),
        [header(
            Kind::WindowUpdate,
            Flags::NONE,
            1,
            (WINDOW / 4 + 100) as u32
        )]
    );
}

#[test]
fn a_peer_that_sends_beyond_its_window_is_cut_off_with_a_reason() {
    let mut server = connection(Side::Server);
    told(&mut server, &data(Flags::SYN, 1, &vec![b'x'; WINDOW - 1]));
    let error = received(&mut server, &data(Flags::NONE, 1, b"xx")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the peer sent 2 bytes on stream 1, whose window had 1 left"
    );
    assert_eq!(sent(&mut server), [header(Kind::GoAway, Flags::NONE, 0, 1)]);
    assert_eq!(received(&mut server, b"anything"), Err(error));
    assert_eq!(server.open(), Err(OpenError::Failed(error)));
    assert_eq!(server.handle_timeout(Instant::now()), Err(error));
    assert_eq!(server.next_timeout(), None);
    assert!(!server.has_control());
}

#[test]
fn frames_that_no_peer_may_send_end_the_session() {
    let cases = [
        (data(Flags::SYN, 0, b""), Error::SessionStream),
        (data(Flags::SYN, 2, b""), Error::StreamParity(id(2))),
        (
            [data(Flags::SYN, 7, b""), data(Flags::SYN, 7, b"")].concat(),
            Error::StreamReused(id(7)),
        ),
        (vec![1; 12], Error::Version(1)),
        ([0, 9].repeat(6), Error::FrameType(9)),
    ];
    for (wire, expected) in cases {
        let mut server = connection(Side::Server);
        assert_eq!(received(&mut server, &wire), Err(expected));
        assert_eq!(
            sent(&mut server).last(),
            Some(&header(Kind::GoAway, Flags::NONE, 0, 1))
        );
    }
}

#[test]
fn an_id_is_not_used_again_after_its_stream_has_ended() {
    let mut server = connection(Side::Server);
    let frame = header(Kind::WindowUpdate, Flags::SYN, 1, 0);
    told(&mut server, &frame);
    told(&mut server, &header(Kind::WindowUpdate, Flags::RST, 1, 0));
    assert!(!server.is_open(id(1)));
    assert_eq!(
        received(&mut server, &frame),
        Err(Error::StreamReused(id(1)))
    );
}

#[test]
fn frames_for_streams_that_are_gone_are_ignored_and_the_session_stays_in_step() {
    let mut client = connection(Side::Client);
    let mut wire = data(Flags::NONE, 1, b"for nobody");
    wire.extend(header(Kind::WindowUpdate, Flags::FIN, 3, 5));
    wire.extend(header(Kind::WindowUpdate, Flags::RST, 4, 0));
    wire.extend(data(Flags::SYN, 2, b"heard"));
    assert_eq!(
        told(&mut client, &wire),
        ["Opened(StreamId(2))", "2: heard"]
    );
}

#[test]
fn data_behind_a_fin_is_dropped_and_a_second_fin_is_not_reported() {
    let mut client = connection(Side::Client);
    let stream = client.open().unwrap();
    let mut wire = data(Flags::FIN, 1, b"end");
    wire.extend(data(Flags::NONE, 1, &vec![b'x'; WINDOW]));
    wire.extend(data(Flags::FIN, 1, b"more"));
    assert_eq!(
        told(&mut client, &wire),
        ["1: end", "Finished(StreamId(1))"]
    );
    assert!(client.is_open(stream));
    assert_eq!(client.send_window(stream), WINDOW, "half-closed");
}

#[test]
fn a_reset_before_the_first_frame_never_shows_on_the_wire() {
    let mut client = connection(Side::Client);
    let stream = client.open().unwrap();
    client.reset(stream);
    assert_eq!(sent(&mut client), [[0; 12]; 0]);
    assert_eq!(client.stats().unacknowledged, 0);
    assert_eq!(client.stats().streams, 0);
}

#[test]
fn a_reset_stream_is_gone_at_once_and_what_still_comes_for_it_is_dropped() {
    let mut server = connection(Side::Server);
    let mut wire = data(Flags::SYN, 1, b"0123456789");
    let late = wire.split_off(HEADER_LEN + 4);
    assert_eq!(told(&mut server, &wire), ["Opened(StreamId(1))", "1: 0123"]);
    server.reset(id(1));
    assert!(!server.is_open(id(1)));
    assert_eq!(server.send_window(id(1)), 0);
    assert!(told(&mut server, &late).is_empty());
    assert!(told(&mut server, &data(Flags::FIN, 1, b"more")).is_empty());
    assert_eq!(
        sent(&mut server),
        [header(
            Kind::WindowUpdate,
            Flags::ACK.with(Flags::RST),
            1,
            0
        )]
    );
    assert_eq!(server.stats().streams, 0);
}

#[test]
fn the_peers_reset_is_reported_once() {
    let mut client = connection(Side::Client);
    let stream = client.open().unwrap();
    sent(&mut client);
    let reset = header(Kind::WindowUpdate, Flags::ACK.with(Flags::RST), 1, 0);
    assert_eq!(told(&mut client, &reset), ["Reset(StreamId(1))"]);
    assert!(told(&mut client, &reset).is_empty());
    assert!(!client.is_open(stream));
    assert_eq!(client.stats().unacknowledged, 0);
    client.finish(stream);
    client.consumed(stream, 100, Instant::now());
    client.reset(stream);
    assert_eq!(sent(&mut client), [[0; 12]; 0]);
}

#[test]
fn what_came_before_the_end_survives_the_reset_of_a_peer_that_tired_of_waiting() {
    let mut client = connection(Side::Client);
    let stream = client.open().unwrap();
    sent(&mut client);
    let mut wire = data(Flags::FIN, 1, b"the whole answer");
    wire.extend(header(Kind::WindowUpdate, Flags::RST, 1, 0));
    assert_eq!(
        told(&mut client, &wire),
        [
            "1: the whole answer",
            "Finished(StreamId(1))",
            "Reset(StreamId(1))"
        ]
    );
    assert!(client.is_open(stream), "16 bytes are still to be taken");
    assert_eq!(client.send_window(stream), 0);
    client.consumed(stream, 16, Instant::now());
    assert!(!client.is_open(stream));
    assert_eq!(sent(&mut client), [[0; 12]; 0]);
}

#[test]
fn streams_beyond_the_limit_are_refused_and_the_others_live() {
    let config = Config {
        max_streams: 2,
        ..Config::default()
    };
    let mut server = Connection::new(Side::Server, config, Instant::now());
    sent(&mut server);
    let mut wire = data(Flags::SYN, 1, b"a");
    wire.extend(data(Flags::SYN, 3, b"b"));
    wire.extend(data(Flags::SYN, 5, b"refused"));
    wire.extend(data(Flags::NONE, 1, b"c"));
    assert_eq!(
        told(&mut server, &wire),
        [
            "Opened(StreamId(1))",
            "1: a",
            "Opened(StreamId(3))",
            "3: b",
            "1: c"
        ]
    );
    assert!(sent(&mut server).contains(&header(Kind::WindowUpdate, Flags::RST, 5, 0)));
    assert_eq!(server.stats().refused, 1);
    assert_eq!(server.open(), Err(OpenError::TooManyStreams(2)));
}

#[test]
fn no_more_streams_are_opened_than_the_peer_has_room_to_accept() {
    let mut client = connection(Side::Client);
    for _ in 0..256 {
        client.open().unwrap();
    }
    assert_eq!(client.open(), Err(OpenError::Backlog(256)));
    told(&mut client, &header(Kind::WindowUpdate, Flags::ACK, 1, 0));
    client.open().unwrap();
}

#[test]
fn a_session_that_goes_away_refuses_new_streams_and_carries_the_old_ones() {
    let mut client = connection(Side::Client);
    let mut server = connection(Side::Server);
    let stream = client.open().unwrap();
    told(&mut server, &sent(&mut client).concat());
    server.go_away(GoAwayCode::Normal);
    assert_eq!(server.open(), Err(OpenError::GoingAway));
    let crossing = client.open().unwrap();
    let wire = sent(&mut server).concat();
    assert_eq!(told(&mut client, &wire), ["GoAway(Normal)"]);
    assert_eq!(client.open(), Err(OpenError::GoingAway));
    assert!(told(&mut server, &sent(&mut client).concat()).is_empty());
    assert_eq!(
        told(&mut client, &sent(&mut server).concat()),
        [format!("Refused({crossing:?})")]
    );
    let mut wire = client.data_header(stream, 3).to_vec();
    wire.extend_from_slice(b"old");
    assert_eq!(told(&mut server, &wire), ["1: old"]);
}

#[test]
fn ids_run_out_without_wrapping() {
    let mut client = connection(Side::Client);
    client.next_id = StreamId::new(u32::MAX);
    client.open().unwrap();
    assert_eq!(client.open(), Err(OpenError::IdsExhausted));
}

#[test]
fn pings_are_answered_with_their_own_value() {
    let mut server = connection(Side::Server);
    let mut wire = Vec::new();
    for n in [5, 0xffff_ffff, 6] {
        wire.extend(header(Kind::Ping, Flags::SYN, 0, n));
    }
    told(&mut server, &wire);
    let answers: Vec<_> = [5, 0xffff_ffff, 6]
        .map(|n| header(Kind::Ping, Flags::ACK, 0, n))
        .to_vec();
    assert_eq!(sent(&mut server), answers);
}

#[test]
fn a_dead_peer_is_found_and_a_living_one_kept() {
    let start = Instant::now();
    let config = Config::default();
    let (interval, timeout) = (config.ping_interval, config.ping_timeout);
    let mut client = Connection::new(Side::Client, config, start);
    client.poll_control(start).unwrap();
    let pong = header(Kind::Ping, Flags::ACK, 0, 0);
    let answered = start + Duration::from_millis(80);
    assert_eq!(
        client.receive(&pong, answered).unwrap().1,
        Some(Event::Pong {
            round_trip: Duration::from_millis(80)
        })
    );
    assert_eq!(client.stats().round_trip, Some(Duration::from_millis(80)));
    let next = client.next_timeout().unwrap();
    assert_eq!(next, answered + interval);
    client.handle_timeout(next).unwrap();
    assert!(client.has_control());
    assert_eq!(
        client.poll_control(next),
        Some(header(Kind::Ping, Flags::SYN, 0, 1))
    );
    let last = client.next_timeout().unwrap();
    assert_eq!(last, next + timeout);
    assert_eq!(client.handle_timeout(last), Err(Error::PingTimeout));
    assert_eq!(client.poll_control(last), None, "nobody would read it");
}

#[test]
fn a_peer_that_asks_and_never_reads_cannot_make_us_remember_much() {
    let mut server = connection(Side::Server);
    for n in 0..10_000 {
        told(&mut server, &header(Kind::Ping, Flags::SYN, 0, n));
    }
    assert_eq!(sent(&mut server).len(), PONGS_MAX);

    for n in 0..10_000u32 {
        let mut wire = data(Flags::SYN, 2 * n + 1, b"x");
        wire.extend(header(Kind::WindowUpdate, Flags::RST, 2 * n + 1, 0));
        told(&mut server, &wire);
        assert!(server.control.len() <= 128, "{}", server.control.len());
    }

    let mut server = connection(Side::Server);
    let mut opened = 0;
    let error = loop {
        let frame = header(Kind::WindowUpdate, Flags::SYN, 2 * opened + 1, 0);
        match received(&mut server, &frame) {
            Ok(_) => opened += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error, Error::RefusedFlood);
    assert_eq!(opened as usize, 4096 + REFUSALS_MAX);
}

#[test]
fn resets_that_the_peer_does_not_read_count_against_its_streams() {
    let config = Config {
        max_streams: 10,
        ..Config::default()
    };
    let mut server = Connection::new(Side::Server, config, Instant::now());
    for n in 0..100 {
        told(
            &mut server,
            &header(Kind::WindowUpdate, Flags::SYN, 2 * n + 1, 0),
        );
        server.reset(id(2 * n + 1));
        assert!(server.streams.len() <= 10);
    }
    assert_eq!(
        sent(&mut server).len(),
        1 + 100,
        "a ping and a hundred resets"
    );
    assert_eq!(server.stats().streams, 0);
}

/// Takes `n` bytes on `stream` and consumes them at once; the credit granted in return.
fn pump(server: &mut Connection, stream: u32, n: usize, now: Instant) -> u32 {
    let mut credit = 0;
    let mut left = n;
    while left > 0 {
        let part = left.min(WINDOW / 4);
        let mut frame = header(Kind::Data, Flags::NONE, stream, part as u32).to_vec();
        frame.resize(HEADER_LEN + part, 0);
        let mut at = 0;
        while let (n, Some(event)) = server.receive(&frame[at..], now).unwrap() {
            at += n;
            if let Event::Data { stream, range } = event {
                server.consumed(stream, range.len(), now);
            }
        }
        while let Some(frame) = server.poll_control(now) {
            let frame = Header::decode(&frame).unwrap();
            if frame.kind == Kind::WindowUpdate {
                credit += frame.length;
            }
        }
        left -= part;
    }
    credit
}

/// A server whose round trip was measured as 80 ms, with `streams` open.
fn measured(config: Config, streams: u32, start: Instant) -> (Connection, Instant) {
    measured_as(Duration::from_millis(80), config, streams, start)
}

fn measured_as(
    round_trip: Duration,
    config: Config,
    streams: u32,
    start: Instant,
) -> (Connection, Instant) {
    let mut server = Connection::new(Side::Server, config, start);
    server.poll_control(start).unwrap();
    let now = start + round_trip;
    server
        .receive(&header(Kind::Ping, Flags::ACK, 0, 0), now)
        .unwrap();
    for n in 0..streams {
        let frame = header(Kind::WindowUpdate, Flags::SYN, 2 * n + 1, 0);
        server.receive(&frame, now).unwrap();
    }
    while server.poll_control(now).is_some() {}
    (server, now)
}

#[test]
fn windows_grow_for_a_fast_reader_up_to_the_limit_and_not_for_a_slow_one() {
    let (mut server, mut now) = measured(Config::default(), 2, Instant::now());
    for _ in 0..200 {
        pump(&mut server, 1, WINDOW, now);
    }
    assert_eq!(server.stats().receive_window_peak, 16 << 20);
    assert_eq!(server.streams[&1].receive.size(), 16 << 20);
    for _ in 0..200 {
        pump(&mut server, 3, WINDOW / 4, now);
        now += Duration::from_millis(70);
    }
    assert_eq!(server.streams[&3].receive.size(), INITIAL_WINDOW);
}

#[test]
fn windows_do_not_grow_before_a_round_trip_is_known() {
    let mut server = connection(Side::Server);
    told(&mut server, &data(Flags::SYN, 1, b""));
    for _ in 0..50 {
        pump(&mut server, 1, WINDOW, Instant::now());
    }
    assert_eq!(server.streams[&1].receive.size(), INITIAL_WINDOW);
}

/// A server on a path of 90 microseconds that pumps 16 windows of stream 1, one of stream 3 before each if there is
/// `company`, half a millisecond between them.
fn pump_on_a_short_path(server: &mut Connection, company: bool, now: &mut Instant) -> u32 {
    for _ in 0..16 {
        if company {
            pump(server, 3, 100, *now);
        }
        pump(server, 1, WINDOW, *now);
        *now += Duration::from_micros(500);
    }
    server.streams[&1].receive.size()
}

#[test]
fn on_a_short_path_only_a_stream_that_is_alone_has_more_than_its_first_window() {
    let short = Duration::from_micros(90);
    let (mut server, mut now) = measured_as(short, Config::default(), 2, Instant::now());
    let first = pump_on_a_short_path(&mut server, false, &mut now);
    assert_eq!(first, INITIAL_WINDOW, "not alone for long enough");
    now += Duration::from_millis(100);
    let alone = pump_on_a_short_path(&mut server, false, &mut now);
    assert_eq!(alone, 1 << 20);
    let company = pump_on_a_short_path(&mut server, true, &mut now);
    assert_eq!(company, INITIAL_WINDOW, "what had grown went back");
    assert_eq!(server.stats().window_growth, 0);
    now += Duration::from_millis(100);
    let again = pump_on_a_short_path(&mut server, false, &mut now);
    assert_eq!(again, 1 << 20);
}

/// What the peer may send when all that it sent was taken, on a path of 90 microseconds where stream 1 receives in bulk and
/// stream 3 `other` bytes now and then.
fn credit_beside(other: usize) -> usize {
    let short = Duration::from_micros(90);
    let (mut server, mut now) = measured_as(short, Config::default(), 2, Instant::now());
    let mut credit = WINDOW;
    for _ in 0..40 {
        pump(&mut server, 3, other, now);
        credit -= WINDOW / 4;
        credit += pump(&mut server, 1, WINDOW / 4, now) as usize;
        now += Duration::from_millis(5);
    }
    credit
}

#[test]
fn on_a_short_path_the_only_bulk_stream_leaves_a_part_of_its_window_to_those_beside_it() {
    assert_eq!(credit_beside(64), WINDOW - 64 * 1024);
    assert_eq!(credit_beside(WINDOW / 4), WINDOW, "another bulk stream");
}

#[test]
fn a_limit_below_what_a_short_path_allows_holds() {
    let short = Duration::from_micros(90);
    let config = Config {
        receive_window_max: 512 << 10,
        ..Config::default()
    };
    let (mut server, mut now) = measured_as(short, config, 1, Instant::now());
    pump_on_a_short_path(&mut server, false, &mut now);
    now += Duration::from_millis(100);
    assert_eq!(
        pump_on_a_short_path(&mut server, false, &mut now),
        512 << 10
    );
}

#[test]
fn growth_stays_within_the_session_and_the_process_and_is_given_back() {
    let budget = Arc::new(WindowBudget::new(10 << 20));
    let config = Config {
        session_window_max: 6 << 20,
        budget: budget.clone(),
        ..Config::default()
    };
    let start = Instant::now();
    let (mut one, now) = measured(config.clone(), 1, start);
    let (mut two, _) = measured(config, 1, start);
    for _ in 0..100 {
        pump(&mut one, 1, WINDOW, now);
        assert!(one.stats().window_growth <= 6 << 20);
    }
    assert!(one.stats().window_growth > 3 << 20);
    for _ in 0..100 {
        pump(&mut two, 1, WINDOW, now);
        assert!(budget.used() <= 10 << 20);
        assert_eq!(
            budget.used(),
            one.stats().window_growth + two.stats().window_growth
        );
    }
    assert!(two.stats().window_growth > 2 << 20);
    let reset = header(Kind::WindowUpdate, Flags::RST, 1, 0);
    one.receive(&reset, now).unwrap();
    assert_eq!(budget.used(), two.stats().window_growth);
    drop(two);
    assert_eq!(budget.used(), 0);
}

#[test]
fn when_memory_is_short_a_large_window_makes_room_for_a_newcomer() {
    let config = Config {
        session_window_max: 8 << 20,
        ..Config::default()
    };
    let (mut server, now) = measured(config, 2, Instant::now());
    for _ in 0..200 {
        pump(&mut server, 1, WINDOW, now);
    }
    let alone = server.streams[&1].receive.size();
    for _ in 0..400 {
        pump(&mut server, 1, WINDOW, now);
        pump(&mut server, 3, WINDOW, now);
    }
    let (old, new) = (
        server.streams[&1].receive.size(),
        server.streams[&3].receive.size(),
    );
    assert!(
        new > 1 << 20,
        "the newcomer got {new} of {alone}, {old} left"
    );
    assert!(old < alone);
    let mut sum = 0;
    for stream in server.streams.values() {
        sum += (stream.receive.size() - INITIAL_WINDOW) as usize;
    }
    assert_eq!(sum, server.stats().window_growth);
}

#[test]
fn a_window_is_at_most_three_times_what_a_round_trip_consumes() {
    let (mut server, now) = measured(Config::default(), 1, Instant::now());
    let mut frame = header(Kind::Data, Flags::NONE, 1, INITIAL_WINDOW).to_vec();
    frame.resize(HEADER_LEN + WINDOW, 0);
    server.receive(&frame, now).unwrap();
    for _ in 0..WINDOW / 1024 {
        server.consumed(id(1), 1024, now);
        while server.poll_control(now).is_some() {}
    }
    let size = server.streams[&1].receive.size();
    assert!(
        size > INITIAL_WINDOW && size <= 3 * INITIAL_WINDOW,
        "{size}"
    );
}

#[test]
fn an_idle_stream_costs_little_memory() {
    assert!(size_of::<Stream>() <= 64, "{}", size_of::<Stream>());
    assert!(
        size_of::<Connection>() <= 1024,
        "{}",
        size_of::<Connection>()
    );
}

#[test]
fn the_first_exchange_on_a_session_measures_the_round_trip_without_a_ping() {
    let start = Instant::now();
    let config = || Config {
        ping_interval: Duration::MAX,
        ..Config::default()
    };
    let mut client = Connection::new(Side::Client, config(), start);
    let mut server = Connection::new(Side::Server, config(), start);
    assert_eq!(client.poll_control(start), None, "no ping by itself");
    let id = client.open().unwrap();
    assert!(client.poll_room(id, start) > 0);
    let header = client.data_header(id, 0);
    server.receive(&header, start).unwrap();
    let later = start + Duration::from_millis(80);
    let answer = server.poll_control(later).unwrap();
    client.receive(&answer, later).unwrap();
    assert_eq!(client.round_trip(), Some(Duration::from_millis(80)));
}
