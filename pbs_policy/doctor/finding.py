"""What a check of `pbs-policy doctor` says, and how: a function marked with `check` yields, or returns, a `Finding`
for each thing that it looked at. Its name, what it says where nothing is wrong, and what becomes of an error are
added here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import wraps
from typing import Literal, ParamSpec

from pbs_policy.host import NotLookedAt, is_for_root
from pbs_policy.log import printable
from pbs_policy.settings.sources import SettingsError, Value
from pbs_policy.store.errors import StoreUnavailable

Level = Literal["good", "warning", "wrong", "unknown", "not looked at"]
P = ParamSpec("P")

AS_ROOT = "run doctor as root"
"""How to see what only some may read."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`check` is a stable name such as `postfix.order`; `seen` is what was found, in a sentence; `place` is
    `FILE:LINE`, or a file alone where a line is missing; `mend` is the command or the line that mends it."""

    check: str
    level: Level
    seen: str
    place: str = ""
    mend: str = ""


def good(seen: str, place: str = "") -> Finding:
    """Nothing to mend."""
    return Finding("", "good", seen, place)


def warning(seen: str, place: str, mend: str) -> Finding:
    """It works, and not in every case, or with a risk that somebody should have chosen."""
    return Finding("", "warning", seen, place, mend)


def wrong(seen: str, place: str, mend: str) -> Finding:
    """Logins, relaying or mail do not work as they should, or a stranger may relay."""
    return Finding("", "wrong", seen, place, mend)


def unknown(why: str, place: str = "", mend: str = AS_ROOT) -> Finding:
    """It is there, and could not be looked at: as bad as a fault, for it may be one. `why`, and how to look at it."""
    return Finding("", "unknown", why, place, AS_ROOT if is_for_root(why) else mend)


def not_looked_at(why: str, place: str = "", mend: str = "") -> Finding:
    """There is nothing of this to look at, or it is not for this user to look at, which is no fault."""
    if is_for_root(why):
        return unknown(why, place, mend)
    return Finding("", "not looked at", why, place, mend)


def check(
    name: str, sound: str = ""
) -> Callable[[Callable[P, Iterable[Finding] | Finding | None]], Callable[P, Iterator[Finding]]]:
    """The check of this name. Where it has nothing to say, it says that what it looked at is `sound`."""

    def checked(look: Callable[P, Iterable[Finding] | Finding | None]) -> Callable[P, Iterator[Finding]]:
        @wraps(look)
        def named(*args: P.args, **kwargs: P.kwargs) -> Iterator[Finding]:
            def found() -> Iterator[Finding]:
                said = look(*args, **kwargs)
                yield from [said] if isinstance(said, Finding) else said or ()

            silent = True
            for each in guarded(name, found()):
                silent = False
                yield each
            if silent and sound:
                yield replace(good(sound), check=name)

        return named

    return checked


def guarded(name: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """Whatever goes wrong while something is looked at, the rest is looked at. What was found has a name."""
    try:
        for each in findings:
            yield each if each.check else replace(each, check=name)
        return
    except NotLookedAt as error:
        found = unknown(str(error))
    except (StoreUnavailable, SettingsError) as error:
        found = not_looked_at(printable(str(error), 200))
    except Exception as error:  # noqa: BLE001 - an installation may be broken in ways that nobody has thought of
        found = unknown(f"a fault of this program: {error!r}", mend="please report it")
    yield replace(found, check=name)


def placed(findings: Iterable[Finding], place: str) -> Iterator[Finding]:
    """The findings; what does not say where, such as something that could not be looked at, is at this place."""
    for each in findings:
        yield each if each.place else replace(each, place=place)


def where(value: Value) -> str:
    """The place of a setting; "" for one that nobody has set."""
    return "" if value.place == "default" else value.place
