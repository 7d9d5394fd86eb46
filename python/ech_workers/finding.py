"""One finding of ``check``, and how what was seen is put into words."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

import msgspec

from ech_workers import doh
from ech_workers.ech import list_problem, public_name
from ech_workers.errors import Cause, SessionError, TunnelError
from ech_workers.stalls import amount

if TYPE_CHECKING:
    from ech_workers.ech import Configuration
    from ech_workers.steps import Exchanged
    from ech_workers.target import Sample

__all__ = ["PROBE", "Layer", "Row", "origin", "probe_row", "resolver_row", "row", "sample_row", "source", "stalled"]

Layer = Literal["resolver", "address", "tcp", "tls", "ech", "certificate", "websocket", "token", "yamux", "target"]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One finding."""

    layer: Layer
    subject: str
    """Which resolver, address, name."""
    ok: bool | None
    """None: not tried, or nothing to judge."""
    what: str
    """What was seen; with a failure, why."""
    ms: float | None = None
    advice: str | None = None
    code: str | None = None
    detail: str | None = None
    decides: bool = True
    """False for what others make up for: one resolver, address, endpoint or server of several."""


def resolver_row(step: Exchanged) -> Row:
    """What one resolver answers."""
    outcome = step.outcome
    host = step.resolver.host
    if isinstance(outcome, TunnelError):
        return row(outcome.cause, "resolver", host, ms=step.ms, decides=False)
    good, advice = True, None
    if isinstance(outcome, doh.AddressAnswer):
        what = f"{outcome.name}: {', '.join(outcome.addresses)}, for {outcome.ttl} s"
        if not outcome.addresses:
            good, what = False, outcome.why or "no address"
    elif outcome.alias is not None:
        what = f"{step.question.name} is an alias of {outcome.alias}"
    else:
        endpoint = outcome.with_ech()
        configs = endpoint.ech if endpoint else None
        problem = None if configs is None else list_problem(configs)
        if configs is None:
            good, what = False, outcome.why or f"the HTTPS record of {outcome.name} has no ech="
        elif problem is not None:
            good, what = False, f"the ech= value cannot be used: {problem}"
        else:
            what = f"ECH configuration for {outcome.ttl} s, public name {public_name(configs)}"
    aged = f"; the answer is {step.age} s old" if step.age else ""
    what = f"{what}; {step.http_version}{aged}"
    return Row(layer="resolver", subject=host, ok=good, ms=step.ms, what=what, advice=advice, decides=False)


def sample_row(sample: Sample) -> Row:
    if sample.rate is None:
        return Row(
            layer="target",
            subject="throughput",
            ok=None,
            what=f"{sample.received} bytes are too few to tell",
            advice="give a larger file with --target URL",
            decides=False,
        )
    what = f"{sample.received / 1e6:.1f} MB in {sample.seconds:.2f} s: {sample.rate / 1e6:.1f} MB/s"
    return Row(layer="target", subject="throughput", ok=True, ms=sample.seconds * 1000, what=what, decides=False)


PROBE = "64 KiB each way"
"""Of what the exchange is a finding that a server announces."""


def probe_row(layer: Layer, ms: float | None) -> Row:
    """It did not stop. ms: how long it took, if everything came back."""
    if ms is None:
        return Row(layer=layer, subject=PROBE, ok=None, what="they could not be exchanged", decides=False)
    return Row(layer=layer, subject=PROBE, ok=True, ms=ms, what=f"64 KiB in {ms:.0f} ms")


def stalled(received: int) -> SessionError:
    """It stopped when so many bytes had come."""
    message = f"the connection stops after {amount(received)}: nothing more came from the server"
    return SessionError(message, code="session-stalled")


def row(cause: Cause, layer: Layer, subject: str, *, ms: float | None = None, decides: bool = True) -> Row:
    return Row(
        layer=layer,
        subject=subject,
        ok=False,
        ms=ms,
        what=cause.message,
        advice=cause.advice,
        code=cause.code,
        detail=cause.detail,
        decides=decides,
    )


def origin(used: Configuration, host: str) -> str:
    return used.origin if used.source in ("dns", "retry") else host


def source(used: Configuration) -> str:
    """Where a configuration came from, and how old it is."""
    age = max(0, time.time() - used.fetched_at)
    late = " (stale, from the cache)" if used.is_stale(time.time()) else ""
    return {
        "dns": f"from the HTTPS record of {used.origin}, {age:.0f} s old{late}",
        "retry": f"handed over by the server {age:.0f} s ago{late}",
        "bootstrap": "made up (--ech-bootstrap): the server is to reject it and hand over its own",
    }.get(used.source, "given by --ech-config")
