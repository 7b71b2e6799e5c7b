"""Doctor names denies that an earlier version wrote without registering them, and its advice repairs them."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis import Redis

from pbs_policy.doctor.finding import Finding
from pbs_policy.doctor.store_keys import check_denies
from tests.commands import Pbs
from tests.stores import table_on

DAY = 86_400


def finding(redis: Redis) -> Finding:
    (found,) = check_denies(table_on(redis, "pbs:"))
    return found


@pytest.mark.parametrize("denied", ["deny-user:alice@example.com", "deny:2001:db8::7", "deny:2001:db8:1:2::/64"])
def test_an_unregistered_deny_is_named_until_it_is_written_again(
    denied: str, redis: Redis, pbs: Pbs, tmp_path: Path
) -> None:
    redis.set(f"pbs:{denied}", "spam", ex=DAY)
    redis.set("pbs:deny:192.0.2.7", "spam", ex=DAY)
    found = finding(redis)
    assert found.level == "warning"
    assert found.seen.startswith(f"1 of 2 denies in Redis, {denied.partition(':')[2]} is one, ")
    for command in found.mend.replace("FILE", str(tmp_path / "denies.jsonl")).split(" && "):
        program, *arguments = command.split()
        assert program == "pbs-policy"
        result = pbs(*arguments)
        assert result.status == 0, result.err
    assert finding(redis).level == "good"


def test_a_deny_that_outlasts_its_registration_is_named(redis: Redis, pbs: Pbs) -> None:
    """A later, shorter deny has registered itself alone."""
    redis.set("pbs:deny-user:alice@example.com", "spam", ex=30 * DAY)
    assert pbs("deny", "bob@example.com", "--for", "1d").status == 0
    assert "1 of 2 denies in Redis, alice@example.com is one, " in finding(redis).seen


@pytest.mark.parametrize("who", ["alice@example.com", "192.0.2.7", "192.0.2.0/24", "2001:db8::7", "2001:db8::/48"])
def test_a_deny_of_this_version_is_registered(who: str, redis: Redis, pbs: Pbs) -> None:
    assert pbs("deny", who, "--for", "1d").status == 0
    assert finding(redis).level == "good"


def test_a_deny_that_cannot_be_exported_is_not_named(redis: Redis) -> None:
    """What has no expiry, or names what nobody asks for, another check names or no one needs."""
    redis.set("pbs:deny-user:alice@example.com", "spam")
    redis.set("pbs:deny:nonsense", "spam", ex=DAY)
    assert finding(redis).level == "good"
