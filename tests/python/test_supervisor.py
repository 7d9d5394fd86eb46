"""Sessions, sleep, simple mode, and other threads."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

import pytest

from ech_workers.errors import (
    ConnectError,
    EngineClosed,
    SessionError,
    TunnelError,
)
from ech_workers.readiness import wait_ready
from ech_workers.timing import Timing
from harness.world import (
    REFUSED,
    DialFailed,
    EchLearned,
    LogLine,
    World,
    ech_list,
    failure,
    refuse,
    start,
)

if TYPE_CHECKING:
    from harness.world import World

# ---------------------------------------------------------------- sessions


def test_a_lost_session_is_replaced_at_once_without_alarm(world: World, caplog: pytest.LogCaptureFixture) -> None:
    start(world)
    world.run(100)
    lost_at = world.now
    with caplog.at_level(logging.WARNING, "ech_workers"):
        world.lose_all()
        status = world.run(1)
    assert status.phase == "up"
    assert world.dials[-1][0] == pytest.approx(lost_at)
    assert not caplog.records
    assert world.reason is None


GO_AWAY = failure("yamux", "yamux-go-away", "the server takes no new streams on this session")


@pytest.mark.parametrize("age", [1, 100])
def test_a_server_that_stops_is_no_failure_and_another_session_follows_when_somebody_waits_for_it(
    world: World, caplog: pytest.LogCaptureFixture, age: float
) -> None:
    start(world)
    world.run(age)
    world.waiting = 1
    stopped_at = world.now
    caplog.clear()
    with caplog.at_level(logging.INFO, "ech_workers"):
        world.lose_all(GO_AWAY)
        status = world.run(1)
    assert world.dials[-1][0] == pytest.approx(stopped_at, abs=0.2)
    assert (status.phase, status.cause, status.failures, status.breaker) == ("up", None, 0, "closed")
    assert {record.levelname for record in caplog.records} == {"INFO"}
    assert "secret.test:443 is stopping: it takes no new streams" in caplog.text
    assert world.reason is None


def test_after_a_farewell_the_next_dial_comes_within_45_s_or_when_somebody_waits_for_it(world: World) -> None:
    start(world)
    world.run(100)
    world.lose_all(GO_AWAY)
    world.run(5)
    assert len(world.dials) == 1
    # Somebody comes: the dial follows within a fifth of a second.
    world.waiting = 1
    came_at = world.now
    status = world.run(1)
    assert world.dials[-1][0] - came_at <= 0.2
    assert status.phase == "up"
    world.waiting = 0
    world.run(100)
    world.lose_all(GO_AWAY)
    status = world.run(45.2)
    assert status.phase == "up"
    assert len(world.dials) == 3


def test_who_waits_for_a_session_after_a_farewell_does_not_wait_for_long(world: World) -> None:
    supervisor = start(world)
    world.run(100)
    world.lose_all(GO_AWAY)
    world.run(0.1)
    assert not supervisor.is_ready()
    world.run(0.5)
    assert supervisor.is_ready()


def test_a_server_that_goes_on_stopping_is_not_dialed_without_a_pause(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    def stops(plan: Any) -> str:
        world.post(0.2, lambda: world.lose_all(GO_AWAY))
        return "up"

    world.answer = stops
    start(world)
    with caplog.at_level(logging.INFO, "ech_workers"):
        status = world.run(120)
    assert 4 < len(world.dials) < 15
    assert (status.failures, status.breaker) == (0, "closed")
    assert caplog.text.count("is stopping") == 1


def test_a_go_away_for_an_error_counts_as_a_failure_when_the_session_is_young(world: World) -> None:
    broken = failure("yamux", "yamux-protocol", "the server gave up the session: ProtocolError")

    def breaks(plan: Any) -> str:
        world.post(0.2, lambda: world.lose_all(broken))
        return "up"

    world.answer = breaks
    start(world)
    assert world.run(120).cause is not None


def test_a_replacement_is_told_after_a_loss_and_not_otherwise(world: World, caplog: pytest.LogCaptureFixture) -> None:
    start(world, timing=Timing(session_age=600))
    with caplog.at_level(logging.INFO, "ech_workers"):
        world.run(100)
        world.lose_all()
        world.run(1800)
    told = [record.getMessage().split()[1] for record in caplog.records if record.getMessage().startswith("session")]
    assert told == ["up:", "lost", "up:"]


def test_sessions_that_die_young_do_not_go_round_without_a_pause(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    def lose() -> None:
        world.lose_all(refuse("yamux", "yamux-protocol"))

    def dies(plan: Any) -> str:
        world.post(0.2, lose)
        return "up"

    world.answer = dies
    start(world)
    with caplog.at_level(logging.WARNING, "ech_workers"):
        status = world.run(120)
    assert len(world.dials) < 15
    assert status.cause is None or status.cause.code == "yamux-protocol"
    assert len(caplog.records) == 1
    world.answer = lambda plan: "up"
    assert world.run(120).phase == "up"


@pytest.mark.parametrize("sessions", [1, 3])
def test_sessions_that_are_cut_again_and_again_are_soon_back(world: World, sessions: int) -> None:
    """A path that cuts everything every two seconds: the server can be reached, so nothing waits for long."""
    start(world, sessions=sessions)
    for _ in range(10):
        world.run(2)
        world.lose_all()
        assert world.run(20).phase == "up"
    for _ in range(3):
        world.run(2)
        world.lose_all()
        status = world.run(2)
        assert status.breaker == "closed"


def test_a_session_is_replaced_before_it_is_old_and_its_successor_is_up_first(world: World) -> None:
    start(world, timing=Timing(session_age=600))
    world.run(1)
    (first,) = world.live
    status = world.run(620)
    (retired,) = (verb for verb in world.verbs if verb[0] == "retire")
    assert retired[1] == first
    assert retired[2] == pytest.approx(1600, abs=2)
    assert retired[3] == 2
    (session,) = status.sessions
    assert session.session != first
    assert status.phase == "up"
    world.run(3000)
    assert 5 <= len(world.dials) <= 7


def test_a_session_whose_successor_cannot_be_had_is_kept(world: World, caplog: pytest.LogCaptureFixture) -> None:
    start(world, timing=Timing(session_age=600))
    world.run(1)
    world.answer = lambda plan: REFUSED
    with caplog.at_level(logging.WARNING, "ech_workers"):
        status = world.run(900)
    assert (status.phase, len(status.sessions), world.reason) == ("up", 1, None)
    assert not any(verb[0] == "retire" for verb in world.verbs)
    assert 2 <= len(world.dials) <= 15
    assert not caplog.records
    world.answer = lambda plan: "up"
    world.run(100)
    assert sum(verb[0] == "retire" for verb in world.verbs) == 1


def test_a_session_lost_while_its_successor_is_dialed_is_not_replaced_twice(world: World) -> None:
    start(world, timing=Timing(session_age=600))
    world.run(1)
    world.dial_time = 10.0
    world.run(602)
    world.lose_all()
    status = world.run(30)
    assert len(status.sessions) == 1
    assert len(world.dials) == 2


def test_a_retired_session_that_ends_starts_nothing(world: World) -> None:
    start(world, timing=Timing(session_age=600))
    world.run(700)
    assert len(world.dials) == 2
    assert len(world.live) == 1


def test_a_retired_session_that_is_cut_is_told_in_the_log_and_starts_nothing(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    world.retired_end = failure("tcp", "tcp-reset", "the connection was reset")
    start(world, timing=Timing(session_age=600))
    world.run(700)
    assert len(world.dials) == 2
    assert "a session that was to end with its last stream was lost: the connection was reset" in caplog.messages


# ---------------------------------------------------------------- sleep


def test_after_a_sleep_every_session_is_renewed_and_nothing_waits(world: World) -> None:
    start(world, sessions=2)
    world.run(20)
    before = set(world.live)
    world.wall_offset += 3600
    status = world.run(15)
    assert len(status.sessions) == 2
    assert not before & set(world.live)
    assert {verb[1] for verb in world.verbs if verb[0] == "retire"} == before
    assert any(verb[0] == "probe" for verb in world.verbs)


def test_after_a_sleep_a_long_pause_is_over(world: World) -> None:
    world.answer = lambda plan: REFUSED
    start(world)
    world.run(200)
    world.answer = lambda plan: "up"
    world.wall_offset += 3600
    assert world.run(11).phase == "up"


def test_a_process_that_was_stopped_renews_its_sessions(world: World) -> None:
    start(world)
    world.run(20)
    before = set(world.live)
    with world.changed:
        world.until += 100
        world.now += 100
    world.run(20)
    assert not before & set(world.live)


def test_a_clock_set_back_or_by_a_second_changes_nothing(world: World) -> None:
    start(world)
    world.run(20)
    for step in (-3600.0, 1.5, -2.0):
        world.wall_offset += step
        status = world.run(30)
        assert status.phase == "up"
    assert len(world.dials) == 1


# ---------------------------------------------------------------- another network


def test_when_the_network_changes_a_session_that_does_not_answer_is_replaced_at_once(world: World) -> None:
    supervisor = start(world)
    world.run(60)
    (before,) = world.live
    world.mute = {0}
    world.network_changes()
    world.run(0.3)
    assert len(world.dials) == 1
    changed_at = world.now
    world.run(0.5)
    assert [verb[1] for verb in world.verbs if verb[0] == "retire"] == [before]
    assert world.dials[-1][0] <= changed_at + 0.5
    world.mute = set()
    assert world.run(1).phase == "up"
    assert [session.session for session in supervisor.status().sessions if not session.retiring] != [before]


@pytest.mark.parametrize("rtt_ms", [250.0, 500.0, 2000.0])
def test_when_the_network_changes_a_dead_session_has_two_round_trips(world: World, rtt_ms: float) -> None:
    """Counted by the clock that the supervisor has, which is not the machine's."""
    start(world)
    world.run(60)
    world.rtt_ms = rtt_ms
    world.mute = {0}
    world.network_changes()
    world.run(0.001)
    (asked_at,) = (verb[1] for verb in world.verbs if verb[0] == "probe")
    assert asked_at == pytest.approx(world.now, abs=0.01), "it is asked at once"
    round_trips = 2 * rtt_ms / 1000
    world.run(round_trips - 0.05)
    assert len(world.dials) == 1, "it may still answer"
    world.run(0.2)
    # What is seen at the next look, a tenth of a second later at most.
    assert world.dials[-1][0] == pytest.approx(asked_at + round_trips, abs=0.11)


def test_when_the_network_changes_a_session_that_answers_is_kept(world: World) -> None:
    start(world)
    world.run(60)
    before = set(world.live)
    world.network_changes()
    world.run(10)
    assert [verb[0] for verb in world.verbs].count("probe") == 1
    assert set(world.live) == before
    assert len(world.dials) == 1


def test_when_the_network_changes_a_long_pause_is_over(world: World) -> None:
    world.answer = lambda plan: REFUSED
    start(world)
    world.run(200)
    world.answer = lambda plan: "up"
    world.network_changes()
    assert world.run(1).phase == "up"


# ---------------------------------------------------------------- simple mode


def test_simple_mode_sets_the_plan_and_verifies_it_with_one_dial(world: World) -> None:
    start(world, mode="simple", sessions=3)
    status = world.run(5)
    assert status.phase == "up"
    assert len(world.dials) == 1
    assert world.plan is not None
    assert world.plan.mode == "simple"
    world.lose_all(failure("websocket", "closed", "closed"))
    assert world.run(30).phase == "up"
    assert len(world.dials) == 1


def test_simple_mode_follows_new_configurations(world: World) -> None:
    start(world, mode="simple")
    world.run(5)
    world.post(0.0, EchLearned(server_name="secret.test", configs=ech_list("retry")))
    world.run(1)
    assert world.plan is not None
    assert world.plan.ech == ech_list("retry")


def test_simple_mode_finds_out_whether_one_failed_connection_means_all(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    start(world, mode="simple")
    world.run(5)
    with caplog.at_level(logging.WARNING, "ech_workers"):
        for _ in range(20):
            world.post(0.0, DialFailed(dial=0, failure=REFUSED))
        assert world.run(1).phase == "up"
        assert world.reason is None
        world.answer = lambda plan: REFUSED
        for _ in range(20):
            world.post(0.0, DialFailed(dial=0, failure=REFUSED))
        status = world.run(2)
    assert status.phase in ("waiting", "connecting")
    assert status.cause is not None
    assert issubclass(status.cause.kind, ConnectError)
    assert world.reason is not None
    assert len(caplog.records) == 2
    world.answer = lambda plan: "up"
    assert world.run(60).phase == "up"
    assert world.reason is None


# ---------------------------------------------------------------- other threads, the end


def test_waiting_ends_when_the_session_is_up(world: World) -> None:
    supervisor = start(world)
    done = threading.Event()

    def wait() -> None:
        wait_ready(supervisor, 10)
        done.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    world.run(1)
    assert done.wait(5)
    waiter.join()


def test_waiting_too_long_says_what_is_still_going_on(world: World) -> None:
    for resolver in world.resolvers.values():
        resolver.delay = 100.0
    supervisor = start(world)
    world.run(0.5)
    with pytest.raises(SessionError, match="still resolving"):
        wait_ready(supervisor, 0.05)


def test_stopping_ends_the_loop_and_everyone_who_waits(world: World) -> None:
    for resolver in world.resolvers.values():
        resolver.delay = 100.0
    supervisor = start(world)
    world.run(0.5)
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            wait_ready(supervisor, 30)
        except TunnelError as error:
            caught.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    supervisor.stop()
    waiter.join(5)
    assert world.thread is not None
    world.thread.join(5)
    assert not world.thread.is_alive()
    assert isinstance(caught[0], EngineClosed)
    assert supervisor.status().phase == "stopped"


def test_a_closed_engine_ends_the_loop(world: World) -> None:
    supervisor = start(world)
    world.run(1)
    world.close()
    assert supervisor.status().phase == "stopped"
    supervisor.stop()


def test_every_event_is_handed_on_and_a_failing_listener_does_no_harm(world: World) -> None:
    seen: list[str] = []

    def listener(event: object) -> None:
        seen.append(type(event).__name__)
        raise RuntimeError("a defect in the listener")

    made = start(world)
    made._on_event = listener
    logging.getLogger("ech_workers").setLevel(logging.CRITICAL)
    try:
        assert world.run(1).phase == "up"
    finally:
        logging.getLogger("ech_workers").setLevel(logging.NOTSET)
    assert "SessionUp" in seen
    assert "Fetched" in seen


def test_native_log_lines_reach_pythons_logging(world: World, caplog: pytest.LogCaptureFixture) -> None:
    start(world)
    with caplog.at_level(logging.INFO):
        world.post(0.0, LogLine(level=logging.INFO, target="ech_workers_tunnel::dial", message="hello %s"))
        world.run(0.1)
    assert ("ech_workers.tunnel.dial", logging.INFO, "hello %s") in caplog.record_tuples


def test_an_idle_tunnel_sleeps(world: World) -> None:
    start(world, server_ips=("192.0.2.1",), ech_config=ech_list("mine"))
    turns = 0
    original = world.next_event

    def counting(timeout: float | None) -> Any:
        nonlocal turns
        turns += 1
        return original(timeout)

    world.next_event = counting  # type: ignore[method-assign]
    world.run(10)
    turns = 0
    world.run(600)
    assert turns <= 130
