"""The private daemons themselves, with stand-ins for our programs: a fixed policy service, a script at login.

What is loaded are the example files; only addresses, paths and users are put in place.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from pbs_policy.demo.daemons import DaemonError, PrivateRedis, wait_until
from pbs_policy.demo.dovecot import PrivateDovecot, dovecot_version, imap_login, pop3_login
from pbs_policy.demo.ports import free_port
from pbs_policy.demo.postfix import PrivatePostfix, attempt_relay
from pbs_policy.postfix.listener import Listener
from pbs_policy.programs import find_program, missing
from tests.stand_ins import answering
from tests.stores import pause, resume

ROOT = Path(__file__).resolve().parents[2]
CLIENT = "192.0.2.7"
RELAYED = "bob@example.net"
LOCAL = "carol@local.example"

OK, DUNNO = b"action=OK\n\n", b"action=DUNNO\n\n"
needs_postfix = pytest.mark.skipif(missing("postfix") is not None, reason=str(missing("postfix")))
needs_dovecot = pytest.mark.skipif(missing("dovecot") is not None, reason=str(missing("dovecot")))
needs_redis = pytest.mark.skipif(missing("redis") is not None, reason=str(missing("redis")))


def relay(postfix: PrivatePostfix, recipient: str = RELAYED, client_address: str = CLIENT) -> int:
    return attempt_relay(postfix.port, client_address, "alice@example.com", recipient).code


def example(name: str, *replacements: tuple[str, str]) -> str:
    text = (ROOT / name).read_text(encoding="utf-8")
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    return text


@needs_postfix
def test_the_inet_example_relays_on_ok_and_refuses_on_dunno(tmp_path: Path) -> None:
    port = free_port()
    fragment = example("postfix-examples/main.cf.inet", ("127.0.0.1:10040", f"127.0.0.1:{port}"))
    with (
        answering(OK, listener=Listener(host="127.0.0.1", port=port)) as policy,
        PrivatePostfix(tmp_path, fragment=fragment) as postfix,
    ):
        assert relay(postfix) == 250
        assert relay(postfix, client_address="2001:db8::7") == 250
        assert relay(postfix, LOCAL) == 250
        assert len(policy.requests) == 2, "mail for our own domain must not ask the policy service"
        policy.replies = [DUNNO]
        assert relay(postfix) == 554
        assert relay(postfix, LOCAL) == 250


@needs_postfix
def test_a_policy_service_that_is_down_defers_relaying_and_leaves_local_mail_alone(tmp_path: Path) -> None:
    fragment = example("postfix-examples/main.cf.inet", ("127.0.0.1:10040", f"127.0.0.1:{free_port()}"))
    with PrivatePostfix(tmp_path, fragment=fragment) as postfix:
        attempt = attempt_relay(postfix.port, CLIENT, "alice@example.com", RELAYED)
        assert attempt.code == 450
        assert "relay permission cannot be checked now" in attempt.text
        assert relay(postfix, LOCAL) == 250


@needs_postfix
@pytest.mark.parametrize("chroot", [False, True])
def test_the_unix_example_finds_its_socket_with_and_without_the_chroot(tmp_path: Path, chroot: bool) -> None:
    with PrivatePostfix(tmp_path, fragment=example("postfix-examples/main.cf.unix"), chroot=chroot) as postfix:
        assert relay(postfix) == 450
        folder = postfix.queue_directory / "pbs-policy"
        folder.mkdir()
        with answering(OK, listener=Listener(path=str(folder / "policy"))):
            (folder / "policy").chmod(0o666)
            assert relay(postfix) == 250


def check(*options: str) -> str:
    words = ("inet:POLICY", "timeout=2s", "try_limit=2", *options)
    return f"check_policy_service {{ {', '.join(words)} }}"


DEFER = "{ default_action = DEFER_IF_REJECT 4.3.0 later }"
REJECT_LISTED = "check_client_access static:{REJECT listed}"
AUTH = "permit_auth_destination"
REFUSE = "reject_unauth_destination"
DOWN = None


# What postfix-examples/README.md says under "What not to do". In each row: the relay restrictions, the
# recipient restrictions, the service's action, the reply to a relay attempt and to mail for our own domain.
@needs_postfix
@pytest.mark.parametrize(
    ("relay_restrictions", "recipient_restrictions", "action", "relayed", "local"),
    [
        ([], [check(), REFUSE, REJECT_LISTED], b"OK", 250, 250),
        ([], [check(), REFUSE, REJECT_LISTED], b"DUNNO", 554, 554),
        (["defer_unauth_destination"], [check()], b"OK", 454, 250),
        ([REFUSE, check()], [], b"OK", 554, 250),
        ([REFUSE, check()], [], DOWN, 554, 451),
        ([check(), REFUSE], [], DOWN, 451, 451),
        ([check(DEFER), REFUSE], [], DOWN, 450, 250),
        ([check(DEFER), REFUSE], [REJECT_LISTED], DOWN, 450, 450),
        ([AUTH, check(), REFUSE], [], DOWN, 451, 250),
        ([AUTH, check("default_action=DUNNO"), REFUSE], [], DOWN, 554, 250),
        ([AUTH, check("default_action=OK"), REFUSE], [], DOWN, 250, 250),
        # What else permits: access(5). Doctor says so (tests/doctor/test_postfix.py).
        ([AUTH, check("default_action=relay"), REFUSE], [], DOWN, 250, 250),
        ([AUTH, check("default_action=permit"), REFUSE], [], DOWN, 250, 250),
        ([AUTH, check("default_action=450"), REFUSE], [], DOWN, 250, 250),
        ([AUTH, check("default_action=anybody"), REFUSE], [], DOWN, 250, 250),
        ([AUTH, check("{ default_action = 450 4.3.0 later }"), REFUSE], [], DOWN, 450, 250),
        ([AUTH, "permit_mynetwork", check(), REFUSE], [], b"OK", 451, 250),
        (["permit_mynetwork", AUTH, check(), REFUSE], [], b"OK", 451, 451),
    ],
)
def test_what_not_to_do_has_the_replies_that_the_readme_gives(
    tmp_path: Path,
    relay_restrictions: list[str],
    recipient_restrictions: list[str],
    action: bytes | None,
    relayed: int,
    local: int,
) -> None:
    port = free_port()
    fragment = f"""\
smtpd_relay_restrictions = {", ".join(relay_restrictions)}
smtpd_recipient_restrictions = {", ".join(recipient_restrictions)}
smtpd_restriction_classes = anybody
anybody = permit
""".replace("POLICY", f"127.0.0.1:{port}")
    with ExitStack() as stack:
        if action is not DOWN:
            listener = Listener(host="127.0.0.1", port=port)
            stack.enter_context(answering(b"action=%s\n\n" % action, listener=listener))
        postfix = stack.enter_context(PrivatePostfix(tmp_path, fragment=fragment))
        assert (relay(postfix), relay(postfix, LOCAL)) == (relayed, local)


@needs_postfix
def test_a_relay_client_passes_a_list_that_looks_only_at_inbound_mail(tmp_path: Path) -> None:
    fragment = (
        "smtpd_relay_restrictions = check_client_access static:OK, reject\n"
        "smtpd_restriction_classes = inbound_checks\n"
        "inbound_checks = check_client_access static:{REJECT listed}\n"
        "smtpd_recipient_restrictions = check_recipient_access inline:{ local.example=inbound_checks }\n"
    )
    with PrivatePostfix(tmp_path, fragment=fragment) as postfix:
        assert (relay(postfix), relay(postfix, LOCAL)) == (250, 554)


@needs_postfix
def test_an_accepted_message_is_discarded_and_never_leaves(tmp_path: Path) -> None:
    fragment = "smtpd_relay_restrictions = check_client_access static:OK, reject\n"
    with PrivatePostfix(tmp_path, fragment=fragment) as postfix:
        attempt = attempt_relay(postfix.port, CLIENT, "alice@example.com", RELAYED, message="Subject: x\n\n.x")
        assert attempt.code == 250
        assert "queued" in attempt.text
        assert wait_until(lambda: f"to=<{RELAYED}>, relay=none" in postfix.log_text())


@needs_postfix
def test_a_postfix_that_cannot_start_says_why(tmp_path: Path) -> None:
    postfix = PrivatePostfix(tmp_path, fragment="smtpd_relay_restrictions = permit_mynetworks\n")
    with pytest.raises(DaemonError, match="specify at least one working instance of"), postfix:
        pass


@pytest.fixture
def script() -> Iterator[Path]:
    # Not below tmp_path: the script runs as another user, to whom pytest's directories are closed.
    with tempfile.TemporaryDirectory(prefix="pbs-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        logins = folder / "logins"
        logins.touch()
        logins.chmod(0o666)
        script = folder / "script"
        script.write_text(f'#!/bin/sh\necho "$1 $IP $USER" >>{logins}\nshift\nexec "$@"\n')
        script.chmod(0o755)
        yield script


@needs_dovecot
@pytest.mark.parametrize("client_address", [CLIENT, "2001:db8::7"])
def test_a_login_runs_the_script_with_the_clients_address(tmp_path: Path, script: Path, client_address: str) -> None:
    hook_config = example(
        "dovecot-hooks/pbs-policy.conf",
        ("/usr/local/lib/pbs-policy/pbs-postlogin", str(script)),
        ("user = pbs-policy", "user = nobody"),
    )
    with PrivateDovecot(tmp_path, hook_config=hook_config) as dovecot:
        assert pop3_login(dovecot.pop3_port, client_address).succeeded
        assert imap_login(dovecot.imap_port, client_address).succeeded
    assert (script.parent / "logins").read_text().splitlines() == [
        f"pop3 {client_address} alice@example.com",
        f"imap {client_address} alice@example.com",
    ]


@needs_dovecot
def test_a_wrong_password_is_refused_and_not_shown(tmp_path: Path) -> None:
    with PrivateDovecot(tmp_path, hook_config="") as dovecot:
        for attempt in (
            pop3_login(dovecot.pop3_port, CLIENT, password="not this one"),
            imap_login(dovecot.imap_port, CLIENT, password="not this one"),
        ):
            assert not attempt.succeeded
            assert "not this one" not in "\n".join(attempt.transcript)


@needs_dovecot
def test_a_dovecot_that_cannot_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(DaemonError, match="Unknown setting"),
        PrivateDovecot(tmp_path, hook_config="no_such_setting = 1\n"),
    ):
        pass


@needs_dovecot
@needs_redis
def test_the_last_login_example_writes_the_login_table(tmp_path: Path) -> None:
    with PrivateRedis(tmp_path / "redis", port=None) as redis:
        name = "last-login-2.3.conf" if dovecot_version() < (2, 4) else "last-login-2.4.conf"
        hook_config = example(f"dovecot-hooks/{name}", ("6379", str(redis.port)))
        with PrivateDovecot(tmp_path / "dovecot", hook_config=hook_config) as dovecot:
            before = int(time.time())
            assert pop3_login(dovecot.pop3_port, CLIENT).succeeded
            assert imap_login(dovecot.imap_port, "2001:db8::7").succeeded
        for client_address in (CLIENT, "2001:db8::7"):
            key = f"pbs:login:{client_address}"
            assert wait_until(partial(is_recorded, redis, key))
            assert before <= int(redis_cli(redis, "GET", key)) <= time.time()
            assert 1790 <= int(redis_cli(redis, "TTL", key)) <= 1800


def is_recorded(redis: PrivateRedis, key: str) -> bool:
    return redis_cli(redis, "GET", key) != ""


def redis_cli(redis: PrivateRedis, *command: str) -> str:
    program = find_program("redis-cli", "valkey-cli") or "redis-cli"
    return subprocess.run(
        [program, "-s", str(redis.socket_path), *command], capture_output=True, text=True, check=True
    ).stdout.strip()


@needs_redis
def test_a_redis_comes_back_on_the_same_place_and_ends_even_when_paused(tmp_path: Path) -> None:
    with PrivateRedis(tmp_path, port=None) as redis:
        first, url = redis.pid, redis.url
        redis.stop()
        assert not redis.is_ready()
        redis.start()
        assert redis.pid != first
        assert redis.url == url
        pause(redis)
        resume(redis)
        assert wait_until(redis.is_ready)
        pause(redis)
        last = redis.pid
    with pytest.raises(ProcessLookupError):
        os.kill(last, 0)


@needs_redis
def test_a_redis_that_cannot_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(DaemonError, match="no-such-option"),
        PrivateRedis(tmp_path, arguments=("--no-such-option", "1")),
    ):
        pass


def test_what_is_missing_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pbs_policy.programs.find_program", lambda *_: None)
    assert missing("postfix") == "postfix is not installed: apt-get install postfix"
    monkeypatch.setattr("pbs_policy.programs.find_program", lambda *_: "/usr/sbin/program")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert missing("redis") is None
    assert "needs root" in str(missing("redis", "dovecot"))
