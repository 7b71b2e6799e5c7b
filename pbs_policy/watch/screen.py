"""How a watcher's knowledge looks: lines of text for a terminal of any size. Pure: the same state, size and time give
the same lines, none of them wider than the terminal.

From top to bottom: how things stand, the rate of the last minute, services, who may relay, events with the newest
last, keys. Where the terminal is low, services and who may relay give way to events.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from pbs_policy.bars import fit, plot
from pbs_policy.duration import format_duration
from pbs_policy.watch.state import NOTE, SECONDS_KEPT, SILENT, Event, Relay, State, WatchedService

PLAIN, HEAD, DIM, GOOD, BAD, NEWS = "plain", "head", "dim", "good", "bad", "news"
"""How a line is painted, where there are colours."""

_MOST_SERVICES = 6
_ACTIONS = ("OK", "DUNNO", "DEFER_IF_REJECT")
_STYLES = {"OK": GOOD, "DUNNO": PLAIN, "DEFER_IF_REJECT": BAD, NOTE: DIM}
_NO_SERVICE_AFTER = 3  # seconds: a service learns within one that it is watched


class ScreenLine(NamedTuple):
    """One line of the screen, and how it is painted."""

    text: str
    style: str = PLAIN


def render(state: State, width: int, height: int, now: float, at: float, *, blocks: bool = True) -> list[ScreenLine]:
    """The screen at the time `now` (the clock of `state`), which is `at` in Unix seconds: `height` lines at most."""
    top = [_title(state, at), _rates(state, width, blocks)]
    foot = [_foot(state)]
    room = max(0, height - len(top) - len(foot))
    services = _services(state, now, at, width) if room >= 12 else []
    room -= len(services)
    relays = _relays(state, now, width, max(0, room // 3)) if room >= 9 else []
    room -= len(relays)
    lines = [*top, *services, *relays, *_events(state, room, width), *foot]
    return [ScreenLine(fit(line.text, width).rstrip(), line.style) for line in lines[:height]]


def _title(state: State, at: float) -> ScreenLine:
    redis = "Redis unavailable: " + state.trouble
    if not state.trouble:
        redis = "Redis -" if state.answer_time is None else f"Redis {state.answer_time * 1000:.1f} ms"
    marks = ["PAUSED"] if state.is_paused else []
    if state.pattern:
        marks.append(f'only "{state.pattern}"')
    clock = time.strftime("%H:%M:%S UTC", time.gmtime(at))
    text = "  ".join([f"pbs-policy watch {state.prefix}", clock, *marks, redis])
    return ScreenLine(text, BAD if state.trouble else HEAD)


def _rates(state: State, width: int, blocks: bool) -> ScreenLine:
    last = state.rates[-1] if state.rates else Counter[str]()
    parts = [f"{action.partition('_')[0]} {last[action]:,}/s" for action in _ACTIONS]
    if state.dropped:
        parts.append(f"not shown {state.dropped:,}")
    text = "  ".join(parts)
    room = min(SECONDS_KEPT, width - len(text) - 3)
    totals = [each.total() for each in state.rates]
    if room >= 10 and any(totals):
        text += "  " + plot(totals[-room:], 1, blocks=blocks)[0].lstrip()
    return ScreenLine(text)


def _services(state: State, now: float, at: float, width: int) -> list[ScreenLine]:
    services = sorted(state.services.values(), key=lambda each: (each.host, each.pid))
    if not services:
        waiting = now - state.started < _NO_SERVICE_AFTER
        text = "waiting to hear from a service" if waiting else (
            "no service is heard: none runs with this Redis and key_prefix, or Redis lets it not publish (ACL)"
        )  # fmt: skip
        return [ScreenLine(""), ScreenLine(text, DIM if waiting else BAD)]
    rows: list[tuple[str, ...]] = [("HOST", "PID", "VERSION", "RUNS FOR", "CLIENTS", "RECONNECTS", "DECISIONS/S", "")]
    rows += [_service_row(each, now, at) for each in services[:_MOST_SERVICES]]
    styles = [HEAD, *(BAD if now - each.heard_at > SILENT else PLAIN for each in services[:_MOST_SERVICES])]
    lines = [ScreenLine(""), *map(ScreenLine, _columns(rows, width), styles)]
    if len(services) > _MOST_SERVICES:
        lines.append(ScreenLine(f"and {len(services) - _MOST_SERVICES} more", DIM))
    return lines


def _service_row(each: WatchedService, now: float, at: float) -> tuple[str, ...]:
    silence = now - each.heard_at
    return (
        each.host, str(each.pid), each.version, format_duration(at - each.started), f"{each.connections:,}",
        str(max(0, each.redis_connections - 1)), f"{each.rate:,.0f}",
        f"silent for {format_duration(silence)}" if silence > SILENT else "",
    )  # fmt: skip


def _relays(state: State, now: float, width: int, most: int) -> list[ScreenLine]:
    table = state.table
    if table is None or most < 4:
        return []
    relays = [each for each in state.shown_relays() if each.ends is None or each.ends > now]
    head = f"MAY RELAY: {len(relays):,}, by {state.sort}"
    if table.denies:
        head += f"; {table.denies:,} denies outrank them"
    if table.among is not None:
        head += "; of the addresses below alone, the table is large"
    rows = [_relay_row(each, now) for each in relays[: most - 2]]
    lines = [ScreenLine(""), ScreenLine(head, HEAD), *map(ScreenLine, _columns(rows, width))]
    if len(relays) > len(rows) and rows:
        lines[-1] = ScreenLine(f"and {len(relays) - len(rows) + 1:,} more", DIM)
    return lines


def _relay_row(each: Relay, now: float) -> tuple[str, ...]:
    left = "no end" if each.ends is None else format_duration(each.ends - now)
    return each.target, each.user or "-", each.service or "-", left


def _events(state: State, room: int, width: int) -> list[ScreenLine]:
    """Exactly `room` lines, so that what stands below stays where it is."""
    if room < 3:
        return [ScreenLine("")] * room
    events = state.shown_events(room - 2)
    lines = [ScreenLine(""), ScreenLine("EVENTS" if events else "EVENTS: none yet", HEAD)]
    hosts = len({each.host for each in state.services.values()}) > 1
    lines += [ScreenLine(_event(each, hosts, width), _STYLES.get(each.action, NEWS)) for each in events]
    return lines + [ScreenLine("")] * (room - len(lines))


def _event(each: Event, hosts: bool, width: int) -> str:
    at = time.strftime("%H:%M:%S", time.gmtime(each.time))
    host = f" {each.host}" if hosts and each.host else ""
    if each.action == NOTE:
        return f"{at}{host} {each.reason}"
    action = each.action.partition("_")[0]
    text = f"{at}{host} {action:<6}"
    if each.reason:
        text += f" {each.reason:<10}" if width >= 60 else f" {each.reason}"
    text += f" {each.client_address or '-':<15}"
    for field in (each.user, each.service):
        text += f" {field}" if field else ""
    if each.sender or each.recipient:
        text += f"  <{each.sender}> to <{each.recipient}>"
    return text


def _foot(state: State) -> ScreenLine:
    if state.typed is not None:
        return ScreenLine(f"only events and entries with: {state.typed}_   Enter sets it, Esc leaves it", HEAD)
    pause = "goes on" if state.is_paused else "pauses"
    return ScreenLine(f"q quits  p {pause}  / filters  s sorts" + ("  Esc shows all" if state.pattern else ""), DIM)


def _columns(rows: Sequence[tuple[str, ...]], width: int) -> list[str]:
    """Rows as columns that are as wide as they have to be, each at most half of the terminal."""
    if not rows:
        return []
    most = max(8, width // 2)
    widths = [min(most, max(map(len, column))) for column in zip(*rows, strict=True)]
    return ["  ".join(fit(cell, each) for cell, each in zip(row, widths, strict=True)).rstrip() for row in rows]
