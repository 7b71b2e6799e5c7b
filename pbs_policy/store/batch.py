"""What the requests of one turn of the event loop ask of Redis together, and to whom each answer goes.

Each question has a deadline of its own: that of its request, which a further round inherits. So a request is
answered by its deadline, however many rounds it takes and however late each reply is. The batch stays in flight
after that, since its replies are still to come, and are nobody's then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Any

from pbs_policy.log import Log
from pbs_policy.store.question import Command
from pbs_policy.store.replies import check_reply, check_values
from pbs_policy.store.resp import pack

Answered = Callable[[Sequence[bytes | None] | None, Sequence[Any]], None]
"""Called once for each question: the values and the commands' replies, or None and nothing for "unavailable"."""

ANSWERS = "Redis answers: "

_NO_REPLIES: Sequence[Any] = ()


class Answering:
    """`deadline` is that of the request whose answer is being handed out, 0 while none is: what is asked meanwhile is
    its next round."""

    __slots__ = ("deadline",)

    def __init__(self) -> None:
        self.deadline = 0.0


class Batch:
    """What one turn of the loop asked, and where each answer goes."""

    __slots__ = (
        "answer_by", "answering", "asks", "commands", "deadline", "due", "keys", "log", "refused", "replies",
        "retried",
    )  # fmt: skip

    def __init__(self, log: Log, answering: Answering) -> None:
        self.asks: list[tuple[Answered, int, int, float]] = []  # with how many keys and commands, and until when
        self.keys: list[bytes] = []
        self.commands: list[Command] = []
        self.retried = False
        self.replies: list[Any] = []
        self.refused = False  # an error is among the replies
        self.log = log
        self.answering = answering
        self.deadline = 0.0  # of the requests that begin with it
        self.due = inf  # the earliest deadline of those that are not answered
        self.answer_by = 0.0  # when the connection that it was sent on is taken for mute

    def request(self) -> bytes:
        """The commands that were asked for, and one MGET for all values, which is one moment of the table."""
        parts = [pack(command) for command in self.commands]
        if self.keys:
            parts.append(pack((b"MGET", *self.keys)))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def take(self, reply: Any) -> bool:
        """Keep the next reply; whether it is the last one. Raises Impossible, Elsewhere."""
        replies, commands = self.replies, self.commands
        number = len(replies)
        is_given = (
            check_reply(commands[number], reply) if number < len(commands) else check_values(reply, len(self.keys))
        )
        if not is_given:
            self.refused = True
        replies.append(reply)
        return len(replies) == len(commands) + bool(self.keys)

    def begin_again(self) -> None:
        """All is asked once more, on another connection."""
        self.retried = True
        self.refused = False
        self.replies.clear()

    def answer(self, report: Callable[[str], None]) -> None:
        """Hand the replies to those who asked. An error of MGET makes all of them "unavailable", that of another
        command the one whose it was."""
        values: Any = self.replies[-1] if self.keys else []
        if isinstance(values, Exception):
            report(f"{ANSWERS}{values}")
            self.fail()
            return
        replies = self.replies
        answering = self.answering
        value = reply = 0
        for answered, number_of_values, number_of_replies, deadline in self.asks:
            own_values = values[value : value + number_of_values]
            value += number_of_values
            own_replies = replies[reply : reply + number_of_replies] if number_of_replies else _NO_REPLIES
            reply += number_of_replies
            answering.deadline = deadline
            try:
                if self.refused and (error := _first_error(own_replies)):
                    report(f"{ANSWERS}{error}")
                    answered(None, _NO_REPLIES)
                else:
                    answered(own_values, own_replies)
            except Exception as fault:  # noqa: BLE001 - one request's fault must not take its neighbours' answers
                self.log.error(f"a request was left without an answer: {fault!r}")
        answering.deadline = 0.0

    def fail(self) -> None:
        """Tell all who still wait that Redis is unavailable."""
        self.expire(inf)

    def expire(self, now: float) -> None:
        """Tell those whose deadline has come that Redis is unavailable."""
        overdue = [number for number, ask in enumerate(self.asks) if ask[3] <= now and ask[0] is not _nobody]
        for number in overdue:
            answered, number_of_values, number_of_replies, _ = self.asks[number]
            self.asks[number] = (_nobody, number_of_values, number_of_replies, inf)
            try:
                answered(None, _NO_REPLIES)
            except Exception as error:  # noqa: BLE001 - as above
                self.log.error(f"a request was left without an answer: {error!r}")
        self.due = min((ask[3] for ask in self.asks), default=inf)


def _first_error(replies: Sequence[Any]) -> Exception | None:
    return next((each for each in replies if isinstance(each, Exception)), None)


def _nobody(_: Sequence[bytes | None] | None, __: Sequence[Any]) -> None:
    """Takes the place of who was told "unavailable" already."""
