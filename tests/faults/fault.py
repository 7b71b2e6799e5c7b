"""What a fault is: how it begins and ends, and whether everybody meets the same while it lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from tests.faults.stage import Stage


@dataclass(frozen=True)
class Scale:
    """How much of everything: each fault lasts `seconds` and `logins` at the least; `peers` connections at once,
    `garbage` bytes, `rate` requests a second straight to the service, `at_once` logins side by side."""

    seconds: float
    logins: int
    peers: int
    garbage: int
    rate: int
    at_once: int


SHORT = Scale(seconds=1.5, logins=3, peers=1_000, garbage=20_000_000, rate=500, at_once=1)
LONG = Scale(seconds=6, logins=145, peers=10_000, garbage=1_000_000_000, rate=1_500, at_once=4)


@dataclass(frozen=True)
class Again:
    """A fault that is over at once: `act` is done every `interval` seconds. Whom it meets is a matter of chance."""

    act: Callable[[], object]
    interval: float


@dataclass
class Marks:
    """Moments (monotonic seconds) from which on the service should be back."""

    at: list[float] = field(default_factory=list)


Course = Callable[[Stage, Scale, Marks], Iterator[Again | None]]


@dataclass(frozen=True)
class Fault:
    """One row of the table: its name, what was done, and the course of it: it begins up to the `yield`, then ends.
    `needs` are what it takes besides the daemons: each says what is missing here, or nothing."""

    name: str
    what: str
    course: Course
    needs: tuple[Callable[[], str], ...]

    def lacks(self) -> str:
        """What is missing here to bring it about, as a sentence, or nothing."""
        return next((lack for need in self.needs if (lack := need())), "")

    def happening(self, stage: Stage, scale: Scale, marks: Marks) -> AbstractContextManager[Again | None]:
        """The fault, for as long as the context lasts."""
        return contextmanager(self.course)(stage, scale, marks)


def fault(name: str, what: str, *needs: Callable[[], str]) -> Callable[[Course], Fault]:
    """Make a course a fault."""
    return lambda course: Fault(name, what, course, needs)
