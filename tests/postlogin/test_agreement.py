"""The post-login script stands alone, so whatever it shares with the package is held equal here: the settings file,
canonical addresses, keys and records, durations and URLs. Its functions are called without a process.
"""

from __future__ import annotations

import socket
import time
from ipaddress import IPv4Address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pbs_policy import duration, log, settings
from pbs_policy.address import AddressError, ClientAddresses
from pbs_policy.settings import sources
from pbs_policy.store.redis_url import RedisUrl
from pbs_policy.table.keys import Keys
from pbs_policy.table.records import Record, parse_record
from pbs_policy.table.users import domain_of, names_of_user
from tests.postlogin.support import ALICE, SCRIPT, load_recorder

RECORDER = load_recorder()

_v4 = st.integers(0, 2**32 - 1).map(IPv4Address).map(str)
_NETWORKS = [
    "192.0.2.0/24",
    "198.51.100.7",
    "2001:db8::/32",
    "2001:db8:1::7",
    "0.0.0.0/1",
    "fc00::/7",
    "203.0.113.128/025",
]


def _colons(groups: list[int], mapped: bool) -> str:
    return f"0:0:0:0:0:ffff:{groups[0]:x}:{groups[1]:x}" if mapped else ":".join(f"{group:X}" for group in groups)


_groups = st.lists(
    st.one_of(
        st.sampled_from([0, 0, 1, 0xFFFF, 0x2001, 0xDB8, 0xFE80, 0xFEC0, 0xFF00, 0x7F00, 0xA9FE, 0x200, 0x5EFE]),
        st.integers(0, 65535),
    ),
    min_size=8,
    max_size=8,
)
_STRANGERS = [
    "64:ff9b::",
    "64:ff9b:1:",
    "64:ff9b:1::",
    "2001:0:",
    "2002:",
    "2001:10:",
    "2001:1f:",
    "2001:2f:",
    "2001:30:",
]
_addresses = st.one_of(
    _v4,
    st.sampled_from(
        ["192.0.2.", "198.51.100.", "127.0.0.", "169.254.0.", "0.0.0.", "224.0.0.", "255.255.255.", "1.2.3."]
    ).flatmap(lambda begin: st.integers(0, 255).map(lambda last: f"{begin}{last}")),
    st.builds(_colons, _groups, st.booleans()),
    st.builds("::ffff:{}".format, _v4),
    st.builds("{}{}".format, st.sampled_from(_STRANGERS), st.one_of(_v4, st.sampled_from([":1", "a:b:c:d:e:f"]))),
    st.builds("2001:db8:1:2:{}:5efe:{}".format, st.sampled_from(["0", "200", "100"]), _v4),
    st.text("0123456789abcdef:.%/ \0", max_size=24),
    st.text(max_size=8),
)
_never_record = st.lists(st.sampled_from(_NETWORKS), max_size=3)


def addresses_of(prefix: str, never_record: str) -> ClientAddresses:
    """The package's view of the two settings, through its own parsers."""
    loaded, _ = settings.load(Path("/dev/null"), {}, [f"ipv6_prefix={prefix}", f"never_record={never_record}"])
    return loaded.addresses


@hypothesis_settings(max_examples=500)
@given(_addresses, st.sampled_from(["128", "64", "56", "48", "127", "065", "0128"]), _never_record)
@example("fe80::1%br0", "128", [])
@example("2001:db8::7", "0128", [])
@example("64:ff9b::c633:640b", "64", ["198.51.100.0/24"])
@example("64:ff9b::127.0.0.1", "64", [])
@example("64:ff9b::1:c633:640b", "64", [])
@example("2001:1f:ffff::1", "64", [])
@example("2001:db8::0200:5efe:192.0.2.7", "64", ["2001:db8::/32"])
def test_script_and_package_name_a_client_alike(text: str, prefix: str, never_record: list[str]) -> None:
    networks = ", ".join(never_record)
    values = {"ipv6_prefix": prefix, "never_record": networks}
    try:
        by_script = RECORDER["canonical"](text, values)
    except RECORDER["Failure"]:
        by_script = None
    try:
        client = addresses_of(prefix, networks).parse(text)
    except AddressError:
        # Of the zone ids that Dovecot shows, the script knows those of link-local addresses: no more than that.
        assert by_script is None or ("%" in text and by_script[1] == "link_local")
    else:
        assert by_script == client[:2]


@pytest.mark.parametrize(
    ("network", "excluded"),
    [
        ("192.0.2.0/255.255.255.0", ["192.0.2.7"]),
        ("192.0.2.0/0.0.0.255", ["192.0.2.7"]),
        ("192.0.2.0/024", ["192.0.2.7"]),
        ("2001:db8::%1/64", ["2001:db8::7"]),
        ("2001:DB8::/032", ["2001:db8::7"]),
        ("::ffff:192.0.2.0/120", []),
    ],
)
def test_what_the_settings_accept_as_a_network_the_script_understands(network: str, excluded: list[str]) -> None:
    """Otherwise every login fails to be recorded on a site whose settings `pbs-policy config` finds sound."""
    try:
        addresses = addresses_of("128", network)
    except sources.SettingsError:
        return
    values = {"ipv6_prefix": "128", "never_record": network}
    for address in ("192.0.2.7", "2001:db8::7", "203.0.113.7"):
        assert bool(addresses.parse(address).excluded) == (address in excluded)
        assert bool(RECORDER["canonical"](address, values)[1]) == (address in excluded)


class Recorded(Exception):
    """The commands that the script would have sent."""

    def __init__(self, commands: list[tuple[bytes, ...]]) -> None:
        self.commands = commands


class NotRecorded(Exception):
    """The script's own reason not to record a login."""


def commands_for(environment: dict[bytes, bytes], service: str, file: str) -> list[tuple[bytes, ...]]:
    """What the script tells Redis in this environment."""
    script = load_recorder()

    def tell_redis(_: object, commands: list[tuple[bytes, ...]]) -> None:
        raise Recorded(commands)

    script["tell_redis"] = tell_redis
    try:
        script["record_login"](file, service, environment)
    except Recorded as recorded:
        return recorded.commands
    except script["Failure"] as failure:
        raise NotRecorded(str(failure)) from None
    return []


@given(
    st.one_of(
        st.binary(max_size=30),
        st.lists(st.sampled_from([b"@", b"a", b"A", b",", b" ", b"\xc9", b".", b"\n"]), max_size=8).map(b"".join),
        st.sampled_from([b"example.com", b"Example.NET", b"a@Example.com"]),
    ),
    st.one_of(st.sampled_from(["pop3", "imap", "---"]), st.text(max_size=34)),
    st.sampled_from(["", "example.com", "Example.COM", "B\u00dccher.example"]),
    st.sampled_from(["", "", "example.COM", "example.net, a B\u00dccher.example"]),
)
def test_script_and_package_agree_on_the_names_and_the_record_of_a_login(
    scratch: Path, user: bytes, service: str, user_domain: str, login_domains: str
) -> None:
    before = int(time.time())
    scratch.write_text(f"sender_match = domain\nuser_domain = {user_domain}\nlogin_domains = {login_domains}\n")
    keys = Keys("pbs:")
    names = names_of_user(user, user_domain)
    domains = {domain.encode() for domain in settings.load(scratch)[0].login_domains}
    if domains and not (names and domain_of(names[0]) in domains):
        with pytest.raises(NotRecorded, match="is of no domain in login_domains"):
            commands_for({b"IP": b"192.0.2.7", b"USER": user}, service, str(scratch))
        return
    commands = commands_for({b"IP": b"192.0.2.7", b"USER": user}, service, str(scratch))
    assert [command[1] for command in commands] == [keys.login("192.0.2.7", name) for name in (b"", *names)]
    for command in commands:
        assert command[0] == b"SET"
        assert command[3:] == (b"EX", b"1800")
        record = parse_record(command[2])
        assert record is not None
        assert record.user == user.decode("utf-8", "surrogateescape")
        assert record.service in (service, "unknown")
        assert before <= record.login_at <= time.time()


@given(st.one_of(st.from_regex(r"[0-9]{0,10}[smhdwSMy]?", fullmatch=True), st.text(max_size=6)))
@example("158112000")
@example("158112001")
@example("1830d")
def test_script_and_package_read_a_time_alike(text: str) -> None:
    try:
        by_package = duration.parse_duration(text)
    except ValueError:
        by_package = None
    try:
        by_script = RECORDER["seconds"](text)
    except RECORDER["Failure"]:
        by_script = None
    assert by_script == by_package


class Reached(Exception):
    """Where the script would have connected to."""

    def __init__(self, target: Any) -> None:
        self.target = target


def place_of(url: str) -> tuple[Any, list[str]]:
    """Where the script connects to for `url`, and what it says before anything else."""
    script = load_recorder()
    script["REDIS_SECONDS"] = 60.0  # the machine may be busy
    said: list[str] = []

    class Socket:
        def __init__(self, *_: object) -> None: ...

        def settimeout(self, _: float) -> None: ...

        def connect(self, target: Any) -> None:
            self.target = target

        def sendall(self, data: bytes) -> None:
            said.append(data.decode())
            raise Reached(self.target)

    def getaddrinfo(host: bytes, port: int, *_: object) -> list[Any]:
        return [(2, 1, 6, "", (host.decode(), port))]

    script["_socket"] = SimpleNamespace(
        AF_UNIX=socket.AF_UNIX,
        AF_INET=socket.AF_INET,
        AF_INET6=socket.AF_INET6,
        SOCK_STREAM=socket.SOCK_STREAM,
        inet_pton=socket.inet_pton,
        socket=Socket,
        getaddrinfo=getaddrinfo,
    )
    settings = {"redis_url": url, "redis_password_file": "", "redis_user": ""}
    settings |= {"sentinel_user": "", "sentinel_password_file": ""}
    with pytest.raises(Reached) as reached:
        script["tell_redis"](settings, [(b"SET",)])
    return reached.value.target, said[0].split("\r\n")


_hosts = st.sampled_from(["127.0.0.1", "localhost", "[2001:db8::7]", "[::1]", "redis.example.com"])
_ports = st.sampled_from(["", ":6379", ":1", ":65535", ":06380", ":\u0666\u0663"])
_databases = st.sampled_from(["", "/", "/0", "/3", "/15", "/03", "/00", "/\u0663"])


@given(
    st.one_of(
        st.builds("{}://{}{}{}".format, st.sampled_from(["redis", "valkey"]), _hosts, _ports, _databases),
        st.builds("redis://{}{},other{}".format, _hosts, _ports, _databases),
        st.builds("valkey+cluster://{}{},other".format, _hosts, _ports),
        st.builds("redis+sentinel://{}{}{}/mail{}".format, _hosts, _ports, st.sampled_from(["", ",b:1"]), _databases),
        st.builds(
            "unix://{}{}".format,
            st.sampled_from(["/run/r.sock", "/r/:a/b@c"]),
            st.sampled_from(["", "?db=0", "?db=3", "?db=03"]),
        ),
    )
)
def test_script_and_package_go_to_the_same_redis(text: str) -> None:
    try:
        url = RedisUrl.parse(text)
    except ValueError:
        return
    target, said = place_of(text)
    assert target == (url.path or url.places[0])
    asked = ["SENTINEL", "get-master-addr-by-name"] if url.master else ["SELECT", str(url.db)] if url.db else ["SET"]
    assert said[2:5:2] == asked


_blanks = st.sampled_from(["", " ", "  ", "\t", " \t"])
_values = {
    "redis_url": ["redis://127.0.0.1", "unix:///run/r.sock?db=3"],
    "redis_user": ["", "pbs"],
    "redis_password_file": ["", "/etc/pbs-policy/password"],
    "key_prefix": ["pbs:", "a=b", "#:", "m"],
    "ttl": ["30m", "8h", "90", "030m"],
    "ipv6_prefix": ["128", "64", "048"],
    "never_record": [
        "",
        "192.0.2.0/24",
        "192.0.2.0/24,2001:db8::/32",
        "192.0.2.0/24\n 198.51.100.7",
        "\n\n\t192.0.2.7",
    ],
    "record_master_logins": ["yes", "no"],
    "listen": ["inet:127.0.0.1:1"],
    "sender_match": ["off"],
    "login_domains": ["", "example.com", "Example.com, example.net"],
}
_lines = st.one_of(
    st.sampled_from(sorted(_values)).flatmap(
        lambda name: st.builds(
            "{0}{2}={3}{1}{4}".format, st.just(name), st.sampled_from(_values[name]), _blanks, _blanks, _blanks
        )
    ),
    st.sampled_from(
        ["", " ", "#", "# ttl = 1h", "  # ttl = 1h", "\t", "\r", "\x0c", "\x0b", "\x1c", "\x85", "\u00a0", "\u2028"]
    ),
    st.sampled_from([" ", "\t", "\x0b", "\x0c", "\x1c", "\u00a0"]).map("{}198.51.100.0/24".format),
    st.sampled_from([" ", "\x1f", "\u2003", "\u00a0"]).map("{}ttl = 2h".format),
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files") / "pbs-policy.conf"


@hypothesis_settings(max_examples=300)
@given(st.lists(_lines, max_size=6, unique=True), st.sampled_from(["\n", "\r\n"]))
@example(["ttl = 8h", "\u00a0key_prefix = x:"], "\n")
@example(["ttl = 8h\x1f"], "\n")
def test_script_and_package_read_the_same_from_every_file_that_is_valid(
    scratch: Path, lines: list[str], newline: str
) -> None:
    scratch.write_bytes("\n".join(lines).replace("\n", newline).encode())
    try:
        _, values = settings.load(scratch)
    except sources.SettingsError:
        return
    by_script = RECORDER["read_settings"](str(scratch))
    assert by_script == {name: values[name].text for name in by_script}


def test_script_and_package_have_the_same_defaults() -> None:
    by_script = RECORDER["read_settings"]("/dev/null")
    defaults = settings.defaults()
    assert by_script == {name: defaults[name].text for name in by_script}
    assert f'"{sources.DEFAULT_FILE}"' in SCRIPT.with_name("pbs_postlogin.py").read_text()


@given(
    st.one_of(
        st.binary(min_size=1, max_size=40),
        st.text('ab@.=" \\\t\u202e\u00e9', min_size=1, max_size=12).map(str.encode),
        st.integers(318, 322).map(lambda length: b"x" * length),
    )
)
def test_script_and_package_show_a_user_alike(user: bytes) -> None:
    assert RECORDER["shown"](user) == log.value(user.decode("utf-8", "surrogateescape"))


def test_the_record_of_a_login_is_the_packages_record() -> None:
    (command, *_) = commands_for(ALICE, "pop3", "/dev/null")
    record = parse_record(command[2])
    assert record == Record(record.login_at if record else 0, "pop3", "alice@example.com")
