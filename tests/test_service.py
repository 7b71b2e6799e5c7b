"""The policy service as a process of its own, spoken to over real sockets: what Postfix and worse peers meet.

Nothing here waits for a fixed time. That the service has read what one client sent is known by the answer that
another client gets afterwards (`has_read`), and every other wait is a poll or a read with a deadline.
"""

from __future__ import annotations

import contextlib
import grp
import os
import re
import resource
import select
import signal
import socket
import stat
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from pbs_policy.demo.daemons import PrivateRedis, wait_until
from pbs_policy.demo.ports import free_port, has_ipv6
from pbs_policy.store.redis_url import RedisUrl
from tests.service import CLI, SERVE, Client, Service, pieces, request
from tests.stores import connect, pause, resume

LOGGED_IN = "192.0.2.7"
STRANGER = "192.0.2.8"
ALICE = b"1763881234 imap alice@example.com"
DEFER = "DEFER_IF_REJECT"

StartService = Callable[..., Service]
StartRedis = Callable[..., PrivateRedis]

needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on this machine")


# --- helpers ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def redis_at(server: PrivateRedis) -> Iterator[Redis]:
    with connect(RedisUrl.parse(server.url), "", "") as redis:
        yield redis


def write(server: PrivateRedis, key: str, value: bytes = ALICE, milliseconds: int = 600_000) -> None:
    """What a login, a permit or a deny leaves behind: one SET with an end."""
    with redis_at(server) as redis:
        redis.set(key, value, px=milliseconds)


def log_in(server: PrivateRedis, client_address: str = LOGGED_IN) -> None:
    write(server, f"pbs:login:{client_address}")


def has_read(service: Service, *, which: int = 0) -> None:
    """Return when the service has read all that was sent to it before: an answer that needs no Redis says so."""
    with service.connect(which) as client:
        assert client.ask("unknown") == "DUNNO"


@contextlib.contextmanager
def asleep(service: Service) -> Iterator[None]:
    """Stop the process meanwhile: what is sent to it waits in the kernel."""
    service.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        service.process.send_signal(signal.SIGCONT)


def actions(client: Client, number: int) -> list[str]:
    """The actions of the next `number` replies; whatever else is in the bytes fails the test."""
    data = b""
    while data.count(b"\n\n") < number:
        received = client.socket.recv(65536)
        assert received, f"closed after {len(data)} bytes: {data[-100:]!r}"
        data += received
    assert re.fullmatch(rb"(action=[^\n]+\n\n)*", data), f"not replies: {data!r}"
    return [found.decode() for found in re.findall(rb"action=([^\n]+)\n\n", data)]


def says_no_more(client: Client) -> bool:
    """Whether nothing was left unread: the service closes a connection whose client is done, without a byte."""
    client.socket.shutdown(socket.SHUT_WR)
    return client.is_closed()


def send_what_goes(client: Client, data: bytes) -> bool:
    """Send `data`, and return whether the service took all of it instead of closing the connection."""
    try:
        client.send(data)
    except (BrokenPipeError, ConnectionResetError):
        return False
    return True


def memory(service: Service) -> int:
    """The resident memory of the process, in kB."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    assert found
    return int(found[1])


def decisions(service: Service, since: int = 0) -> list[dict[str, str]]:
    """Every decision in the log (from character `since` on), read as strictly as a log analyser would."""
    lines = [line for line in service.log()[since:].split("\n") if "action=" in line]
    return [fields_of(line.removeprefix("info: ")) for line in lines]


def fields_of(line: str) -> dict[str, str]:
    field = r'([a-z_]+)=("(?:[^"\\]|\\.)*"|[^ "]+)'
    assert re.fullmatch(rf"{field}(?: {field})*", line), f"not a line of fields: {line!r}"
    pairs = re.findall(field, line)
    assert len({name for name, _ in pairs}) == len(pairs), f"a field stands twice: {line!r}"
    return {name: re.sub(r"\\(.)", r"\1", value[1:-1]) if value[0] == '"' else value for name, value in pairs}


def serve_in_vain(directory: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a service that is expected to refuse its settings, and return how it ended."""
    file = directory / "refused.conf"
    file.write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))
    return subprocess.run([*CLI, "-c", file, *SERVE], capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """A directory whose paths are short enough for a unix socket."""
    with tempfile.TemporaryDirectory(prefix="pbs-") as directory:
        yield Path(directory)


@pytest.fixture
def few_descriptors() -> Iterator[Callable[[], None]]:
    """Processes started in this test inherit a soft limit of 256 descriptors; call it to allow ourselves 4,096."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip(f"no more than {hard} descriptors are allowed on this machine")
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    yield lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (4096, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def long_running(
    request: pytest.FixtureRequest, shared_redis: PrivateRedis, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """One service that outlives every test which uses it, whatever they do to it; on uvloop, and without it."""
    directory = tmp_path_factory.mktemp("service")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "asyncio":
            (directory / "uvloop.py").write_text("raise ImportError('hidden by the test')\n")
            path = os.environ.get("PYTHONPATH")
            patch.setenv("PYTHONPATH", f"{directory}{os.pathsep}{path}" if path else str(directory))
        with tempfile.TemporaryDirectory(prefix="pbs-") as sockets:
            settings = {
                "listen": f"inet:127.0.0.1:0 unix:{sockets}/policy",
                "redis_url": shared_redis.url,
                "log_decisions": "all",
            }
            with Service(directory, settings) as service:
                loaded = Path(f"/proc/{service.process.pid}/maps").read_text()
                assert ("uvloop" in loaded) == (request.param == "uvloop")
                yield service
                assert service.stop() == 0


@pytest.fixture
def service(long_running: Service, redis_server: PrivateRedis) -> Iterator[Service]:
    """The long-running service, with LOGGED_IN logged in, and the check that it serves the next client as well."""
    log_in(redis_server)
    before = len(long_running.log())
    yield long_running
    assert long_running.ask(LOGGED_IN) == "OK"
    assert long_running.ask(STRANGER) == "DUNNO"
    said = long_running.log()[before:]
    assert "Traceback" not in said
    assert "error:" not in said


WithRedis = tuple[Service, PrivateRedis]


@pytest.fixture
def with_redis(start_service: StartService, own_redis: StartRedis) -> WithRedis:
    """A service with a Redis of its own, where LOGGED_IN is logged in."""
    server = own_redis()
    service = start_service(redis_url=server.url)
    log_in(server)
    assert service.ask(LOGGED_IN) == "OK"
    return service, server


def without(name: str) -> bytes:
    """A request that lacks one attribute."""
    return re.sub(rb"(?m)^" + name.encode() + rb"=.*\n", b"", request(LOGGED_IN))


# --- more than one client --------------------------------------------------------------------------------------


def test_answers_go_to_the_connection_that_asked(service: Service) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(service.connect(number % 2)) for number in range(60)]
        for _ in range(5):
            for number, client in enumerate(clients):
                client.send(request(LOGGED_IN if number % 3 else STRANGER))
            for number, client in enumerate(clients):
                assert client.action() == ("OK" if number % 3 else "DUNNO")


@pytest.mark.parametrize("rudely", [False, True], ids=["with FIN", "with RST"])
@pytest.mark.parametrize("size", [0, 1, 60], ids=["before", "after one byte of", "in the middle of"])
def test_a_client_may_leave_a_request(service: Service, size: int, *, rudely: bool) -> None:
    with service.connect() as client:
        client.send(request(LOGGED_IN)[:size])
        has_read(service)
        if rudely:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_a_client_that_leaves_while_redis_is_mute_costs_its_neighbours_nothing(with_redis: WithRedis) -> None:
    service, server = with_redis
    pause(server)
    with ExitStack() as stack:
        clients = [stack.enter_context(service.connect()) for _ in range(6)]
        for client in clients:
            client.socket.settimeout(20)
            client.send(request(LOGGED_IN))
        has_read(service)
        clients[0].socket.close()
        clients[3].socket.close()
        staying = [clients[number] for number in (1, 2, 4, 5)]
        assert [client.action().split()[0] for client in staying] == [DEFER] * 4
    assert service.waits_to_log("error: ")  # the answers have a deadline of their own, which may be earlier
    resume(server)
    assert wait_until(lambda: service.ask(LOGGED_IN) == "OK")
    assert "Traceback" not in service.log()
    assert service.log().count("error: ") == 1


def test_one_byte_at_a_time_is_a_request_as_well(service: Service) -> None:
    with service.connect() as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in pieces(request(LOGGED_IN), 1):
            client.send(byte)
        assert client.action() == "OK"
        for byte in pieces(request(STRANGER), 1):
            client.send(byte)
            has_read(service)
        assert client.action() == "DUNNO"
        assert says_no_more(client)


def test_more_than_1024_descriptors_are_used_also_where_the_soft_limit_is_lower(
    few_descriptors: Callable[[], None], start_service: StartService, redis_server: PrivateRedis
) -> None:
    service = start_service(redis_url=redis_server.url)
    log_in(redis_server)
    few_descriptors()
    with ExitStack() as stack:
        clients = [stack.enter_context(service.connect()) for _ in range(1200)]
        assert {client.ask(LOGGED_IN) for client in clients} == {"OK"}
        assert len(list(Path(f"/proc/{service.process.pid}/fd").iterdir())) > 1200
        assert memory(service) < 60_000


def test_a_burst_of_connections_waits_in_the_backlog(service: Service) -> None:
    with ExitStack() as stack:
        with asleep(service):
            clients = [stack.enter_context(service.connect(number % 2)) for number in range(100)]
            for client in clients:
                client.send(request(LOGGED_IN))
        assert {client.action() for client in clients} == {"OK"}


# --- what other policy servers fell over -----------------------------------------------------------------------

SOUND: dict[str, tuple[Sequence[bytes], Sequence[str]]] = {
    "two requests in one segment": ([request(LOGGED_IN) + request(STRANGER)], ["OK", "DUNNO"]),
    "fifty requests in one segment": ([request(STRANGER) * 49 + request(LOGGED_IN)], ["DUNNO"] * 49 + ["OK"]),
    "one and a half requests in one segment": (
        [request(STRANGER) + request(LOGGED_IN)[:40], request(LOGGED_IN)[40:]],
        ["DUNNO", "OK"],
    ),
    "a UTF-8 letter split between segments": (
        request(LOGGED_IN, sender="j\u00fcrgen@example.com").partition(b"\xbc"),
        ["OK"],
    ),
    "client_address=unknown": ([request("unknown")], ["DUNNO"]),
    "no client_address": ([without("client_address")], ["DUNNO"]),
    "an empty client_address": ([request("")], ["DUNNO"]),
    "a client_address that is none": ([request("192.0.2.7 ")], ["DUNNO"]),
    "a client_address that is not UTF-8": ([request("192.0.2.x").replace(b"x", b"\xff")], ["DUNNO"]),
    "a client_address with a NUL": ([request("192.0.2.7\0")], ["DUNNO"]),
}

UNSOUND: dict[str, bytes] = {
    "CRLF": request(LOGGED_IN).replace(b"\n", b"\r\n"),
    "a wrong request type": request(LOGGED_IN).replace(b"smtpd_access_policy", b"junk_policy"),
    "a duplicate client_address": request(STRANGER, helo_name=f"x\nclient_address={LOGGED_IN}"),
    "a duplicate sender": request(LOGGED_IN, sender="alice@example.com\nsender=bob@example.com"),
    "a lone newline": b"\n",
    "a 60 kB value": request(LOGGED_IN, helo_name="x" * 60_000),
    "another protocol": b"GET / HTTP/1.1\r\nHost: mail.example.com\r\n\r\n",
    "random bytes": bytes(range(256)) * 4,
}


@pytest.mark.parametrize("which", [0, 1], ids=["inet", "unix"])
@pytest.mark.parametrize("case", SOUND)
def test_exactly_one_answer_to_each_request_of(service: Service, case: str, which: int) -> None:
    segments, expected = SOUND[case]
    with service.connect(which) as client:
        for segment in segments:
            client.send(segment)
            has_read(service, which=which)
        assert actions(client, len(expected)) == expected
        # Had there been a second answer, it would be taken for the answer to this.
        assert client.ask(STRANGER) == "DUNNO"
        assert client.ask(LOGGED_IN) == "OK"
        assert says_no_more(client)


@pytest.mark.parametrize("which", [0, 1], ids=["inet", "unix, after a sound request"])
@pytest.mark.parametrize("case", UNSOUND)
def test_a_clean_close_without_a_byte_to(service: Service, case: str, which: int) -> None:
    before = service.log().count("warning: disconnecting")
    with service.connect(which) as client:
        if which:
            assert client.ask(LOGGED_IN) == "OK"
        send_what_goes(client, UNSOUND[case])
        assert client.is_closed()
    assert wait_until(lambda: service.log().count("warning: disconnecting") == before + 1)


@pytest.mark.parametrize("client_address", [LOGGED_IN, "unknown"], ids=["asking Redis", "without Redis"])
def test_a_request_in_one_segment_with_a_fault_has_its_one_answer_before_the_close(
    service: Service, client_address: str
) -> None:
    with service.connect() as client:
        client.send(request(client_address) + b"not an attribute\n")
        assert client.action() == ("OK" if client_address == LOGGED_IN else "DUNNO")
        assert client.is_closed()


def test_an_answer_arrives_in_one_piece(service: Service) -> None:
    with service.connect() as client:
        for _ in range(50):
            client.send(request(LOGGED_IN))
            assert client.socket.recv(4096) == b"action=OK\n\n"


def test_16_mb_without_a_newline_are_neither_read_nor_kept(service: Service) -> None:
    before = memory(service)
    with service.connect() as client:
        assert not send_what_goes(client, b"x" * 16_000_000)
        assert client.is_closed()
    assert memory(service) - before < 2_000


def test_long_client_addresses_are_not_kept(service: Service) -> None:
    before = memory(service)
    with service.connect() as client:
        for number in range(3_000):
            assert client.ask(f"{number:04d}" * 2_000) == "DUNNO"
    assert memory(service) - before < 8_000


def flood(service: Service, which: int, one: bytes, number: int, reply: bytes) -> None:
    """Send `number` requests, read no answer until nothing more goes out, then read them all.

    Meanwhile the service answers others and keeps its size, and in the end each request had its one answer.
    """
    left = memoryview(one * number)
    before = memory(service)
    with service.connect(which) as flooding, service.connect(which) as other:
        flooding.socket.setblocking(False)
        refusals = 0
        while refusals < 300 and left:
            try:
                left = left[flooding.socket.send(left) :]
                refusals = 0
            except BlockingIOError:
                refusals += 1
                assert other.ask("unknown") == "DUNNO"  # so the service had its turn to read on
        assert left, "the service read on although nobody took its answers"
        assert memory(service) - before < 8_000
        received = bytearray()
        deadline = time.monotonic() + 20
        while len(received) < len(reply) * number:
            assert time.monotonic() < deadline, f"{len(received)} bytes of answers, {len(left)} of requests left"
            readable, writable, _ = select.select([flooding.socket], [flooding.socket] if left else [], [], 5)
            if readable:
                received += flooding.socket.recv(65536)
            if writable:
                left = left[flooding.socket.send(left) :]
        assert received == reply * number
        flooding.socket.settimeout(10)
        assert says_no_more(flooding)
    assert memory(service) - before < 8_000


@pytest.mark.parametrize("client_address", [LOGGED_IN, "unknown"], ids=["asking Redis", "without Redis"])
def test_a_peer_that_never_reads_is_made_to_wait(service: Service, client_address: str) -> None:
    # Through a unix socket: its kernel buffer holds a few hundred writes, and the transport 64 kB behind them: 6,000
    # answers.
    if client_address == LOGGED_IN:
        flood(service, 1, request(LOGGED_IN, helo_name="x" * 700), 12_000, b"action=OK\n\n")
    else:
        flood(service, 1, request("unknown", helo_name="x" * 300), 30_000, b"action=DUNNO\n\n")


def test_a_peer_that_never_reads_is_made_to_wait_over_tcp_as_well(start_service: StartService) -> None:
    # Kernel buffers of TCP grow to a few MB, so it takes many answers, and the longest there are.
    service = start_service(redis_url=f"redis://127.0.0.1:{free_port()}/0", log_decisions="none")
    with service.connect() as client:
        client.send(request(LOGGED_IN))
        reply = client.socket.recv(4096)
    assert reply.startswith(b"action=DEFER_IF_REJECT 4.3.0 ")
    flood(service, 0, request(LOGGED_IN, helo_name="x" * 300), 60_000, reply)


@pytest.mark.parametrize("client_address", [LOGGED_IN, "unknown"], ids=["asking Redis", "without Redis"])
@pytest.mark.parametrize("number", [1, 3])
def test_a_peer_that_closes_its_half_after_the_request_is_answered(
    service: Service, client_address: str, number: int
) -> None:
    with service.connect() as client:
        with asleep(service):  # so that it finds the requests and their end at the same moment
            client.send(request(client_address) * number)
            client.socket.shutdown(socket.SHUT_WR)
        expected = "OK" if client_address == LOGGED_IN else "DUNNO"
        assert actions(client, number) == [expected] * number
        assert client.is_closed()


def test_a_peer_that_closes_its_half_in_the_middle_of_a_request_is_closed(service: Service) -> None:
    with service.connect() as client:
        client.send(request(LOGGED_IN)[:-1])
        client.socket.shutdown(socket.SHUT_WR)
        assert client.is_closed()


# --- where it listens ------------------------------------------------------------------------------------------


@needs_ipv6
def test_it_listens_on_ipv4_ipv6_and_a_unix_socket_at_once(
    start_service: StartService, redis_server: PrivateRedis, short_directory: Path
) -> None:
    path = short_directory / "policy"
    service = start_service(listen=f"inet:127.0.0.1:0 inet:[::1]:0 unix:{path}", redis_url=redis_server.url)
    log_in(redis_server)
    assert [(each.host, each.path) for each in service.listeners] == [
        ("127.0.0.1", ""),
        ("::1", ""),
        ("", str(path)),
    ]
    with service.connect(0) as four, service.connect(1) as six, service.connect(2) as local:
        for client in (four, six, local, four):
            client.send(request(LOGGED_IN))
        assert [local.action(), six.action(), *actions(four, 2)] == ["OK"] * 4
    assert "warning" not in service.log()


@needs_ipv6
def test_one_port_on_ipv4_and_ipv6_is_two_listeners(start_service: StartService) -> None:
    port = free_port()
    service = start_service(listen=f"inet:127.0.0.1:{port} inet:[::1]:{port}")
    for which in (0, 1):
        with service.connect(which) as client:
            assert client.ask("unknown") == "DUNNO"


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_a_unix_socket_has_the_mode_and_group_it_was_given(
    start_service: StartService, short_directory: Path, mode: int
) -> None:
    # Only root may give a file to a group it does not belong to.
    possible = [each.gr_gid for each in grp.getgrall()] if os.geteuid() == 0 else os.getgroups()
    group = next((gid for gid in possible if gid != os.getegid()), os.getegid())
    path = short_directory / "policy"
    start_service(
        listen=f"unix:{path}", unix_socket_mode=f"{mode:04o}", unix_socket_group=grp.getgrgid(group).gr_name
    )
    found = path.stat()
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == mode
    assert found.st_gid == group


def test_a_socket_that_a_killed_service_left_is_replaced(start_service: StartService, short_directory: Path) -> None:
    path = short_directory / "policy"
    killed = start_service(listen=f"unix:{path}")
    killed.process.kill()
    killed.process.wait()
    assert path.is_socket()
    with start_service(listen=f"unix:{path}").connect() as client:
        assert client.ask("unknown") == "DUNNO"


def refuses_to_serve(directory: Path, place: str, **settings: str) -> None:
    """Whether the service ends at once, with EX_OSERR and one line that names the place."""
    ended = serve_in_vain(directory, **settings)
    assert ended.returncode == os.EX_OSERR
    assert re.fullmatch(r"pbs-policy: [^\n]+\n", ended.stderr), ended.stderr
    assert place in ended.stderr
    assert ended.stdout == ""


def test_a_unix_socket_in_use_is_refused_and_left_to_its_owner(
    start_service: StartService, short_directory: Path, tmp_path: Path
) -> None:
    place = f"unix:{short_directory}/policy"
    service = start_service(listen=place)
    refuses_to_serve(tmp_path, place, listen=place)
    with service.connect() as client:
        assert client.ask("unknown") == "DUNNO"


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("[::1]", marks=needs_ipv6)])
def test_a_port_in_use_is_refused_and_left_to_its_owner(
    start_service: StartService, tmp_path: Path, host: str
) -> None:
    service = start_service(listen=f"inet:{host}:0")
    place = str(service.listeners[0])
    refuses_to_serve(tmp_path, place, listen=place)
    assert service.ask("unknown") == "DUNNO"


@pytest.mark.parametrize(
    ("listen", "named", "settings"),
    [
        ("inet:192.0.2.1:10040", "inet:192.0.2.1:10040", {}),
        ("unix:DIRECTORY/absent/policy", "unix:DIRECTORY/absent/policy", {}),
        ("unix:DIRECTORY/file", "DIRECTORY/file", {}),
        ("unix:DIRECTORY/policy inet:192.0.2.1:10040", "192.0.2.1", {}),
        ("unix:DIRECTORY/policy", "no-such-group", {"unix_socket_group": "no-such-group"}),
    ],
    ids=["another machine's address", "no such directory", "a file", "one of two", "no such group"],
)
def test_where_it_cannot_listen_it_ends_and_leaves_no_socket_and_every_file(
    short_directory: Path, tmp_path: Path, listen: str, named: str, settings: dict[str, str]
) -> None:
    (short_directory / "file").write_text("not a socket")
    listen, named = (each.replace("DIRECTORY", str(short_directory)) for each in (listen, named))
    refuses_to_serve(tmp_path, named, listen=listen, **settings)
    assert [(each.name, each.read_text()) for each in short_directory.iterdir()] == [("file", "not a socket")]


def test_listening_beyond_this_machine_is_said_loudly(start_service: StartService) -> None:
    service = start_service(listen="inet:127.0.0.1:0 inet:0.0.0.0:0")
    (warning,) = [line for line in service.log().splitlines() if line.startswith("warning: ")]
    assert "inet:0.0.0.0:" in warning


# --- the end ---------------------------------------------------------------------------------------------------

STOP_SECONDS = 5
"""The service promises one second, and a busy machine is given more: where somebody is waited for in vain, it is
minutes."""


def end(service: Service, signal_number: int) -> tuple[int, float]:
    """Send the signal; the exit status, and the seconds that it took."""
    before = time.monotonic()
    service.process.send_signal(signal_number)
    return service.process.wait(60), time.monotonic() - before


both_signals = pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])


@both_signals
def test_it_ends_at_once_with_idle_connections_open(
    start_service: StartService, redis_server: PrivateRedis, short_directory: Path, signal_number: signal.Signals
) -> None:
    path = short_directory / "policy"
    service = start_service(listen=f"inet:127.0.0.1:0 unix:{path}", redis_url=redis_server.url)
    with ExitStack() as stack:
        idle = [stack.enter_context(service.connect(number % 2)) for number in range(200)]
        assert {client.ask(STRANGER) for client in idle[:100]} == {"DUNNO"}
        idle[0].send(request(LOGGED_IN)[:30])
        has_read(service)
        status, seconds = end(service, signal_number)
        assert status == 0
        assert seconds < STOP_SECONDS
        assert all(client.is_closed() for client in idle)
    assert not path.exists()
    assert service.log().rstrip().endswith("info: stopped")
    with pytest.raises(ConnectionRefusedError):
        service.connect(0)


@both_signals
def test_it_ends_with_a_peer_that_does_not_read(
    start_service: StartService, short_directory: Path, signal_number: signal.Signals
) -> None:
    service = start_service(listen=f"unix:{short_directory}/policy", redis_url=f"redis://127.0.0.1:{free_port()}/0")
    with service.connect() as client:
        client.socket.setblocking(False)
        refusals = 0
        while refusals < 20:
            try:
                client.socket.send(request(LOGGED_IN) * 100)
            except BlockingIOError:
                refusals += 1
                has_read(service)
        status, seconds = end(service, signal_number)
    assert status == 0
    assert seconds < STOP_SECONDS


@both_signals
def test_requests_in_flight_have_their_answer_before_it_ends(
    with_redis: WithRedis, signal_number: signal.Signals
) -> None:
    service, server = with_redis
    pause(server)
    with ExitStack() as stack:
        clients = [stack.enter_context(service.connect()) for _ in range(3)]
        for client in clients:
            client.send(request(LOGGED_IN))
        has_read(service)
        status, seconds = end(service, signal_number)
        assert status == 0
        assert seconds < STOP_SECONDS
        assert [client.action().split()[0] for client in clients] == [DEFER] * 3
        assert all(client.is_closed() for client in clients)


def test_a_request_in_flight_is_permitted_where_redis_comes_back_in_time(with_redis: WithRedis) -> None:
    service, server = with_redis
    with service.connect() as client, service.connect() as idle:
        assert idle.ask(STRANGER) == "DUNNO"
        pause(server)
        client.send(request(LOGGED_IN))
        has_read(service)
        service.process.send_signal(signal.SIGTERM)
        assert idle.is_closed()  # so it has begun to end
        resume(server)
        assert client.action() == "OK"
        assert client.is_closed()
    assert service.process.wait(60) == 0


def test_a_request_sent_before_the_signal_is_never_half_answered(
    start_service: StartService, redis_server: PrivateRedis
) -> None:
    log_in(redis_server)
    service = start_service(redis_url=redis_server.url)
    with ExitStack() as stack:
        clients = [stack.enter_context(service.connect()) for _ in range(50)]
        assert {client.ask(STRANGER) for client in clients} == {"DUNNO"}
        for number, client in enumerate(clients):
            if number == 25:
                service.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                client.send(request(LOGGED_IN))
        for client in clients:
            received = b""
            with contextlib.suppress(ConnectionResetError):
                while data := client.socket.recv(4096):
                    received += data
            assert received in (b"", b"action=OK\n\n")
    assert service.process.wait(60) == 0


# --- Redis comes and goes --------------------------------------------------------------------------------------


def action_of(service: Service, client_address: str = LOGGED_IN) -> tuple[str, float]:
    """The first word of the answer, and the seconds it took."""
    before = time.monotonic()
    action = service.ask(client_address)
    return action.split()[0], time.monotonic() - before


def test_it_starts_while_redis_is_away_and_works_when_redis_comes(
    start_service: StartService, own_redis: StartRedis
) -> None:
    server = own_redis()
    server.stop()
    service = start_service(redis_url=server.url)
    for _ in range(5):
        assert action_of(service)[0] == DEFER
    server.start()
    log_in(server)
    assert wait_until(lambda: service.ask(LOGGED_IN) == "OK")
    assert service.ask(STRANGER) == "DUNNO"
    assert service.log().count("error: ") == 1


def test_deferring_is_what_postfix_understands(start_service: StartService) -> None:
    service = start_service(redis_url=f"redis://127.0.0.1:{free_port()}/0")
    assert re.fullmatch(r"DEFER_IF_REJECT 4\.\d\.\d [ -~]+", service.ask(LOGGED_IN))
    assert service.ask("unknown") == "DUNNO"
    assert service.ask("127.0.0.1") == "DUNNO"


def test_on_unavailable_dunno_refuses_as_if_there_were_no_login(
    start_service: StartService, own_redis: StartRedis
) -> None:
    server = own_redis()
    service = start_service(redis_url=server.url, on_unavailable="dunno", log_decisions="all")
    log_in(server)
    assert service.ask(LOGGED_IN) == "OK"
    server.stop()
    assert action_of(service)[0] == "DUNNO"
    assert service.waits_to_log("action=DUNNO client_address=192.0.2.7 reason=unavailable")


def test_a_mute_redis_costs_one_wait_and_then_none(with_redis: WithRedis) -> None:
    service, server = with_redis
    pause(server)
    action, seconds = action_of(service)
    assert action == DEFER
    assert seconds > 0.3
    before = time.monotonic()
    for _ in range(50):
        assert action_of(service)[0] == DEFER
    assert time.monotonic() - before < 50 * seconds / 2, "they waited as well"
    resume(server)
    assert wait_until(lambda: service.ask(LOGGED_IN) == "OK")
    assert service.ask(STRANGER) == "DUNNO"
    assert service.log().count("error: ") == 1


def test_a_wrong_password_is_unavailable_and_said_once(
    start_service: StartService, own_redis: StartRedis, tmp_path: Path
) -> None:
    server = own_redis("--requirepass", "right")
    password = tmp_path / "password"
    password.write_text("wrong\n")
    service = start_service(redis_url=server.url, redis_password_file=str(password))
    for _ in range(3):
        assert action_of(service)[0] == DEFER
    errors = [line for line in service.log().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "WRONGPASS" in errors[0]
    assert "wrong\n" not in service.log()
    password.write_text("right\n")
    assert start_service(redis_url=server.url, redis_password_file=str(password)).ask(LOGGED_IN) == "DUNNO"


def test_too_few_rights_in_redis_are_unavailable(
    start_service: StartService, own_redis: StartRedis, tmp_path: Path
) -> None:
    server = own_redis("--user", "svc", "on", ">secret", "%R~pbs:*", "-@all", "+get", "+mget")
    password = tmp_path / "password"
    password.write_text("secret\n")
    service = start_service(redis_url=server.url, redis_user="svc", redis_password_file=str(password))
    log_in(server)
    assert action_of(service)[0] == DEFER
    assert service.waits_to_log("error: the ACL user svc lacks +pttl at redis://")
    assert "unavailable" not in service.log()


# --- the decision, through the wire ----------------------------------------------------------------------------


def test_a_key_without_an_end_is_not_honoured_and_reported_once(
    start_service: StartService, redis_server: PrivateRedis
) -> None:
    service = start_service(redis_url=redis_server.url)
    with redis_at(redis_server) as redis:
        redis.set("pbs:login:192.0.2.7", ALICE)
    assert [service.ask(LOGGED_IN) for _ in range(3)] == ["DUNNO"] * 3
    assert service.waits_to_log("pbs:login:192.0.2.7")
    errors = [line for line in service.log().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    log_in(redis_server)
    assert service.ask(LOGGED_IN) == "OK"


def test_a_permission_ends_with_its_key(service: Service, redis_server: PrivateRedis) -> None:
    key = "pbs:login:192.0.2.9"
    with redis_at(redis_server) as redis, service.connect() as client:
        redis.set(key, ALICE, px=600_000)
        assert client.ask("192.0.2.9") == "OK"
        redis.pexpire(key, 300)
        seen = {"OK"}
        deadline = time.monotonic() + 20
        while "DUNNO" not in seen and time.monotonic() < deadline:
            before = redis.pttl(key)
            action = client.ask("192.0.2.9")
            after = redis.pttl(key)
            # Neither a moment longer than Redis has it, nor a moment shorter.
            if before == -2:
                assert action == "DUNNO"
            if isinstance(after, int) and after > 0:
                assert action == "OK"
            seen.add(action)
        assert seen == {"OK", "DUNNO"}


def test_deleting_the_key_takes_the_permission_away_at_once(service: Service, redis_server: PrivateRedis) -> None:
    with redis_at(redis_server) as redis, service.connect() as client:
        for _ in range(200):
            redis.set("pbs:login:192.0.2.9", ALICE, ex=600)
            assert client.ask("192.0.2.9") == "OK"
            redis.delete("pbs:login:192.0.2.9")
            assert client.ask("192.0.2.9") == "DUNNO"


NEVER = {
    "127.0.0.1": "loopback", "127.1.2.3": "loopback", "::1": "loopback", "::ffff:127.0.0.1": "loopback",
    "0.0.0.1": "unspecified", "169.254.1.1": "link_local", "fe80::1": "link_local", "224.0.0.1": "multicast",
    "ff02::1": "multicast",
}  # fmt: skip
"""Addresses that no login permits."""


@pytest.mark.parametrize(
    ("settings", "keys", "expected"),
    [
        ({}, [LOGGED_IN], {(STRANGER, ""): "no_login", ("unknown", ""): "no_client_address",
                           ("127.0.0.1", ""): "loopback", (LOGGED_IN, ""): "login"}),
        ({"sender_match": "domain"}, [LOGGED_IN, f"{LOGGED_IN},@example.com"],
         {(LOGGED_IN, "Bob@EXAMPLE.com"): "login", (LOGGED_IN, "prvs=0123=bob@example.com"): "login",
          (LOGGED_IN, "alice@sub.example.com"): "sender_mismatch", (LOGGED_IN, ""): "sender_mismatch",
          (STRANGER, "alice@example.com"): "no_login"}),
        ({"sender_match": "address"}, [LOGGED_IN, f"{LOGGED_IN},@example.com", f"{LOGGED_IN},alice@example.com"],
         {(LOGGED_IN, "Alice@Example.COM"): "login", (LOGGED_IN, "bob@example.com"): "sender_mismatch",
          (LOGGED_IN, "@example.com"): "sender_mismatch", (LOGGED_IN, ""): "sender_mismatch"}),
        ({"ipv6_prefix": "64"}, ["2001:db8:1:2::/64", LOGGED_IN],
         {("2001:db8:1:2::1", ""): "login", ("2001:db8:1:2:ffff::9", "x@example.com"): "login",
          ("2001:db8:1:3::1", ""): "no_login", (LOGGED_IN, ""): "login", ("192.0.2.6", ""): "no_login"}),
        ({"never_record": "198.51.100.0/24, 2001:db8:bad::/48"}, ["198.51.100.77", "2001:db8:bad::1", LOGGED_IN],
         {("198.51.100.77", ""): "never_record", ("2001:db8:bad::1", ""): "never_record",
          ("::ffff:198.51.100.77", "x@example.com"): "never_record", (LOGGED_IN, ""): "login"}),
        ({}, {"permit:192.0.2.9": b"1763881234 manual", "login:192.0.2.10": ALICE, "deny:192.0.2.70": b"another",
              "permit:192.0.2.7": b"1763881234 manual", "login:192.0.2.7": ALICE, "deny:192.0.2.7": b"spam"},
         {("192.0.2.9", ""): "permit", ("192.0.2.10", ""): "login", (LOGGED_IN, ""): "denied"}),
        ({}, {"login:192.0.2.9": b"1763881234",  # as Dovecot's last_login writes it
              **{f"{kind}:192.0.2.{10 + number}": value for kind in ("login", "permit")
                 for number, value in enumerate((b"", b"yes", b"-1 imap", b"1763881234imap alice"))}},
         {("192.0.2.9", ""): "login", **{(f"192.0.2.{number}", ""): "no_login" for number in range(10, 14)}}),
        ({}, {f"login:{address}": ALICE for address in NEVER},
         {(address, ""): reason for address, reason in NEVER.items()}),
    ],
    ids=["no settings", "sender_match = domain", "sender_match = address", "ipv6_prefix", "never_record",
         "permit and deny",
         "what is no record", "addresses that never count"],
)  # fmt: skip
def test_each_answer_and_its_line_in_the_log_follow_from_the_settings(
    start_service: StartService, redis_server: PrivateRedis, settings: dict[str, str], keys: Any,
    expected: dict[tuple[str, str], str],
) -> None:  # fmt: skip
    service = start_service(redis_url=redis_server.url, log_decisions="all", **settings)
    for key, value in (keys if isinstance(keys, dict) else {f"login:{each}": ALICE for each in keys}).items():
        write(redis_server, f"pbs:{key}", value)
    with service.connect() as client:
        for (address, sender), reason in expected.items():
            assert client.ask(address, sender=sender) == ("OK" if reason in ("login", "permit") else "DUNNO")
    assert service.stop() == 0
    assert [each["reason"] for each in decisions(service)] == list(expected.values())


def test_a_sender_that_stands_twice_is_no_request_where_senders_are_matched(
    start_service: StartService, redis_server: PrivateRedis
) -> None:
    service = start_service(redis_url=redis_server.url, sender_match="address")
    with service.connect() as client:
        client.send(request(LOGGED_IN, sender="bob@example.com\nsender=alice@example.com"))
        assert client.is_closed()  # which of the two Postfix meant cannot be known


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        ("2001:db8::7", "2001:db8::7"),
        ("2001:db8::7", "2001:DB8:0:0:0:0:0:7"),
        ("192.0.2.7", "::ffff:192.0.2.7"),
        ("192.0.2.7", "::FFFF:c000:207"),
    ],
)
def test_a_client_address_is_one_however_it_is_written(
    service: Service, redis_server: PrivateRedis, written: str, asked: str
) -> None:
    log_in(redis_server, written)
    since = len(service.log())
    assert service.ask(asked) == "OK"
    assert service.ask("2001:db8::8") == "DUNNO"
    assert wait_until(lambda: f"action=OK client_address={written} " in service.log()[since:])


def test_observe_only_permits_nobody_and_says_what_would_have_been(
    start_service: StartService, redis_server: PrivateRedis
) -> None:
    service = start_service(redis_url=redis_server.url, observe_only="yes")
    log_in(redis_server)
    assert service.ask(LOGGED_IN) == "DUNNO"
    assert service.ask(STRANGER) == "DUNNO"
    assert service.waits_to_log("would_be=OK")
    (decision,) = decisions(service)
    assert (decision["action"], decision["would_be"], decision["reason"]) == ("DUNNO", "OK", "login")
    away = start_service(redis_url=f"redis://127.0.0.1:{free_port()}/0", observe_only="yes", log_decisions="all")
    assert away.ask(LOGGED_IN) == "DUNNO"
    assert away.waits_to_log("would_be=DEFER_IF_REJECT")


# --- the log ---------------------------------------------------------------------------------------------------


def test_a_permitted_decision_is_one_line_with_who_and_why(
    start_service: StartService, redis_server: PrivateRedis
) -> None:
    service = start_service(redis_url=redis_server.url)
    log_in(redis_server)
    silent = start_service(redis_url=redis_server.url, log_decisions="none")
    for each in (service, silent):
        assert each.ask(LOGGED_IN, sender="alice@example.com", recipient="bob@example.net") == "OK"
        assert each.ask(STRANGER) == "DUNNO"
        assert each.stop() == 0
    assert decisions(silent) == []
    assert [line for line in service.log().splitlines() if "action=" in line] == [
        "info: action=OK client_address=192.0.2.7 reason=login user=alice@example.com service=imap "
        "sender=alice@example.com recipient=bob@example.net"
    ]


HOSTILE = {
    "control characters": bytes(each for each in range(1, 128) if each not in b"\n" and not 32 <= each < 127),
    "separators of lines in Unicode": "x\x85y\u2028z\u2029".encode(),
    "a quote and another field": b'x" reason=login action=OK user="root',
    "a backslash before the quote": b'x\\" reason=login',
    "a very long text": b"a" * 5000,
    "bytes that are not UTF-8": b"\xff\xfe\xc3(\x80",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_line_of_the_log_cannot_be_forged_or_broken_by(
    service: Service, redis_server: PrivateRedis, case: str
) -> None:
    text = HOSTILE[case]
    since = len(service.log())
    # The user is what somebody wrote into Redis: verbatim, and even a newline may stand in it.
    write(redis_server, "pbs:login:192.0.2.7", b"1763881234 imap " + text + b"\ninfo: action=OK reason=permit")
    whole = request("CLIENT", helo_name="HOSTILE", sender="HOSTILE", recipient="HOSTILE").replace(b"HOSTILE", text)
    with service.connect() as client:
        client.send(whole.replace(b"CLIENT", STRANGER.encode()))
        assert client.action() == "DUNNO"
        client.send(whole.replace(b"CLIENT", LOGGED_IN.encode()))
        assert client.action() == "OK"
    assert wait_until(lambda: "client_address=192.0.2.7" in service.log()[since:])
    lines = [line for line in service.log()[since:].split("\n") if "action=" in line]
    assert all(line.isprintable() and len(line) < 2_500 for line in lines)
    refused, permitted = decisions(service, since)
    assert (refused["action"], refused["reason"]) == ("DUNNO", "no_login")
    assert set(refused) == {"action", "client_address", "reason", "sender", "recipient"}
    assert (permitted["action"], permitted["reason"]) == ("OK", "login")
    assert set(permitted) == {*refused, "user", "service"}


def test_the_fault_of_a_peer_is_one_warning_without_its_text(
    start_service: StartService, redis_server: PrivateRedis
) -> None:
    service = start_service(redis_url=redis_server.url)
    with service.connect() as client:
        client.send(b"info: action=OK\x1b[2J\nx\n\n")
        assert client.is_closed()
    assert service.stop() == 0
    said = [line for line in service.log().splitlines() if not line.startswith("info: ")]
    assert len(said) == 1
    assert said[0].startswith("warning: disconnecting ")
    assert "action" not in said[0]
