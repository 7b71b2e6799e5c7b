"""Doctor's checks of the running service, and the whole trial, with the real script and the real service."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from pbs_policy.demo.daemons import PrivateRedis
from pbs_policy.doctor import Doctor, trial
from pbs_policy.doctor.finding import Finding
from pbs_policy.doctor.service import ask_listener, check_service
from pbs_policy.doctor.trial import by_script, check_trial
from pbs_policy.dovecot.logins import Hook
from pbs_policy.host import Host
from pbs_policy.postfix.listener import Listener
from pbs_policy.settings import load
from pbs_policy.shipped import shipped
from pbs_policy.store.redis_url import RedisUrl
from tests.patience import patient_script
from tests.service import Service
from tests.stores import connect, table_on

Start = Callable[..., Service]
Try = Callable[..., list[Finding]]


@pytest.fixture
def server(own_redis: Callable[..., PrivateRedis]) -> PrivateRedis:
    return own_redis()


@pytest.fixture
def client(server: PrivateRedis) -> Iterator[Redis]:
    with connect(RedisUrl.parse(server.url), "", "") as redis:
        yield redis


@pytest.fixture
def try_login(server: PrivateRedis, client: Redis, start_service: Start, tmp_path: Path) -> Try:
    """The trial of a service with these settings, and of a script with the same ones but for `script`."""

    def try_it(
        script: dict[str, str] | None = None, host: Host | None = None, user: str = "", redis: Redis | None = None,
        program: str = "", folder: Path = tmp_path, **values: str,
    ) -> list[Finding]:  # fmt: skip
        service = start_service(redis_url=server.url, **values)
        written = {"redis_url": server.url, **values, **(script or {})}
        file = folder / "script.conf"
        file.write_text("".join(f"{name} = {value}\n" for name, value in written.items()))
        settings, _ = load(service.settings_file, overrides=[f"listen={service.listeners[0]}"])
        script_file = program or str(patient_script())
        hook = Hook("pop3", "pop3-postlogin", script_file, ("-c", str(file), "pop3"), user, "99-pbs-policy.conf:23")
        way = by_script(hook, host or Host())
        return list(check_trial(way, settings, table_on(redis or client, settings.key_prefix)))

    return try_it


def is_good(findings: list[Finding]) -> bool:
    """Whether the trial of IPv4 and that of IPv6 went well."""
    return [each.level for each in findings] == ["good", "good"]


def logins_in(redis: Redis) -> list[bytes | str]:
    return [key for key in redis.keys("*") if "login:" in str(key)]


@pytest.mark.parametrize(
    "values",
    [{}, {"sender_match": "address"}, {"sender_match": "domain"}, {"observe_only": "yes"}, {"ipv6_prefix": "64"},
     {"key_prefix": "mail-"}, {"require_tls": "yes"}, {"services": "pop3"},
     {"login_domains": "example.net, example.org"}, {"ttl": "8h"}],
    ids=str,
)  # fmt: skip
def test_a_whole_login_is_tried_and_leaves_nothing(try_login: Try, client: Redis, values: dict[str, str]) -> None:
    findings = try_login(**values)
    assert is_good(findings), findings
    assert logins_in(client) == []


def test_caps_keep_nothing_of_a_trial(try_login: Try, client: Redis) -> None:
    findings = try_login(max_recipients_per_address="9/1h", max_recipients_per_user="9/1h")
    assert is_good(findings), findings
    assert [key for key in client.scan_iter() if b"use:" not in key] == []


PERMITTED = {f"pbs:permit:192.0.2.{host}": "1795453232 manual" for host in range(1, 255)}


@pytest.mark.parametrize(
    ("arguments", "values", "levels", "seen"),
    [
        ({"script": {"key_prefix": "other:"}}, {}, ["wrong"] * 2, "and the service answers DUNNO"),
        ({"script": {"redis_url": "redis://127.0.0.1:1"}}, {}, ["wrong"] * 2, "this login is not recorded"),
        ({"program": "/nowhere"}, {}, ["wrong"] * 2, "the script cannot be run: No such file or directory"),
        ({"program": "/bin/false"}, {}, ["wrong"] * 2, "ended with status 1, and the login would be refused: "),
        ({"user": "pbs-no-such-user"}, {}, ["not looked at"] * 2, "there is no user pbs-no-such-user"),
        ({}, {"services": "imap"}, ["not looked at"], "trial of pop3: `services` leaves pop3 out"),
        ({}, {"never_record": "192.0.2.0/24 2001:db8::/32"}, ["not looked at"] * 2, "is in never_record"),
        ({"there": PERMITTED}, {}, ["not looked at", "good"], "5 addresses of documentation networks were in use"),
    ],
)
def test_what_keeps_a_login_from_being_tried_or_permitted_is_found(
    try_login: Try, client: Redis, arguments: dict[str, Any], values: dict[str, str], levels: list[str], seen: str
) -> None:
    there = arguments.pop("there", {})
    if there:
        client.mset(there)
    findings = try_login(**arguments, **values)
    assert [each.level for each in findings] == levels, findings
    assert seen in findings[0].seen
    assert findings[0].place == "99-pbs-policy.conf:23"
    assert all(0 < client.ttl(key) <= trial.TTL for key in logins_in(client))
    assert client.exists(*there) == len(there) if there else True


def test_a_service_that_permits_on_is_found(try_login: Try, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_ask", lambda *_: ("OK", "OK"))
    findings = try_login()
    assert [each.level for each in findings] == ["wrong", "wrong"]
    assert "the login is gone, and the service answers OK" in findings[0].seen


@pytest.mark.long
def test_a_user_who_may_not_delete_waits_for_the_end(
    try_login: Try, server: PrivateRedis, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "TTL", 6)  # the script has to run within, on a busy machine
    client.acl_setuser("reader", enabled=True, passwords=["+reader"], keys=["pbs:*"],
                       commands=["+get", "+mget", "+pttl"])  # fmt: skip
    findings = try_login(redis=connect(RedisUrl.parse(server.url), "reader", "reader"))
    assert is_good(findings), findings
    assert "refused when it had ended" in findings[0].seen
    assert logins_in(client) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run the script as somebody else")
def test_the_script_runs_as_its_own_user(try_login: Try, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="pbs-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copy(shipped("dovecot-hooks/pbs_postlogin.py"), folder)
        script = folder / "pbs-postlogin"
        shutil.copy(shipped("dovecot-hooks/pbs-postlogin"), script)
        assert is_good(try_login(program=str(script), user="nobody", folder=folder))
        (folder / "pbs_postlogin.py").chmod(0o600)
        findings = try_login(program=str(script), user="nobody", folder=folder)
        assert "Permission denied" in findings[0].seen


def test_an_interrupted_trial_leaves_nothing(try_login: Try, client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        assert logins_in(client)
        raise KeyboardInterrupt

    monkeypatch.setattr(trial, "_ask", interrupt)
    with pytest.raises(KeyboardInterrupt):
        try_login()
    assert logins_in(client) == []


def test_a_running_service_is_good(server: PrivateRedis, start_service: Start) -> None:
    service = start_service(redis_url=server.url, observe_only="yes")
    settings, values = load(service.settings_file, overrides=[f"listen={service.listeners[0]}"])
    answers, observing = check_service(settings, values)
    assert answers.level == "good"
    assert (observing.check, observing.level) == ("service.observe_only", "warning")
    assert observing.place.endswith(".conf:3")


def test_a_service_without_redis_is_a_fault(server: PrivateRedis, start_service: Start) -> None:
    service = start_service(redis_url=server.url)
    server.stop()
    finding = ask_listener(service.listeners[0], "f:1")
    assert (finding.level, finding.place) == ("wrong", "f:1")
    assert "Redis is unavailable to the service" in finding.seen


@contextmanager
def peer(reply: bytes) -> Iterator[Listener]:
    """Somebody else's program on a port: it answers everything with `reply`, and closes."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        yield Listener("127.0.0.1", listening.getsockname()[1])
        thread.join()


@pytest.mark.parametrize(
    ("reply", "seen"),
    [
        (b"action=OK\n\n", "answers a stranger 'OK', not DUNNO"),
        (b"220 mx.example.com ESMTP\r\n", "is not answered"),
        (b"", "closed the connection"),
        (b"action=\xff\x1b\n\n", "not DUNNO"),
    ],
)
def test_another_program_on_the_port_is_a_fault(reply: bytes, seen: str) -> None:
    with peer(reply) as listener:
        finding = ask_listener(listener, "")
    assert finding.level == "wrong"
    assert seen in finding.seen
    assert finding.seen.isprintable()


def test_nobody_on_the_port_is_a_fault() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        port = listening.getsockname()[1]
    finding = ask_listener(Listener("127.0.0.1", port), "")
    assert ("Connection refused" in finding.seen, "systemctl" in finding.mend) == (True, True)


def test_a_fault_of_a_check_does_not_keep_the_others_from_being_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Iterator[Finding]:
        yield from ()
        raise RuntimeError("unheard of")

    for name in ("examine_postfix", "examine_dovecot", "examine_store"):
        monkeypatch.setattr(Doctor, name, fail)
    settings, values = load(Path("/dev/null"), overrides=["listen=inet:127.0.0.1:1"])
    levels = {each.check: each.level for each in Doctor(settings, values).examine()}
    assert levels["postfix.configuration"] == "unknown"
    assert levels["service.answers"] == "wrong"
