"""A settings file is usable, or there is a `SettingsError`. Where it is usable, the post-login script has read the
same in it: each setting, the seconds of `ttl`, the place of Redis, the addresses of `never_record`. The script raises
nothing but its `Failure` over the others. The same bytes as a file of `sender_maps`: usable, or a `FileFault`;
what it names for a sender is asked for.
"""

from __future__ import annotations

import contextlib
import time
from types import SimpleNamespace
from typing import Any

from pbs_policy import settings
from pbs_policy.address import AddressError, Network
from pbs_policy.changing_file import FileFault
from pbs_policy.decision import sender_maps
from pbs_policy.decision.sender import SenderRules, names_to_match
from pbs_policy.decision.sender_maps import SenderMaps
from pbs_policy.settings import Settings
from pbs_policy.settings.sources import SettingsError
from pbs_policy.store.redis_url import RedisUrl
from tests.fuzz.targets import load_recorder, load_settings

WORDS = (
    *[f"{name} = ".encode() for name in settings.defaults()], b"\n", b"\n ", b"\n\t", b"#", b" = ", b"\r\n",
    b"\x0b", b"\x0c", b"\x1c", b"\x85", b"\xc2\xa0", b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"yes", b"no", b"30m",
    b"1w", b"192.0.2.0/24", b"::/0", b"2001:db8::/32", b"::ffff:192.0.2.0/120", b"redis://", b"rediss://",
    b"unix:///", b"?db=", b"redis+sentinel://", b"valkeys+cluster://",
    b"[2001:db8::1]:6379", b"/mymaster", b"/0", b"inet:", b"unix:/",
    b"127.0.0.1:10040", b"alice@example.com", b"@example.com", b'"a b"@example.com', b"bob,carol dave", b"\\",
    b'"', b"20/1h", b"domain", b"address", b"off", b"pop3 imap", b"example.com",
)  # fmt: skip

_recorder = load_recorder()


def run(data: bytes) -> None:
    """The same bytes are read as a settings file and as sender maps."""
    _recorder.read_file = lambda _: data.decode("utf-8", "surrogateescape")
    try:
        known, values = load_settings(data)
    except SettingsError as error:
        assert error.faults
        with contextlib.suppress(_recorder.Failure):
            _recorder.seconds(_recorder.read_settings("FILE")["ttl"])
    else:
        read = _recorder.read_settings("FILE")
        for name, text in read.items():
            assert values[name].text == text, name
        assert _recorder.seconds(read["ttl"]) == known.ttl
        assert place_of(read) == _place(known.redis_url)
        assert RedisUrl.parse(str(known.redis_url)) == known.redis_url
        _compare_exclusions(known, read)
    _read_maps(data)


def place_of(read: dict[str, str]) -> list[tuple[Any, ...]]:
    """Where the script would look for Redis: addresses, and the database behind them."""
    asked: list[tuple[Any, ...]] = []

    def open_first(targets: list[tuple[Any, Any]], *_: Any) -> None:
        asked.append(targets[0][1] if isinstance(targets[0][1], tuple) else (targets[0][1],))

    _recorder.open_first = open_first
    _recorder.over_tls = lambda *_: asked.append(("tls",))
    system = _recorder.system
    _recorder._socket = SimpleNamespace(
        **{name: getattr(system, name) for name in dir(system) if name[0] != "_" and name != "getaddrinfo"},
        getaddrinfo=lambda host, port, *_: [(system.AF_INET, 1, 0, "", (host.decode(), port))],
    )
    try:
        kind, places, name, database = _recorder.read_url(read["redis_url"])
        for place in places:
            _recorder.connect(place, "26379" if name else "6379", read, time.monotonic() + 1)
        asked.append((name, kind == "cluster", int(database or 0)))
    finally:
        _recorder._socket = system
    return asked


def _place(url: RedisUrl) -> list[tuple[Any, ...]]:
    """The same as the package has it."""
    asked: list[tuple[Any, ...]] = [(url.path,)] if url.path else []
    for place in url.places:
        asked += [place, ("tls",)] if url.tls else [place]
    return [*asked, (url.master, url.cluster, url.db)]


def _compare_exclusions(known: Settings, read: dict[str, str]) -> None:
    """At both ends of each network, and of some addresses, script and service are of one mind."""
    tried = ["192.0.2.7", "2001:db8:1:2:3::4", "::ffff:192.0.2.7", "169.254.1.1", "::7", "fe80::1", "64:ff9b::7f00:1"]
    for network in known.never_record:
        tried += _ends(network)
    for text in tried:
        try:
            client = known.addresses.parse(text)
        except AddressError:
            continue
        assert _recorder.canonical(text, read) == client[:2], text


def _ends(network: Network) -> list[str]:
    first, last = int(network.network_address), int(network.broadcast_address)
    kind = type(network.network_address)
    return [str(kind(each)) for each in (first - 1, first, last, last + 1) if 0 <= each < 2**network.max_prefixlen]


def _read_maps(data: bytes) -> None:
    file: Any = "MAPS"
    maps = SenderMaps(file, "example.com")
    try:
        maps.content = sender_maps.parse(data, "MAPS", "example.com")
    except FileFault as error:
        assert error.faults
        assert all(fault.isprintable() for fault in error.faults)
        return
    for sender, users in maps.content.items():
        assert 0 < len(users) <= sender_maps.MOST_USERS
        assert not any(user.startswith(b"@") for user in users)
        if not sender.startswith(b"@"):
            names = names_to_match(sender, SenderRules("address", "example.com"), maps)
            assert names is not None
            assert set(users) < {*names, b""}, (sender, users, names)
