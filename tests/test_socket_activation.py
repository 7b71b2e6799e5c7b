"""A service manager holds the sockets: what it passes is served, and a restart loses no request.

The clients of the load do as Postfix does: a connection is kept, one request is in flight on it; where it is lost
before the reply, the request is sent once more, after a second, on a fresh one (attr_clnt(3)).
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from redis import Redis

from pbs_policy.decision.rules import DUNNO, OK
from pbs_policy.demo.daemons import DaemonError, PrivateRedis, wait_until
from pbs_policy.postfix.listener import Listener, ListenError, listener_of
from pbs_policy.service.passed import take
from tests.manager import Manager
from tests.service import CLI, SERVE, Client, Service, request

ALICE = "192.0.2.7"
STRANGER = "192.0.2.8"

RESTARTS = int(os.environ.get("PBS_RESTARTS", "5"))
"""Of each kind; `PBS_RESTARTS=20` is what is promised."""

StartManaged = Callable[..., Manager]


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with a short name: a unix socket's path is short."""
    with tempfile.TemporaryDirectory(prefix="pbs-") as directory:
        yield Path(directory)


def inet(port: int = 0) -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    opened.bind(("127.0.0.1", port))
    opened.listen(1024)
    return opened


def unix(path: Path | str) -> socket.socket:
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    opened.bind(str(path))
    opened.listen(1024)
    return opened


@pytest.fixture
def start_managed(tmp_path: Path, redis_server: PrivateRedis) -> Iterator[StartManaged]:
    """Start a service that is given these sockets, with Alice logged in. `listen` is left to its default."""
    with Redis(port=redis_server.port) as redis:
        redis.set(f"pbs:login:{ALICE}", "1763881234 imap alice@example.com", ex=600)
    with ExitStack() as stack:

        def start(*listening: socket.socket, abstract: bool = False, **settings: str) -> Manager:
            lines = {"redis_url": redis_server.url, "log_decisions": "none", **settings}
            made = Manager(tmp_path, lines, listening=listening, abstract=abstract)
            stack.callback(made.close)
            made.start()
            return made

        yield start


# --- what is passed -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("either_loop")
def test_passed_sockets_are_served_and_left_where_they_are(
    start_managed: StartManaged, place: Path
) -> None:
    """Python 3.13 removes a unix socket that it listened on, unless told not to: the next process would have none."""
    service = start_managed(inet(), unix(place / "policy"))
    assert [str(each) for each in service.listeners] == [str(listener_of(each)) for each in service.listening]
    for which in (0, 1):
        with service.connect(which) as client:
            assert (client.ask(ALICE), client.ask(STRANGER)) == (OK, DUNNO)
    service.restart()
    assert (place / "policy").is_socket()
    for which in (0, 1):
        with service.connect(which) as client:
            assert client.ask(ALICE) == OK


def test_an_abstract_unix_socket_is_served(start_managed: StartManaged, place: Path) -> None:
    service = start_managed(unix(f"\0{place}"), abstract=True)
    assert f"listening on unix:@{place};" in service.log()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"\0{place}")
        client.sendall(request(ALICE))
        assert client.recv(4096) == b"action=OK\n\n"


def test_sockets_meant_for_another_process_are_not_touched(tmp_path: Path, redis_server: PrivateRedis) -> None:
    """A service that a shell under systemd starts inherits the variables, and not the sockets."""
    service = Service(tmp_path, {"redis_url": redis_server.url})
    service.environment = {**os.environ, "LISTEN_PID": "1", "LISTEN_FDS": "7", "LISTEN_FDNAMES": "a:b"}
    with service:
        assert service.ask(STRANGER) == DUNNO
        assert service.listeners[0].port > 0


def test_a_listener_that_was_written_down_and_not_passed_is_refused_with_its_place(
    start_managed: StartManaged, place: Path
) -> None:
    passed = unix(place / "policy")
    with pytest.raises(DaemonError) as refused:
        start_managed(passed, listen=f"inet:127.0.0.1:10040 unix:{place}/policy")
    text = str(refused.value)
    assert "ended with status 78" in text
    assert f".conf:1: listen: the service manager passed unix:{place}/policy, and not inet:127.0.0.1:10040: " in text
    assert "make listen and the socket unit's ListenStream= equal" in text


def test_a_default_that_was_not_passed_is_a_warning(tmp_path: Path, redis_server: PrivateRedis, place: Path) -> None:
    """Nobody asked for it; but other commands look for the service there."""
    with Manager(tmp_path, {"redis_url": redis_server.url}, listening=[unix(place / "p")]) as made:
        assert f"warning: the service manager passed unix:{place}/p: say so in listen" in made.log()
        assert made.ask(STRANGER) == DUNNO


@pytest.mark.parametrize(
    ("passed", "listen"),
    [
        ("127.0.0.1", "inet:127.0.0.1:PORT"),
        ("127.0.0.1", "inet:localhost:PORT"),
        ("", "inet:127.0.0.1:PORT"),
    ],
)
def test_listen_and_what_was_passed_may_be_written_differently(
    passed: str, listen: str, tmp_path: Path, redis_server: PrivateRedis
) -> None:
    opened = socket.create_server((passed, 0))
    lines = {"redis_url": redis_server.url, "listen": listen.replace("PORT", str(opened.getsockname()[1]))}
    with Manager(tmp_path, lines, listening=[opened]) as service:
        assert service.ask(STRANGER) == DUNNO


@pytest.mark.parametrize(
    ("kind", "said"),
    [("datagram", "is not a stream socket"), ("pair", "does not listen"), ("file", "is not a socket")],
)
def test_what_is_no_listening_socket_is_refused_by_its_name(
    kind: str, said: str, tmp_path: Path, redis_server: PrivateRedis
) -> None:
    with ExitStack() as stack:
        if kind == "datagram":
            given = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)).fileno()
        elif kind == "pair":
            given, _ = (stack.enter_context(each).fileno() for each in socket.socketpair())
        else:
            given = stack.enter_context((tmp_path / "file").open("w")).fileno()
        service = Manager(tmp_path, {"redis_url": redis_server.url})
        service.others.append(os.dup(given))
        command = service.command()
        assert service.environment is not None
        environment = {**service.environment, "LISTEN_FDNAMES": "odd.socket"}
        ended = subprocess.run(
            command, env=environment, pass_fds=service.descriptors, capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
        service.close()
    assert ended.returncode == os.EX_OSERR
    assert f"pbs-policy: descriptor 3, passed as 'odd.socket', {said}" in ended.stderr


@pytest.mark.parametrize("number", ["", "x", "-1", "+1", "1_0", "\u0663", "9" * 5000, "\x1b[2J"])
def test_a_number_of_sockets_that_is_none_is_one_printable_sentence(number: str) -> None:
    with pytest.raises(ListenError) as error:
        take({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": number})
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 600


# --- restarts -----------------------------------------------------------------------------------------------------


class Postfix(threading.Thread):
    """One smtpd: asks again and again on the connection it keeps."""

    def __init__(self, listener: Listener, ended: threading.Event) -> None:
        super().__init__()
        self._listener = listener
        self._ended = ended
        self.answered = 0
        self.closes = 0
        self.lost: list[str] = []
        self.longest = 0.0

    def run(self) -> None:
        client: Client | None = None
        while not self._ended.is_set():
            began = time.monotonic()
            for attempt in (1, 2):
                try:
                    client = client or Client(self._listener)
                    action = client.ask(ALICE)
                    if action != OK:
                        self.lost.append(action)
                    self.answered += 1
                    break
                except (AssertionError, OSError) as error:
                    if client is not None:
                        client.socket.close()
                    client = None
                    if attempt == 2:
                        self.lost.append(repr(error))
                        break
                    self.closes += 1
                    time.sleep(1)  # as Postfix does (smtpd_policy_service_retry_delay)
            self.longest = max(self.longest, time.monotonic() - began)
        if client is not None:
            client.socket.close()


def restart_under_load(service: Manager, restarts: int) -> list[Postfix]:
    """Restart the service under the load of 16 smtpds, and 4 more that begin anew all the time."""
    ended = threading.Event()
    smtpds = [Postfix(listener, ended) for listener in service.listeners * 10]
    for each in smtpds:
        each.start()
    try:
        for number in range(restarts):
            answered = [each.answered for each in smtpds]
            assert wait_until(lambda before=answered: all(  # type: ignore[misc]  # a default binds the loop's value
                each.answered > count for each, count in zip(smtpds, before, strict=True)
            )), f"restart {number}: {[(each.answered, each.lost) for each in smtpds]}"  # fmt: skip
            service.restart()
    finally:
        ended.set()
        for each in smtpds:
            each.join(20)
    return smtpds


def test_no_request_is_lost_in_restarts_under_load(start_managed: StartManaged, place: Path) -> None:
    """The manager has the listening sockets: a connection that ends in a session costs Postfix its second of waiting,
    and the second try is answered."""
    service = start_managed(inet(), unix(place / "policy"))
    smtpds = restart_under_load(service, RESTARTS)
    assert [each.lost for each in smtpds if each.lost] == []


@pytest.mark.usefixtures("either_loop")
def test_what_waits_to_be_accepted_at_a_restart_is_answered_by_the_next_process(
    start_managed: StartManaged, place: Path
) -> None:
    """The manager has the sockets, so their queues outlive the process."""
    service = start_managed(inet(), unix(place / "policy"))
    service.process.send_signal(signal.SIGKILL)
    service.process.wait()
    with ExitStack() as stack:
        fresh = [stack.enter_context(service.connect(which)) for which in (0, 1) * 5]
        for client in fresh:
            client.send(request(ALICE))
        service.start()
        assert [client.action() for client in fresh] == [OK] * 10


def test_half_a_request_is_waited_for_and_answered_before_the_end(start_managed: StartManaged) -> None:
    service = start_managed(inet())
    whole = request(ALICE)
    with service.connect() as client, service.connect() as other:
        client.send(whole[:40])
        assert other.ask(ALICE) == OK  # by now the half has been read
        service.process.send_signal(signal.SIGTERM)
        assert wait_until(lambda: service.hears(lambda line: line == "STOPPING=1"))
        client.send(whole[40:])
        assert client.action() == OK
        assert client.is_closed()
        assert other.is_closed()


def test_a_connection_that_an_earlier_version_left_with_the_manager_is_ended(start_managed: StartManaged) -> None:
    """Ended, not only closed: the manager has a copy, and Postfix would wait for an answer."""
    service = start_managed(inet())
    ours, theirs = socket.socketpair()
    with ours, theirs:
        service.others.append(os.dup(theirs.fileno()))
        service.restart()
        assert service.ask(ALICE) == OK
        ours.settimeout(10)
        assert ours.recv(1) == b""


# --- systemd's own activator --------------------------------------------------------------------------------------


def test_systemds_own_activator_starts_it(tmp_path: Path, redis_server: PrivateRedis, place: Path) -> None:
    activator = shutil.which("systemd-socket-activate") or "/usr/bin/systemd-socket-activate"
    if not Path(activator).exists():
        pytest.skip("systemd-socket-activate is not installed: apt-get install systemd")
    file = tmp_path / "pbs-policy.conf"
    file.write_text(f"redis_url = {redis_server.url}\nlisten = unix:{place}/policy\n")
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [activator, "-l", f"{place}/policy", *CLI, "-c", str(file), *SERVE], stdout=log, stderr=log
        )
    try:
        assert wait_until(lambda: (place / "policy").is_socket())
        assert stat.S_ISSOCK((place / "policy").stat().st_mode)
        with Client(Listener(path=f"{place}/policy")) as client:
            assert client.ask(STRANGER) == DUNNO
    finally:
        process.terminate()
        assert process.wait(60) == 0, (tmp_path / "log").read_text()
    assert "ready, listening on unix:" in (tmp_path / "log").read_text()
