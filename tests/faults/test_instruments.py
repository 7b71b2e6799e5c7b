"""What measures the faults, measured itself: that it sees harm where harm is done."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from pbs_policy.demo.daemons import wait_until
from tests.faults.asking import MAY_RELAY, Asking
from tests.faults.every import FAULTS
from tests.faults.fault import SHORT
from tests.faults.lies import end_of_reply
from tests.faults.observing import Seen
from tests.faults.page import PAGE, documented, with_fault
from tests.faults.watching import AWAY, GOES_ON, INBOUND, LOGIN, RELAY, STRANGER, Met
from tests.stand_ins import answering

OTHERS = 1  # a group of clients who may not relay
SOUND = ((LOGIN, GOES_ON), (RELAY, "250"), (RELAY, "450"), (STRANGER, "554"), (INBOUND, "250"), (INBOUND, AWAY))
ANSWERS = {(MAY_RELAY, "OK"): 5, (OTHERS, "DUNNO"): 5, (OTHERS, "DEFER"): 1, (MAY_RELAY, "lost"): 1}


def seen(*later: tuple[str, str], **answers: int) -> Seen:
    met, met_later = ([Met(kind, 0.0, 1.0, outcome) for kind, outcome in each] for each in (SOUND, later))
    wrong = {(OTHERS, name) if name == "OK" else (MAY_RELAY, name): count for name, count in answers.items()}
    return Seen(FAULTS[0].name, met, met_later, 1, Counter(ANSWERS | wrong), [])


@pytest.mark.parametrize(
    ("found", "harm"),
    [
        (seen(), 0),
        (seen((LOGIN, "refused")), 1),
        (seen((LOGIN, "refused: it hung up")), 1),
        (seen((STRANGER, "250")), 1),
        (seen((INBOUND, "450"), (INBOUND, "554")), 2),
        (seen(OK=3, wrong=2), 5),
    ],
)
def test_harm_is_seen(found: Seen, harm: int) -> None:
    assert len(found.harm()) == harm


def test_what_is_put_into_the_page_can_be_read_back() -> None:
    before = documented(PAGE.read_text())
    after = documented(with_fault(PAGE.read_text(), FAULTS[1], [seen(), seen()], "today"))
    assert list(after) == list(before) == [each.name for each in FAULTS]
    assert after[FAULTS[1].name] == {
        LOGIN: {GOES_ON, "not recorded"}, RELAY: {"250", "450"}, STRANGER: {"554"}, INBOUND: {"250"},
    }  # fmt: skip
    del before[FAULTS[1].name], after[FAULTS[1].name]
    assert after == before


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (b"action=OK\n\n", "OK"),
        (b"action=DUNNO\n\n", "DUNNO"),
        (b"action=DEFER_IF_REJECT 4.3.0 later\n\n", "DEFER"),
        (b"action=\n\n", "wrong"),
        (b"action=OK\n\naction=OK\n\n", "wrong"),
        (b"action=PERMIT\n\n", "wrong"),
        (b"", "lost"),
        (b"action=OK\n", "lost"),
    ],
)
def test_what_the_service_answers_is_noted_as_it_is(reply: bytes, answer: str, tmp_path: Path) -> None:
    with answering(reply) as server:
        with Asking(server.listener, tmp_path / "asked", rate=SHORT.rate, connections=5) as asking:
            assert wait_until(lambda: len(server.requests) >= 10)
    asked = asking.asked()
    assert {each.answer for each in asked} == {answer}
    assert all(each.sent <= each.answered for each in asked)


@pytest.mark.parametrize(
    "reply",
    [b"+OK\r\n", b"-ERR x\r\n", b":1\r\n", b"$3\r\na\r\n\r\n", b"$-1\r\n", b"*-1\r\n", b"*2\r\n$-1\r\n*1\r\n:1\r\n"],
)
def test_the_lying_proxy_sees_where_a_reply_ends(reply: bytes) -> None:
    assert end_of_reply(reply + b":2\r\n") == len(reply)
    assert all(end_of_reply(reply[:size]) == -1 for size in range(len(reply)))
