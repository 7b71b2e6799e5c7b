"""What a decision asks of Redis, apart from how it is asked: the service asks in the batches of `lookups`, the
command line one question after the other. A decision is a `Procedure`: it yields questions, is sent the answers, and
returns what came of it. Where Redis cannot answer, the procedure is closed: none of its rules sees that case.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

Command = tuple[bytes, ...]
"""A command of Redis with its arguments, each as bytes."""


class Question(NamedTuple):
    """The `keys` whose values are wanted (`MGET`), and `commands` besides."""

    keys: Sequence[bytes] = ()
    commands: Sequence[Command] = ()


class Answer(NamedTuple):
    """The value of each key, None where there is none; the reply to each command."""

    values: Sequence[bytes | None] = ()
    replies: Sequence[Any] = ()


Procedure = Generator[Question, Answer, T]


def carry_out(procedure: Procedure[T], ask: Callable[[Question], Answer]) -> T:
    """Run `procedure` to its end, putting each question to `ask`, whose exceptions pass."""
    try:
        question = next(procedure)
        while True:
            question = procedure.send(ask(question))
    except StopIteration as end:
        result: T = end.value
        return result
