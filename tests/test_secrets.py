"""The Redis password is in its file and on its way to Redis, and nowhere else: not in what `ps` shows, not in a log,
an error, a listing of the settings, or the environment of a process, whatever goes wrong with the connection.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pbs_policy.demo.daemons import PrivateRedis
from pbs_policy.demo.ports import free_port
from pbs_policy.store.connect import connect
from pbs_policy.store.errors import StoreUnavailable
from pbs_policy.store.redis_url import RedisUrl
from tests.postlogin.support import ALICE, log_in, went_on
from tests.service import CLI, Service
from tests.stores import pause

SECRET = "hunter2-tulip"
NO_AUTH_COMMAND = ("--rename-command", "AUTH", "")
"""A server that does not know AUTH answers with what came with it: the password."""

Redises = Callable[..., PrivateRedis]


@pytest.fixture
def password_file(tmp_path: Path) -> str:
    file = tmp_path / "password"
    file.touch(mode=0o600)
    file.write_text(SECRET + "\n")
    return str(file)


@pytest.fixture(params=["right", "wrong", "not asked for", "AUTH unknown", "down", "mute", "no Redis", "no TLS"])
def url(request: pytest.FixtureRequest, own_redis: Redises) -> str:
    """A Redis that takes the password, or with which something is wrong."""
    match request.param:
        case "right":
            return own_redis("--requirepass", SECRET).url
        case "wrong":
            return own_redis("--requirepass", "another").url
        case "not asked for":
            return own_redis().url
        case "AUTH unknown":
            return own_redis(*NO_AUTH_COMMAND).url
        case "mute":
            server = own_redis()
            pause(server)
            return server.url
        case "no TLS":
            return own_redis().url.replace("redis:", "rediss:").replace("unix:", "rediss:")
        case "no Redis":
            return "unix:///nonexistent/redis.sock"
    return f"redis://127.0.0.1:{free_port()}"


def shown_of(pid: int) -> str:
    """What a process shows of itself: command line, title, environment."""
    place = Path("/proc") / str(pid)
    return "".join((place / name).read_bytes().decode("utf-8", "replace") for name in ("cmdline", "comm", "environ"))


def test_the_service_shows_its_password_to_redis_alone(
    url: str, password_file: str, start_service: Callable[..., Service]
) -> None:
    service = start_service(redis_url=url, redis_password_file=password_file, log_decisions="all")
    service.ask("192.0.2.7")
    assert SECRET not in shown_of(service.process.pid)
    service.stop()
    assert "192.0.2.7" in service.log()
    assert SECRET not in service.log()


def test_the_password_for_sentinels_is_shown_to_them_alone(
    own_redis: Redises, password_file: str, start_service: Callable[..., Service]
) -> None:
    place = own_redis(*NO_AUTH_COMMAND).url.removeprefix("redis://").partition("/")[0]
    settings = {"redis_url": f"redis+sentinel://{place}/mymaster", "sentinel_password_file": password_file}
    service = start_service(**settings)
    assert service.waits_to_log("an error that repeats the password")
    result = subprocess.run(
        [*CLI, "-c", str(service.settings_file), "list"], capture_output=True, text=True, check=False, timeout=60
    )
    assert "an error that repeats the password" in result.stderr
    script = log_in(ALICE, "-c", str(service.settings_file), "pop3")
    assert b"an error that repeats the password" in script.stderr
    shown = shown_of(service.process.pid)
    service.stop()
    assert SECRET not in shown + service.log() + result.stdout + result.stderr + script.stderr.decode()


@pytest.mark.parametrize(
    "command",
    ["list", "check 192.0.2.7", "denied", "stats", "report", "export", "config", "config -n", "config --json"],
)
def test_no_command_prints_the_password(own_redis: Redises, password_file: str, command: str) -> None:
    url = own_redis(*NO_AUTH_COMMAND).url
    options = ["--set", f"redis_url={url}", "--set", f"redis_password_file={password_file}"]
    result = subprocess.run(
        [*CLI, *options, *command.split()], capture_output=True, text=True, check=False, timeout=60
    )
    assert SECRET not in result.stdout + result.stderr
    assert result.returncode in ((0,) if "config" in command else (69,))
    if "config" not in command:
        assert "an error that repeats the password" in result.stderr


def test_the_errors_of_a_client_do_not_hold_the_password(url: str, password_file: str) -> None:
    client = connect(RedisUrl.parse(url), "", SECRET)
    try:
        client.ask([(b"GET", b"x")])
    except StoreUnavailable as error:
        chain: list[BaseException] = [error]
        while chain[-1].__cause__ is not None:
            chain.append(chain[-1].__cause__)
        assert SECRET not in "".join(f"{each} {each!r} {each.args}" for each in chain)
    assert SECRET not in repr(client)


def test_the_script_does_not_complain_of_the_password(own_redis: Redises, password_file: str, tmp_path: Path) -> None:
    file = tmp_path / "pbs-policy.conf"
    url = own_redis(*NO_AUTH_COMMAND).url
    file.write_text(f"redis_url = {url}\nredis_password_file = {password_file}\n")
    result = log_in(ALICE, "-c", str(file), "pop3")
    assert went_on(result, ALICE)
    assert b"an error that repeats the password" in result.stderr
    assert SECRET.encode() not in result.stderr + result.stdout


@pytest.mark.parametrize(
    "text",
    [
        f"redis_url = redis://:{SECRET}@localhost\n",
        f"redis_url = unix://pbs:{SECRET}@/run/redis.sock\n",
        f"redis_url = redis://pbs:{SECRET}@a@localhost/x y\n",
        f"redis_password = {SECRET}\n",
        f"{SECRET}\n",
        f"redis_password_file {SECRET}\n",
    ],
)
def test_a_password_where_it_does_not_belong_is_refused_and_not_repeated(tmp_path: Path, text: str) -> None:
    file = tmp_path / "pbs-policy.conf"
    file.write_text(text)
    result = subprocess.run(
        [*CLI, "-c", str(file), "config"], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 78
    assert f"{file}:1" in result.stderr
    assert SECRET not in result.stdout + result.stderr
    assert SECRET.encode() not in log_in(ALICE, "-c", str(file), "pop3").stderr
