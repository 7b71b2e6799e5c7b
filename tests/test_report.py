"""`pbs-policy report`: what it prints of the sums that the service wrote, on fakeredis and on a real Redis."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable

import pytest
from redis import Redis

from pbs_policy.duration import ago_at
from pbs_policy.table.rows import write_time
from pbs_policy.table.usage import BY_ADDRESS_ALONE, BY_DOMAIN, Usage
from tests.commands import Pbs, Result
from tests.stores import carry_out

DAY = 86_400
NOON = int(time.time()) // DAY * DAY + DAY // 2
KEPT = 400 * DAY


Note = Callable[..., None]


@pytest.fixture(autouse=True)
def noon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: NOON + 0.5)


@pytest.fixture
def note(redis: Redis) -> Note:
    """Let so many recipients be relayed, so many of them with a foreign sender, so many seconds ago."""

    def write(
        client_address: str, user: str, recipients: int, foreign: int = 0, ago: int = 60, kind: int = BY_DOMAIN
    ) -> None:
        usage = Usage("pbs:", KEPT, lambda: NOON - ago)
        for number in range(recipients):
            usage.note(client_address, user, kind if number < foreign else 0)
        usage.written(carry_out(redis, usage.commands()))

    return write


def ago(seconds: int) -> str:
    """How a time before noon is shown, in whatever time zone the tests run."""
    return ago_at(NOON - seconds, NOON)


def day(ago: int) -> str:
    return time.strftime("%Y-%m-%d 00:00 UTC", time.gmtime(NOON - ago * DAY))


@pytest.fixture
def some_uses(note: Note) -> None:
    note("192.0.2.8", "alice@example.com", 30, 2, 3600)
    note("192.0.2.7", "alice@example.com", 90, 1, 7500)
    note("2001:db8::7", "alice@example.com", 5, 0, 2 * DAY)
    note("192.0.2.7", "bob@example.com", 100, 0, 3 * DAY)
    note("192.0.2.9", "carol@example.com", 1)


def test_the_users_are_listed_who_relayed_most_first(pbs: Pbs, some_uses: None) -> None:
    assert pbs("report") == Result(
        0,
        "USER               ADDRESSES             RECIPIENTS  FOREIGN SENDERS  LAST USE\n"
        f"alice@example.com  192.0.2.7 and 2 more         125                3  {ago(3600)}\n"
        f"bob@example.com    192.0.2.7                    100                0  {ago(3 * DAY)}\n"
        f"carol@example.com  192.0.2.9                      1                0  {ago(60)}\n"
        f"3 users at 4 addresses: 226 recipients since {day(7)}\n"
        "foreign senders: those that sender_match = domain would refuse\n",
        "",
    )


def test_with_addresses_each_user_and_address_has_a_line(pbs: Pbs, some_uses: None) -> None:
    assert pbs("report", "--addresses").out == (
        "USER               CLIENT ADDRESS  RECIPIENTS  FOREIGN SENDERS  LAST USE\n"
        f"bob@example.com    192.0.2.7              100                0  {ago(3 * DAY)}\n"
        f"alice@example.com  192.0.2.7               90                1  {ago(7500)}\n"
        f"alice@example.com  192.0.2.8               30                2  {ago(3600)}\n"
        f"alice@example.com  2001:db8::7              5                0  {ago(2 * DAY)}\n"
        f"carol@example.com  192.0.2.9                1                0  {ago(60)}\n"
        f"3 users at 4 addresses: 226 recipients since {day(7)}\n"
        "foreign senders: those that sender_match = domain would refuse\n"
    )


@pytest.mark.parametrize(
    ("options", "sets", "refusing", "counted"),
    [
        ((), (), "domain", 2),
        ((), ("sender_match=domain",), "domain", 2),
        ((), ("sender_match=address",), "address", 5),
        (("--as", "address"), (), "address", 5),
        (("--as", "domain"), ("sender_match=address",), "domain", 2),
    ],
)
def test_foreign_is_a_sender_that_the_setting_in_question_would_refuse(
    pbs: Pbs, note: Note, options: tuple[str, ...], sets: tuple[str, ...], refusing: str, counted: int
) -> None:
    note("192.0.2.7", "alice@example.com", 2, 2)
    note("192.0.2.7", "alice@example.com", 3, 3, kind=BY_ADDRESS_ALONE)
    note("192.0.2.7", "alice@example.com", 1)
    given = [word for each in sets for word in ("--set", each)]
    assert pbs(*given, "report", *options).out.endswith(
        f"6{counted:>17}  {ago(60)}\n1 user at 1 address: 6 recipients since {day(7)}\n"
        f"foreign senders: those that sender_match = {refusing} would refuse\n"
    )
    assert json.loads(pbs(*given, "report", "--json", *options).out)[0]["foreign_senders"] == counted


def test_json_is_one_object_for_each_user_and_address(pbs: Pbs, some_uses: None, note: Note) -> None:
    note("192.0.2.7", "jos\udce9@example.com", 1)
    note("192.0.2.6", "", 1)
    result = pbs("report", "--json")
    objects = json.loads(result.out)
    assert result.err == ""
    assert objects[1] == {
        "user": "alice@example.com", "client_address": "192.0.2.7",
        "recipients": 90, "foreign_senders": 1, "last_use_at": write_time(NOON - 7500),
    }  # fmt: skip
    assert [each["user"] for each in objects[4:]] == [None, "carol@example.com", "jos\ufffd@example.com"]
    assert len(result.out.splitlines()) == 2 + len(objects)
    assert pbs("report", "--json", "--addresses").out == result.out


def test_an_address_whose_user_is_not_known_has_a_line_of_its_own(pbs: Pbs, note: Note) -> None:
    note("192.0.2.7", "", 3)
    note("192.0.2.8", "", 2)
    note("192.0.2.8", "alice@example.com", 1)
    assert pbs("report").out == (
        "USER               ADDRESSES  RECIPIENTS  FOREIGN SENDERS  LAST USE\n"
        f"-                  192.0.2.7           3                0  {ago(60)}\n"
        f"-                  192.0.2.8           2                0  {ago(60)}\n"
        f"alice@example.com  192.0.2.8           1                0  {ago(60)}\n"
        f"1 user at 2 addresses (2 without a known user): 6 recipients since {day(7)}\n"
    )


def test_what_was_beyond_a_days_bound_is_a_line_of_its_own(pbs: Pbs, note: Note) -> None:
    note("192.0.2.7", "others", 7)
    note("others", "", 3, 1, 300)
    note("others", "", 2, 0, DAY)
    assert pbs("report").out == (
        "USER    ADDRESSES  RECIPIENTS  FOREIGN SENDERS  LAST USE\n"
        f"others  192.0.2.7           7                0  {ago(60)}\n"
        "others, beyond 5,000 users and addresses on one day: 5 recipients, 1 with a foreign sender, "
        f"last {ago(300)}\n"
        f"1 user at 1 address and others: 12 recipients since {day(7)}\n"
        "foreign senders: those that sender_match = domain would refuse\n"
    )
    assert json.loads(pbs("report", "--json").out)[1] == {
        "user": None, "client_address": None, "recipients": 5, "foreign_senders": 1,
        "last_use_at": write_time(NOON - 300),
    }  # fmt: skip


def test_where_nothing_was_relayed_it_says_so(pbs: Pbs) -> None:
    assert pbs("report") == Result(0, f"nobody has relayed by POP-before-SMTP since {day(7)}\n", "")
    assert pbs("report", "--json") == Result(0, "[]\n", "")


def test_names_are_made_printable(pbs: Pbs, note: Note) -> None:
    note("192.0.2.7", "a\x1b[31m\n\udce9@example.com", 1)
    assert pbs("report").out.splitlines()[1].startswith("a?[31m??@example.com  192.0.2.7 ")


@pytest.mark.parametrize(
    ("since", "users", "days"),
    [("1d", 2, 1), ("13h", 2, 1), ("11h", 1, 0), ("1s", 1, 0), ("2d", 3, 2), ("30d", 4, 30), ("4w", 3, 28)],
)
def test_since_says_how_far_to_look_back_in_whole_days(
    pbs: Pbs, note: Note, since: str, users: int, days: int
) -> None:
    note("192.0.2.7", "alice@example.com", 1, 0, DAY // 2)  # the first second of today
    note("192.0.2.7", "bob@example.com", 1, 0, DAY // 2 + 1)
    note("192.0.2.7", "carol@example.com", 1, 0, 2 * DAY)
    note("192.0.2.7", "dave@example.com", 1, 0, 29 * DAY)
    out = pbs("report", "--since", since).out
    assert len(out.splitlines()) == users + 2
    assert out.endswith(f" since {day(days)}\n")


def test_without_since_it_looks_back_no_further_than_uses_are_kept(pbs: Pbs, note: Note) -> None:
    note("192.0.2.7", "alice@example.com", 1)
    assert pbs("--set", "usage_kept=3d", "report").out.endswith(f" since {day(3)}\n")


def test_since_further_back_than_uses_are_kept_is_wrong_usage(bare: Pbs) -> None:
    assert bare("--set", "usage_kept=3d", "report", "--since", "4d") == Result(
        os.EX_USAGE,
        "",
        "pbs-policy: Invalid value for '--since': uses are kept for 3d (usage_kept) (see pbs-policy report --help)\n",
    )
    result = bare("report", "--since", "ever")
    assert (result.status, result.out) == (os.EX_USAGE, "")
    assert "expected a time from 1s to 1830d" in result.err


def test_where_nothing_is_kept_it_says_what_to_set(bare: Pbs) -> None:
    assert bare("--set", "usage_kept=0", "report") == Result(
        os.EX_CONFIG,
        "",
        "pbs-policy: usage_kept = 0: uses are not kept, so there is nothing to report; set it to 30d, say\n",
    )


def test_a_key_of_another_type_is_an_error_of_redis(pbs: Pbs, redis: Redis) -> None:
    redis.set(time.strftime("pbs:use:%Y%m%d", time.gmtime(NOON)), "x")
    result = pbs("report")
    assert (result.status, result.out) == (os.EX_UNAVAILABLE, "")
    assert "WRONGTYPE" in result.err


def test_other_key_prefixes_are_not_read(pbs: Pbs, some_uses: None) -> None:
    assert pbs("--set", "key_prefix=other:", "report").out.startswith("nobody has relayed")
