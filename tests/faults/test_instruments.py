"""What measures the faults, measured itself: that it sees harm where harm is done, and what it writes can be read."""

from __future__ import annotations

import socketserver
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.figures import Bar
from pbs_policy.demo.daemons import wait_until
from pbs_policy.postfix.listener import Listener
from tests.faults import kept
from tests.faults.asking import MAY_RELAY, Asked, Asking
from tests.faults.every import FAULTS
from tests.faults.fault import SHORT
from tests.faults.lies import end_of_reply
from tests.faults.observing import Seen, back_after
from tests.faults.page import FLOODS, TIMES, documented, in_words, outcomes_in, page, with_bars, with_fault
from tests.faults.proxy import Proxy
from tests.faults.timing import p99
from tests.faults.watching import AWAY, GOES_ON, INBOUND, LOGIN, RELAY, STRANGER, Met

OTHERS = 1  # a group of clients who may not relay


def seen(*outcomes: tuple[str, str], answers: Counter[tuple[int, str]] | None = None, lost_logins: int = 0) -> Seen:
    met = [Met(kind, 0.0, 1.0, outcome) for kind, outcome in outcomes]
    return Seen(FAULTS[0].name, met, [], lost_logins, answers or Counter(), [])


SOUND = ((LOGIN, GOES_ON), (RELAY, "250"), (RELAY, "450"), (STRANGER, "554"), (INBOUND, "250"))


def test_what_should_be_is_no_harm() -> None:
    answers = Counter({(MAY_RELAY, "OK"): 5, (OTHERS, "DUNNO"): 5, (OTHERS, "DEFER"): 1, (MAY_RELAY, "lost"): 1})
    assert seen(*SOUND, (INBOUND, AWAY), answers=answers).harm() == []


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [(LOGIN, "refused"), (LOGIN, "refused: it hung up"), (STRANGER, "250"), (INBOUND, "450"), (INBOUND, "554")],
)
def test_harm_to_users_is_seen_during_a_fault_and_after_it(kind: str, outcome: str) -> None:
    assert len(seen(*SOUND, (kind, outcome)).harm()) == 1
    later = seen(*SOUND)
    later.met_later.append(Met(kind, 1.0, 2.0, outcome))
    assert len(later.harm()) == 1


def test_each_wrong_ok_and_each_reply_that_is_none_counts() -> None:
    assert len(seen(answers=Counter({(OTHERS, "OK"): 3, (MAY_RELAY, "wrong"): 2})).harm()) == 5


def test_the_page_can_be_read_back() -> None:
    all_seen = {each.name: [seen(*SOUND, lost_logins=0)] for each in FAULTS}
    all_seen[FAULTS[1].name].append(seen(*SOUND, (LOGIN, GOES_ON), lost_logins=1))
    read = documented(page(FAULTS, all_seen, [], "today"))
    assert list(read) == [each.name for each in FAULTS]
    assert read[FAULTS[0].name] == {kind: set(counts) for kind, counts in seen(*SOUND).counts().items()}
    assert read[FAULTS[1].name][LOGIN] == {GOES_ON, "recorded", "not recorded"}
    assert read[FAULTS[1].name][RELAY] == {"250", "450"}


def test_what_was_seen_is_kept_until_it_is_forgotten(tmp_path: Path) -> None:
    file = tmp_path / "build" / "faults.jsonl"
    assert kept.load(file) == []
    first, second = seen(*SOUND, answers=Counter({(OTHERS, "DUNNO"): 3})), seen(*SOUND, lost_logins=1)
    first.back_after.append(0.25)
    kept.keep(first, file)
    kept.keep(second, file)
    assert kept.load(file) == [first, second]
    kept.forget(file)
    assert kept.load(file) == []


def test_a_bar_measured_anew_takes_the_place_of_the_old_one() -> None:
    bars = [Bar("a bar", "at most 1", "2", False), Bar("another", "", "3", None)]
    all_seen = {each.name: [seen(*SOUND)] for each in FAULTS}
    before = page(FAULTS, all_seen, bars, "today")
    after = with_bars(before, [Bar("a bar", "at most 1", "0", True)], TIMES, "tomorrow")
    assert "| a bar | at most 1 | 0 | yes |\n| another |" in after
    assert documented(after) == documented(before)
    assert f"{TIMES}: tomorrow" in after
    assert f"{FLOODS}: today" in after


def test_a_bar_and_a_fault_that_are_new_have_their_rows_at_the_ends() -> None:
    all_seen = {each.name: [seen(*SOUND)] for each in FAULTS}
    *others, new = FAULTS
    before = page(others, all_seen, [Bar("a bar", "", "3", None)], "today")
    after = with_bars(before, [Bar("another", "at most 1", "0", True)], TIMES, "tomorrow")
    assert "| a bar |  | 3 | stated |\n| another | at most 1 | 0 | yes |\n\n" in after
    for _ in range(2):
        after = with_fault(after, new, [seen(*SOUND)], "tomorrow")
        assert list(documented(after)) == [each.name for each in FAULTS]
        assert after.count(f"| {new.name} |") == after.count(f"Of these, {new.name}: tomorrow") == 1


def test_a_login_that_was_not_recorded_is_told_from_one_that_was() -> None:
    one = ((LOGIN, GOES_ON),)
    assert in_words(LOGIN, seen(*one).counts()[LOGIN]) == "goes on, recorded"
    assert in_words(LOGIN, seen(*one, lost_logins=1).counts()[LOGIN]) == "goes on, not recorded"
    assert in_words(LOGIN, seen(*one * 2, lost_logins=1).counts()[LOGIN]) == "goes on, recorded or not recorded"


def test_what_is_rare_is_told_and_told_to_be_rare() -> None:
    assert in_words(LOGIN, seen(*[(LOGIN, GOES_ON)] * 30, lost_logins=1).counts()[LOGIN]) == (
        "goes on, recorded, rarely not recorded"
    )
    assert in_words(RELAY, Counter({"250": 99, "450": 1})) == "250, rarely 450"
    assert outcomes_in("250, rarely 450") == {"250", "450"}
    assert outcomes_in("goes on, recorded, rarely not recorded") == {"goes on", "recorded", "not recorded"}


def test_back_again_is_the_first_ok_after_the_moment() -> None:
    asked = [Asked(0.0, 1.0, MAY_RELAY, "OK"), Asked(1.9, 2.5, OTHERS, "OK"), Asked(2.0, 3.0, MAY_RELAY, "DEFER")]
    assert back_after(asked, 2.0) == float("inf")
    assert back_after([*asked, Asked(3.0, 3.5, MAY_RELAY, "OK")], 2.0) == 1.5


def test_p99_is_what_one_in_a_hundred_exceeds() -> None:
    assert p99([Asked(0.0, number / 100, 0, "OK") for number in range(100)]) == 0.99


class Liar(socketserver.ThreadingTCPServer):
    """Answers each request with the same bytes, and then goes on, or hangs up."""

    daemon_threads = True
    allow_reuse_address = True
    reply = b""
    hangs_up = False
    requests = 0

    @property
    def place(self) -> Listener:
        return Listener(host="127.0.0.1", port=int(self.server_address[1]))


class LiarsHandler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Liar)
        for line in self.rfile:
            if line == b"\n":
                self.server.requests += 1
                self.wfile.write(self.server.reply)
                if self.server.hangs_up:
                    return


@contextmanager
def liar(reply: bytes, *, hangs_up: bool = False) -> Iterator[Liar]:
    with Liar(("127.0.0.1", 0), LiarsHandler) as server:
        server.reply, server.hangs_up = reply, hangs_up
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    ("reply", "hangs_up", "answer"),
    [
        (b"action=OK\n\n", False, "OK"),
        (b"action=DUNNO\n\n", False, "DUNNO"),
        (b"action=DEFER_IF_REJECT 4.3.0 later\n\n", False, "DEFER"),
        (b"action=\n\n", False, "wrong"),
        (b"action=OK\n\naction=OK\n\n", False, "wrong"),
        (b"action=PERMIT\n\n", False, "wrong"),
        (b"", True, "lost"),
        (b"action=OK\n", True, "lost"),
    ],
)
def test_what_the_service_answers_is_noted_as_it_is(
    reply: bytes, hangs_up: bool, answer: str, tmp_path: Path
) -> None:
    with liar(reply, hangs_up=hangs_up) as server:
        with Asking(server.place, tmp_path / "asked", rate=SHORT.rate, connections=5) as asking:
            assert wait_until(lambda: server.requests >= 10)
        asked = asking.asked()
    assert {each.answer for each in asked} == {answer}
    assert all(each.sent <= each.answered for each in asked)


def test_the_proxy_passes_on_cuts_and_falls_silent() -> None:
    with liar(b"action=DUNNO\n\n") as server, Proxy(server.place.port) as proxy:
        place = Listener(host="127.0.0.1", port=proxy.port)
        with _Client(place) as client:
            assert client.ask() == b"action=DUNNO\n\n"
            proxy.cut_next_reply()
            assert client.ask() == b"action="
        with _Client(place) as client:
            assert client.ask() == b"action=DUNNO\n\n"
            proxy.fall_silent()
            assert client.ask(seconds=0.2) == b"action="
        proxy.speak_again()
        with _Client(place) as client:
            assert client.ask() == b"action=DUNNO\n\n"


class _Client:
    def __init__(self, place: Listener) -> None:
        import socket

        self._socket = socket.create_connection((place.host, place.port), timeout=60)

    def ask(self, seconds: float = 10) -> bytes:
        """What is answered: a whole reply, or what there is of one at its end or so many seconds after it began."""
        self._socket.sendall(b"request=smtpd_access_policy\n\n")
        self._socket.settimeout(20)
        reply = b""
        try:
            while not reply.endswith(b"\n\n") and (data := self._socket.recv(100)):
                reply += data
                self._socket.settimeout(seconds)
        except TimeoutError:
            pass
        return reply

    def __enter__(self) -> _Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


@pytest.mark.parametrize(
    "reply",
    [b"+OK\r\n", b"-ERR x\r\n", b":1\r\n", b"$3\r\na\r\n\r\n", b"$-1\r\n", b"*-1\r\n", b"*2\r\n$-1\r\n*1\r\n:1\r\n"],
)
def test_the_lying_proxy_sees_where_a_reply_ends(reply: bytes) -> None:
    assert end_of_reply(reply + b":2\r\n") == len(reply)
    assert all(end_of_reply(reply[:size]) == -1 for size in range(len(reply)))
