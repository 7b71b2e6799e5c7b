"""Who is credited with what was let through: the login that decided, or the one whom the sender names."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
from redis import Redis

from pbs_policy.decision.candidate import Candidate, login_under, permit_under
from pbs_policy.decision.rules import OK, Decision
from pbs_policy.decision.sender import LONGEST_SENDER, SenderRules
from pbs_policy.demo.daemons import PrivateRedis
from pbs_policy.postfix.protocol import as_request
from pbs_policy.service.uses import Uses
from pbs_policy.store.question import Answer, Question
from pbs_policy.table.keys import Keys
from pbs_policy.table.usage import BY_ADDRESS_ALONE, BY_DOMAIN, PAIRS_AT_ONCE, PAIRS_IN_MEMORY, Usage, Use, read_uses
from tests.service import Service
from tests.stores import client_on

KEYS = Keys("t:")
CLIENT = "192.0.2.7"
ALICE, BOB, CAROL, DAVE = "alice@example.com", "bob@example.com", "carol@example.net", "dave@example.org"


class Site:
    """A service with these users logged in at one address, the last of them last."""

    def __init__(self, *users: str, rules: SenderRules | None = None, away: bool = False) -> None:
        self.usage = Usage("t:", 86_400)
        self.uses = Uses(KEYS)
        self.uses.follow(self.usage, rules or SenderRules(), None)
        self.last = b"1763881234 imap " + users[-1].encode()
        self.logins = {KEYS.login(CLIENT, each.encode()): b"1763881234 imap " + each.encode() for each in users}
        self.away = away
        self.asked = 0
        self.pauses = 0

    async def _put(self, question: Question) -> Answer | None:
        self.asked += 1
        return None if self.away else Answer([self.logins.get(key) for key in question.keys])

    async def _pause(self) -> None:
        self.pauses += 1

    def relay(self, sender: str, by: Candidate | None = None, more: str = "", client: str = CLIENT) -> None:
        request = as_request(f"client_address={client}\nsender={sender}\n{more}\n".encode())
        by = by or login_under(CLIENT, KEYS.login(CLIENT), self.last, "")
        self.uses.note(client, request, Decision(OK, "login", by))

    def credited(self) -> list[tuple[str, int, int, int]]:
        """User, recipients, and foreign senders by domain and by address alone."""
        asyncio.run(self.uses.credit(self._put, self._pause))
        sums = self.usage._today.sums
        return sorted(
            (user, each.number, *divmod(each.foreign, BY_ADDRESS_ALONE)[::-1]) for (_, user), each in sums.items()
        )


@pytest.mark.parametrize(
    ("users", "senders", "credited"),
    [
        ([ALICE], [ALICE], [(ALICE, 1, 0, 0)]),
        ([ALICE], [BOB], [(ALICE, 1, 0, 1)]),
        ([ALICE], [CAROL], [(ALICE, 1, 1, 0)]),
        ([ALICE], [""], [(ALICE, 1, 1, 0)]),
        ([ALICE], ["a@b@c"], [(ALICE, 1, 1, 0)]),
        ([ALICE, CAROL], [ALICE], [(ALICE, 1, 0, 0)]),
        ([ALICE, CAROL], [ALICE, CAROL], [(ALICE, 1, 0, 0), (CAROL, 1, 0, 0)]),
        ([ALICE, CAROL], ["Alice@Example.com", DAVE], [("", 1, 1, 0), (ALICE, 1, 0, 0)]),
        ([ALICE, CAROL], [ALICE, ""], [("", 1, 1, 0), (ALICE, 1, 0, 0)]),
        ([ALICE, CAROL], [ALICE, "x@example.net"], [("", 1, 0, 1), (ALICE, 1, 0, 0)]),
    ],
)
def test_a_sender_is_credited_where_it_names_one_who_is_logged_in_there_else_the_address(
    users: list[str], senders: list[str], credited: list[tuple[str, int, int, int]]
) -> None:
    site = Site(*users)
    for sender in senders:
        site.relay(sender)
    assert site.credited() == credited


def test_nobody_is_asked_for_where_the_sender_is_the_users_own() -> None:
    site = Site(ALICE)
    site.relay(ALICE)
    assert site.credited() == [(ALICE, 1, 0, 0)]
    assert site.asked == 0


def test_behind_an_address_where_another_logged_in_today_the_address_is_credited() -> None:
    site = Site(ALICE)
    site.relay(ALICE)
    site.credited()
    site.last = b"1763881234 imap " + CAROL.encode()
    site.relay(DAVE)
    assert site.credited() == [("", 1, 1, 0), (ALICE, 1, 0, 0)]


def test_the_next_day_it_is_not_known_any_more_who_shared_the_address() -> None:
    site = Site(ALICE, CAROL)
    assert [site.usage.is_shared(CLIENT, each) for each in (b"a", b"a", b"b", b"a")] == [False, False, True, True]
    site.usage._turn(0)
    assert not site.usage.is_shared(CLIENT, b"a")


def test_a_null_sender_that_is_permitted_is_not_foreign() -> None:
    site = Site(ALICE, rules=SenderRules(null_sender="permit"))
    site.relay("")
    assert site.credited() == [(ALICE, 1, 0, 0)]


def test_a_sender_without_its_extension_is_looked_for() -> None:
    site = Site(ALICE, CAROL, rules=SenderRules(recipient_delimiter="+"))
    site.relay("alice+x@example.com")
    assert site.credited() == [(ALICE, 1, 0, 0)]


def test_while_redis_is_away_the_notes_wait() -> None:
    site = Site(ALICE, CAROL, away=True)
    for sender in (ALICE, CAROL, DAVE):
        site.relay(sender)
    assert site.credited() == []
    site.relay(ALICE)
    site.away = False
    assert site.credited() == [("", 1, 1, 0), (ALICE, 2, 0, 0), (CAROL, 1, 0, 0)]


def test_a_recipient_counts_for_the_day_on_which_it_was_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(ALICE)
    for moment in (2 * 86_400 - 2, 2 * 86_400 + 1):
        monkeypatch.setattr(time, "time", lambda moment=moment: moment)
        site.relay(ALICE)
    site.credited()
    assert [sum(each.number for each in day.sums.values()) for day in site.usage._days.values() if day.sums] == [1, 1]


def test_a_sender_that_names_nobody_is_noted_in_a_few_bytes() -> None:
    site = Site(ALICE)
    site.relay("x" * 8_000 + "@example.com")
    ((_, _, _, sender, _),) = site.uses._noted
    assert len(sender) <= LONGEST_SENDER + 1
    assert site.credited() == [(ALICE, 1, 1, 0)]


def test_what_a_permit_let_through_is_of_the_permits_user() -> None:
    site = Site(ALICE)
    permit = permit_under(CLIENT, KEYS.permit(CLIENT), b"1763881234 manual printer", "")
    assert permit is not None
    site.relay(BOB, permit)
    assert site.credited() == [("printer", 1, 1, 0)]
    assert site.asked == 0


@pytest.mark.parametrize("user", ["probe@doctor.invalid", ALICE])
def test_a_trial_and_a_question_are_no_use(user: str) -> None:
    site = Site(user)
    site.relay(BOB, more="pbs_only_looks=yes\n" if user == ALICE else "")
    assert site.credited() == []


def test_recipients_that_are_alike_are_judged_once_and_counted_each() -> None:
    site = Site(ALICE, CAROL)
    for _ in range(7):
        site.relay(ALICE)
    assert site.credited() == [(ALICE, 7, 0, 0)]
    assert site.asked == 1


def test_many_notes_are_credited_in_pieces_with_a_pause_behind_each() -> None:
    site = Site(ALICE)
    for number in range(2 * PAIRS_AT_ONCE + 1):
        site.relay(f"{number}@example.com")
    assert site.credited() == [(ALICE, 2 * PAIRS_AT_ONCE + 1, 0, 2 * PAIRS_AT_ONCE + 1)]
    assert (site.asked, site.pauses) == (3, 3)


def test_where_there_is_no_room_for_a_note_the_mail_of_somebody_elses_name_is_nobodys() -> None:
    site = Site(ALICE, CAROL)
    for number in range(PAIRS_IN_MEMORY):
        site.relay(CAROL, client=f"192.0.2.{number}")
    site.relay(ALICE)
    sums = {user: (each.number, each.foreign) for (_, user), each in site.usage._today.sums.items()}
    assert sums == {"": (1, BY_DOMAIN)}


def test_nothing_is_noted_while_nothing_is_to_be_counted() -> None:
    site = Site(ALICE)
    site.relay(ALICE)
    site.uses.follow(None, SenderRules(), None)
    site.relay(ALICE)
    site.uses.follow(site.usage, SenderRules(), None)
    assert site.credited() == []


def test_what_is_foreign_by_domain_is_foreign_by_address() -> None:
    assert divmod(3 * BY_DOMAIN + 2 * BY_ADDRESS_ALONE, BY_ADDRESS_ALONE) == (2, 3)


def test_the_service_credits_each_of_those_who_share_an_address(
    redis_server: PrivateRedis, start_service: Callable[..., Service]
) -> None:
    service = start_service(redis_url=redis_server.url)
    with Redis.from_url(redis_server.url) as redis:
        for key, user in ((f"{CLIENT},{ALICE}", ALICE), (f"{CLIENT},{CAROL}", CAROL), (CLIENT, CAROL)):
            redis.set(f"pbs:login:{key}", f"1763881234 imap {user}", ex=100)
        for sender in (ALICE, CAROL, DAVE, ALICE):
            assert service.ask(CLIENT, sender=sender) == "OK"
        service.stop()
        now = time.time()
        uses = [use._replace(last_use=0) for use in read_uses(client_on(redis), "pbs:", now - 86_400, now)]
    assert sorted(uses) == [Use(CLIENT, "", 1, 1, 0), Use(CLIENT, ALICE, 2, 0, 0), Use(CLIENT, CAROL, 1, 0, 0)]
