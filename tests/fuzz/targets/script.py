"""Whatever Dovecot's environment says of a login, and whatever Redis answers: the post-login script sends Redis whole
commands and nothing else, `SET` of the keys and values that the service will look for, each with an end; or nothing,
where the service would never permit the address; or it complains (`Failure`, `OSError`) without the password.
"""

from __future__ import annotations

import re

import hiredis

from pbs_policy import log, settings
from pbs_policy.address import AddressError
from pbs_policy.table.keys import Keys
from pbs_policy.table.records import parse_record
from pbs_policy.table.users import domain_of, names_of_user
from tests.fuzz.targets import Supply, load_recorder, load_settings

WORDS = (
    b"192.0.2.7", b"2001:db8::7", b"::ffff:203.0.113.77", b"fe80::1%br0", b"%", b"127.0.0.1", b"\xff",
    b"alice@example.com", b"@example.com", b"\r\n", b"$3\r\nSET\r\n", b"*3\r\n", b"+OK\r\n",
    b"-ERR unknown command 'AUTH', with args: ", b"s3cr3t-word", b"IP", b"USER", b"-MOVED 1 127.0.0.1:6379\r\n",
    b"*2\r\n$9\r\n127.0.0.1\r\n$4\r\n6379\r\n", b"MASTER_USER", b"USERDB_KEYS", b"UID IP ", b"PBS_TTL", b"imap",
    b"\n", b"\xc3\xa9", b",@example.com", b"AUTH_USER", b"AUTH_MECH", b"ANONYMOUS",
)  # fmt: skip

PASSWORD = "s3cr3t-word"
_FILES = (
    "", "sender_match = domain\nuser_domain = Example.com\nkey_prefix = x:\nttl = 90\nlog_logins = yes",
    "ipv6_prefix = 64\nnever_record = 192.0.2.0/28, 2001:db8:1::/48\nservices = imap\nrecord_master_logins = yes",
    "redis_password_file = /password\nredis_user = hook\nredis_url = redis://127.0.0.1/3",
    "key_prefix = {pbs}:\nredis_password_file = /password\nredis_url = redis+cluster://127.0.0.1,[::1]:7000",
    "sentinel_password_file = /password\nredis_url = redis+sentinel://127.0.0.1,[::1]/mymaster/3",
    "login_domains = Example.com\nuser_domain = example.com",
)  # fmt: skip

_OTHERS = [
    [b"AUTH", b"hook", PASSWORD.encode()],
    [b"SELECT", b"3"],
    [b"AUTH", PASSWORD.encode()],
    [b"SENTINEL", b"get-master-addr-by-name", b"mymaster"],
]

_recorder = load_recorder()


class _Redis:
    """In place of a connection to Redis: keeps what is sent; says what it is given, or OK to everything."""

    def __init__(self, says: bytes) -> None:
        self.sent = b""
        self._says = says

    def settimeout(self, _: float) -> None:
        pass

    def sendall(self, data: bytes) -> None:
        self.sent += data

    def recv(self, size: int) -> bytes:
        says, self._says = self._says[:size], self._says[size:]
        return says


def run(data: bytes) -> None:
    """The first bytes choose a settings file and what Redis says; the others are IP, USER, service and the like."""
    supply = Supply(data)
    text = _FILES[supply.number(len(_FILES))]
    says = b"+OK\r\n" * 5 if supply.number(2) else supply.piece()
    environment = {b"IP": supply.piece(), b"USER": supply.piece()}
    service = supply.piece().decode("utf-8", "surrogateescape")
    if supply:
        environment[supply.piece()] = supply.piece()  # a field of the user database may have any of these names
    redis = _Redis(says)
    _recorder.connect = lambda *_: redis
    _recorder.read_file = lambda path: PASSWORD if path == "/password" else text
    logged: list[str] = []
    _recorder.log_login = lambda _, line: logged.append(line)
    failed = False
    try:
        _recorder.record_login("FILE", service, environment)
    except (_recorder.Failure, OSError) as error:
        failed = True
        if "password" in text and PASSWORD.encode() not in b" ".join(environment.values()):
            assert PASSWORD not in str(error), error
    for line in logged:
        user = environment[b"USER"].decode("utf-8", "surrogateescape")
        assert line.isprintable()
        assert not user or f" user={log.value(user)} service=" in line
    known, _ = load_settings(text.encode())
    _check(known, redis.sent, environment, failed)
    if says == b"+OK\r\n" * 5 and redis.sent and "sentinel" not in text:
        assert not failed


def _check(known: settings.Settings, sent: bytes, environment: dict[bytes, bytes], failed: bool) -> None:
    commands = _parse(sent)
    if b"IP" in environment.get(b"USERDB_KEYS", b"").split():
        assert not commands, "the address is the user database's word"
        return
    try:
        client = known.addresses.parse(environment[b"IP"].decode("ascii"))
    except (AddressError, UnicodeDecodeError):
        assert not commands
        return
    names = names_of_user(environment[b"USER"], known.user_domain)
    domain = domain_of(names[0]).decode("utf-8", "surrogateescape") if names else ""
    if known.login_domains and domain not in known.login_domains:
        assert not commands
        return
    if client.excluded or environment.get(b"AUTH_MECH") == b"ANONYMOUS":
        assert not commands
        return
    if not commands:
        assert failed or known.services
        return
    for command in commands:
        assert command[0] == b"SET" or command in _OTHERS, command
    if known.redis_user:
        assert commands[:2] == _OTHERS[:2]
    if not (commands := [each for each in commands if each[0] == b"SET"]):
        assert failed
        return
    if known.sender_match != "domain":
        names = names[:1]
    login = Keys(known.key_prefix).login
    keys = [login(client.text), *[login(client.text, name) for name in names]]
    assert [each[1] for each in commands] == keys * (len(commands) // len(keys)), "one server after the other"
    for command in commands:
        assert command[0::3] == [b"SET", b"EX"]
        assert command[4:] == [b"%d" % known.ttl]
        record = parse_record(command[2])
        assert record is not None
        assert record.user.encode("utf-8", "surrogateescape") == environment[b"USER"]
        assert re.fullmatch("[A-Za-z0-9_-]{1,32}", record.service)


def _parse(sent: bytes) -> list[list[bytes]]:
    """The commands in what was sent, which must be the whole of it, as Redis reads them: by their lengths."""
    reader = hiredis.Reader()
    reader.feed(sent)
    commands: list[list[bytes]] = []
    while (command := reader.gets()) is not False:
        assert isinstance(command, list)
        commands.append(command)
    assert b"".join(map(_pack, commands)) == sent
    return commands


def _pack(command: list[bytes]) -> bytes:
    return b"*%d\r\n" % len(command) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in command)
