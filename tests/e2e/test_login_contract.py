"""One table of logins for the post-login script and for Dovecot's reports: each is recorded by both or by neither,
and under the same keys with the same value, by a real Dovecot 2.3 and 2.4 that runs the script and reports as well.

The script writes `script:...` and the recorder `report:...` into one Redis, so that one login is seen by both.
"""

from __future__ import annotations

import base64
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from redis import Redis

from pbs_policy.address import ClientAddresses
from pbs_policy.demo.conversation import Conversation
from pbs_policy.demo.daemons import PrivateRedis, wait_until
from pbs_policy.demo.dovecot import PASSWORD, USER, PrivateDovecot, dovecot_version
from pbs_policy.demo.ports import free_port
from pbs_policy.demo.real import SCRIPT, SCRIPT_USER
from pbs_policy.shipped import shipped
from pbs_policy.store.redis_url import RedisUrl
from tests.conftest import need
from tests.recorder import PrivateRecorder
from tests.stores import connect
from tests.tree_programs import TREE, dovecot

MASTER = "master"
ANYBODY = "any-name-will-do"
"""The password of whoever is not in the file of users."""

LATER = 30
"""Seconds between the script and the report, on a busy machine."""

_PORTS = """
service {0}-login {{
  inet_listener {0}_proxied {{
    port = {1}
    haproxy = yes
  }}
}}
haproxy_trusted_networks = 127.0.0.0/8
"""
_COMMON = """
auth_mechanisms = plain anonymous
auth_master_user_separator = *
auth_username_chars =
"""
_DATABASES = {
    (2, 3): """
passdb {{
  driver = passwd-file
  args = scheme=PLAIN username_format=%u {place}/masters
  master = yes
}}
passdb {{
  driver = static
  args = password={password}
}}
""",
    (2, 4): """
passdb masters {{
  driver = passwd-file
  passwd_file_path = {place}/masters
  default_password_scheme = PLAIN
  master = yes
}}
passdb static {{
  password = {password}
}}
""",
}
_RENAMING = {  # what the database of users answers in front of the one that knows everybody
    (2, 3): """
userdb {{
  driver = passwd-file
  args = username_format=%u {place}/accounts
}}
""",
    (2, 4): """
userdb accounts {{
  driver = passwd-file
  passwd_file_path = {place}/accounts
}}
""",
}


class ContractDovecot(PrivateDovecot):
    """It knows a master user, anonymous logins, users of every kind and name, and takes the PROXY protocol."""

    def __init__(self, directory: Path, *, hook_config: str, program: list[str]) -> None:
        self.version = dovecot_version(program)
        self.proxied = {"pop3": free_port(), "imap": free_port()}
        ports = "".join(_PORTS.format(protocol, port) for protocol, port in self.proxied.items())
        super().__init__(directory, hook_config=hook_config + _COMMON + ports, program=program)

    def command(self) -> list[str]:
        line = super().command()
        self._write_secret(self.place / "masters", f"{MASTER}:{{PLAIN}}{PASSWORD}\n")
        known = {
            USER: "",
            "alias@example.com": "user=mailbox@example.com",
            "moved@example.com": "",
            "closed@example.com": "nologin=yes reason=closed" if self.version < (2, 4) else "nologin=closed",
            "gone@example.com": "nologin",
            "elsewhere@example.com": "allow_nets=198.51.100.0/24",
        }
        users = "".join(f"{name}:{{PLAIN}}{PASSWORD}::::::{extra}\n" for name, extra in known.items())
        self._write_secret(self.place / "users", users)
        mail = self.place / "mail"
        ids = f"{mail.stat().st_uid}:{mail.stat().st_gid}"
        self._write_secret(
            self.place / "accounts", f"moved@example.com::{ids}::{mail}::userdb_user=new@example.com\n"
        )
        configuration = self.place / "dovecot.conf"
        text = configuration.read_text()
        text = text.replace("userdb ", _RENAMING[self.version].format(place=self.place) + "userdb ", 1)
        text += _DATABASES[self.version].format(place=self.place, password=ANYBODY)
        configuration.write_text(text)
        return line

    def log_in(self, protocol: str, login: Login) -> bool:
        """Whether Dovecot lets this client in."""
        port = self.pop3_port if protocol == "pop3" else self.imap_port
        with Conversation("127.0.0.1", self.proxied[protocol] if login.head else port) as client:
            if login.head:
                client.send(login.head.format(login.address))
            client.read_line()
            with suppress(ConnectionError):  # so a script that refuses a login ends it
                return (_pop3 if protocol == "pop3" else _imap)(client, login)
        return False


@dataclass(frozen=True)
class Login:
    """How somebody logs in, and what comes of it. `by_script` and `by_report` are under which user it is recorded;
    None: not at all. `head` is what a load balancer says first."""

    address: str
    user: bytes = USER.encode()
    password: str = PASSWORD
    acting_for: bytes = b""
    anonymous: bool = False
    head: str = ""
    by_script: bytes | None = USER.encode()
    by_report: bytes | None = b"as the script"
    since: tuple[int, int] = (2, 3)  # the first Dovecot with that report

    def reported(self, version: tuple[int, int]) -> bytes | None:
        """Under which user the report is recorded."""
        return self.by_script if self.by_report == b"as the script" or version < self.since else self.by_report

    @property
    def sasl(self) -> str:
        """Mechanism and initial response."""
        if self.anonymous:
            return "ANONYMOUS " + base64.b64encode(b"guest@example.net").decode()
        response = b"\0".join((self.acting_for, self.user, self.password.encode()))
        return "PLAIN " + base64.b64encode(response).decode()


def _pop3(client: Conversation, login: Login) -> bool:
    if not login.head:
        assert client.ask(f"XCLIENT ADDR={login.address}").startswith("+OK")
    return client.ask(f"AUTH {login.sasl}").startswith("+OK")


def _imap(client: Conversation, login: Login) -> bool:
    if not login.head:
        client.send(f'a ID ("x-originating-ip" "{login.address}")')
        while not client.read_line().startswith("a "):
            pass
    client.send(f"b AUTHENTICATE {login.sasl}")
    while (line := client.read_line()).startswith("* "):
        pass
    return line.startswith("b OK")


def by_anybody(address: str, name: bytes) -> Login:
    """A login of somebody with such a name."""
    return Login(address, name, ANYBODY, by_script=name)


TCP4 = "PROXY TCP4 {} 198.51.100.1 40000 143"
TCP6 = "PROXY TCP6 {} 2001:db8::1 40000 143"

LOGINS = {
    "the right password": Login("192.0.2.1"),
    "a wrong password": Login("192.0.2.2", password="no", by_script=None),
    "no such user": Login("192.0.2.3", b"nobody@example.com", "no", by_script=None),
    "capital letters": Login("192.0.2.4", b"Alice@Example.COM"),
    "a master user as a user": Login("192.0.2.5", f"{USER}*{MASTER}".encode(), by_script=None),
    "a master user by SASL": Login("192.0.2.6", MASTER.encode(), acting_for=USER.encode(), by_script=None),
    "a user as itself by SASL": Login("192.0.2.7", acting_for=USER.encode()),
    "anonymous": Login("192.0.2.8", anonymous=True, by_script=None),
    "an alias of the password database": Login("192.0.2.9", b"alias@example.com", by_script=b"mailbox@example.com"),
    "a user whose logins are closed": Login("192.0.2.10", b"closed@example.com", by_script=None),
    "a user of another network": Login("192.0.2.11", b"elsewhere@example.com", by_script=None),
    "a name without a domain": by_anybody("192.0.2.12", b"alice"),
    "a quote and a plus": by_anybody("192.0.2.13", b"o'brien+tag@example.com"),
    "words for a shell": by_anybody("192.0.2.14", b'a;$(id)`x`"&|<>\\@example.com'),
    "a blank": by_anybody("192.0.2.15", b"alice smith@example.com"),
    "letters beyond ASCII": by_anybody("192.0.2.16", "jos\u00e9@example.com".encode()),
    "an emoji": by_anybody("192.0.2.17", "\U0001f600@example.com".encode()),
    "no local part": by_anybody("192.0.2.18", b"@example.com"),
    "two at signs": by_anybody("192.0.2.19", b"a@b@example.com"),
    "words for JSON": by_anybody("192.0.2.20", b'a","success":false,"b":"@example.com'),
    "a percent sign": by_anybody("192.0.2.21", b"%{user}%u@example.com"),
    "a long name": by_anybody("192.0.2.22", b"a" * 200 + b"@example.com"),
    "a comma": by_anybody("192.0.2.23", b"a,b@example.com"),
    "IPv6": Login("2001:db8::1"),
    "IPv6 in full": Login("2001:0DB8:0:0:0:0:0:0002"),
    "IPv4 mapped": Login("::ffff:192.0.2.30"),
    "NAT64": Login("64:ff9b::c000:21f"),
    "loopback": Login("127.0.0.2", by_script=None),
    "never_record": Login("203.0.113.9", by_script=None),
    "never_record, mapped": Login("::ffff:203.0.113.9", by_script=None),
    "link-local": Login("fe80::1", by_script=None),
    "a load balancer, IPv4": Login("192.0.2.40", head=TCP4),
    "a load balancer, IPv6": Login("2001:db8:0:1::1", head=TCP6),
    "a load balancer, IPv4 mapped": Login("::ffff:192.0.2.41", head=TCP6),
    "a load balancer, a wrong password": Login("192.0.2.42", password="no", head=TCP4, by_script=None),
    # What differs: a report tells of the password, and the script of the session that came of it.
    "renamed by the user database": Login(
        "192.0.2.50", b"moved@example.com", by_script=b"new@example.com", by_report=b"moved@example.com"
    ),
    "refused by a script of the site's": Login(
        "192.0.2.51", b"refused@example.com", ANYBODY, by_script=None, by_report=b"refused@example.com"
    ),
    "closed, without a value": Login(
        "192.0.2.53", b"gone@example.com", by_script=None, by_report=b"gone@example.com", since=(2, 4)
    ),
    "bytes that are no letters": replace(by_anybody("192.0.2.52", b"\xff\xfe@example.com"), by_report=None),
}


Table = dict[str, tuple[int, bytes]]
"""Time to live and value by key, without the prefix."""


class Site:
    """A Dovecot, and what either way has recorded of the logins of LOGINS, each by both protocols."""

    def __init__(self, dovecot: ContractDovecot, redis: Redis) -> None:
        self.version = dovecot.version
        self.let_in: dict[tuple[str, str], bool] = {}
        self.tables: dict[tuple[str, str], Table] = {}
        expected = sum(_keys(login.reported(self.version)) for login in LOGINS.values())
        for protocol in ("pop3", "imap"):
            redis.flushall()
            for name, login in LOGINS.items():
                for _ in range(5):  # on a busy machine the script may not come to an end in its half second
                    self.let_in[protocol, name] = dovecot.log_in(protocol, login)
                    if login.by_script is None or redis.exists(f"script:{_key(login.address)}"):
                        break
            # The script has written before Dovecot let the client in; of reports it is to be waited for.
            wait_until(lambda: len(_read(redis, "report")) >= expected, seconds=30)
            for way in ("script", "report"):
                self.tables[protocol, way] = _read(redis, way)

    def recorded(self, protocol: str, way: str, address: str) -> Table:
        """What is recorded of this address."""
        return {each: it for each, it in self.tables[protocol, way].items() if each.split(",")[0] == _key(address)}


def _key(address: str) -> str:
    """Under which a login from there is recorded, without the prefix."""
    return f"login:{ClientAddresses().parse(address).text}"


def _read(redis: Redis, way: str) -> Table:
    found: Table = {}
    for key in sorted(redis.scan_iter(f"{way}:*")):
        value = redis.get(key)
        if isinstance(value, bytes):
            found[key.decode("utf-8", "surrogateescape").removeprefix(f"{way}:")] = redis.ttl(key), value
    return found


def _keys(user: bytes | None) -> int:
    """How many there are for a login of this user, with sender_match = domain and a user_domain."""
    return 0 if user is None else 1 if user.startswith(b"@") else 3


@pytest.fixture(scope="module", params=["installed", pytest.param("of the tree", marks=pytest.mark.tree)])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    need("redis", "dovecot")
    if request.param == "of the tree" and not TREE:
        pytest.skip("no Debian tree with Dovecot 2.4 given: PBS_TREE=DIR, made as tests/trees/README.md says")
    program = dovecot() if request.param == "of the tree" else []
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pbs-")))
        directory.chmod(0o755)
        redis = stack.enter_context(PrivateRedis(directory / "redis", port=None))
        port = free_port()
        common = {
            "redis_url": redis.url, "sender_match": "domain", "user_domain": "example.com",
            "never_record": "203.0.113.0/24",
        }  # fmt: skip
        settings = {
            "key_prefix": "report:",
            "reports_listen": f"inet:127.0.0.1:{port}",
            "reports_check_passwords": "yes",
        }
        stack.enter_context(PrivateRecorder(directory, common | settings))
        (directory / "script.conf").write_text(
            "".join(f"{name} = {value}\n" for name, value in (common | {"key_prefix": "script:"}).items())
        )
        hook = _script_hook(directory) + _report_hook(program, port)
        server = stack.enter_context(ContractDovecot(directory / "dovecot", hook_config=hook, program=program))
        with connect(RedisUrl.parse(redis.url)) as client:
            yield Site(server, client)


def _script_hook(directory: Path) -> str:
    """The shipped configuration for the script, with a script of the site's in front that refuses a user."""
    for name in ("pbs-postlogin", "pbs_postlogin.py"):
        shutil.copy(shipped(f"dovecot-hooks/{name}"), directory)
    own = directory / "own-script"
    own.write_text('#!/bin/sh\ncase "$USER" in refused@*) exit 1 ;; esac\nexec "$@"\n')
    own.chmod(0o755)
    text = shipped("dovecot-hooks/pbs-policy.conf").read_text()
    script = f"{own} {directory}/pbs-postlogin -c {directory}/script.conf"
    assert text.count(SCRIPT) == 2
    assert text.count("user = pbs-policy") == 2
    return text.replace(SCRIPT, script).replace("user = pbs-policy", f"user = {SCRIPT_USER}")


def _report_hook(program: list[str], port: int) -> str:
    version = "2.3" if dovecot_version(program) < (2, 4) else "2.4"
    text = shipped(f"dovecot-hooks/report-{version}.conf").read_text()
    assert text.count("http://127.0.0.1:10041/") == 1
    return text.replace("127.0.0.1:10041", f"127.0.0.1:{port}")


@pytest.mark.parametrize("protocol", ["pop3", "imap"])
def test_a_login_is_recorded_by_reports_exactly_when_and_as_the_script_records_it(site: Site, protocol: str) -> None:
    wrong = []
    for name, login in LOGINS.items():
        expected = [login.by_script, login.reported(site.version)]
        script, report = (site.recorded(protocol, way, login.address) for way in ("script", "report"))
        users = [{_user(value) for _, value in table.values()} for table in (script, report)]
        is_same = expected[0] != expected[1] or _is_same(report, script, protocol)
        if users != [{user} if user else set() for user in expected] or not is_same:
            wrong.append(f"{name}: by the script {script}, by a report {report}, expected {expected}")
    assert not wrong, "\n".join(wrong)


def _is_same(report: Table, script: Table, protocol: str) -> bool:
    """Whether a login's keys and values are the same by either way, but for the word that says by which."""
    for (ours, value), (theirs, other) in zip(report.values(), script.values(), strict=False):
        time, service, *user = value.split(b" ", 2)
        its_time, its_service, *its_user = other.split(b" ", 2)
        is_at_once = max(abs(ours - theirs), abs(int(time) - int(its_time))) <= LATER
        services = (its_service, service) == (protocol.encode(), protocol.encode() + b"-report")
        if not (is_at_once and services and user == its_user):
            return False
    return list(report) == list(script)


def _user(value: bytes) -> bytes:
    return value.split(b" ", 2)[2]


def test_whoever_is_let_in_was_asked_for_a_password_and_whoever_is_not_is_recorded_by_no_script(site: Site) -> None:
    for (protocol, name), let_in in site.let_in.items():
        login = LOGINS[name]
        recorded = site.recorded(protocol, "script", login.address)
        assert not (recorded and not let_in), name
