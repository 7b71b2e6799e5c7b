"""Every setting once: its name, default, unit, meaning and check; and where its value comes from.

The file is written in the manner of Postfix' main.cf, because its readers administer Postfix and because the
post-login script must read it in microseconds: `name = value`, a line that begins with a blank continues the one
before, a line that begins with `#` is a comment. Defaults < file < environment `PBS_<NAME>` < `--set name=value`.
Whatever is wrong is reported at once, each fault with its place (`SettingsError`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from pbs_policy import listener, redis_url
from pbs_policy.address import ClientAddresses, Network, parse_network
from pbs_policy.duration import EXPECTED as DURATION
from pbs_policy.duration import parse_duration
from pbs_policy.listener import Listener
from pbs_policy.policy import Rules, SenderMatch
from pbs_policy.redis_url import RedisUrl

DEFAULT_FILE = Path("/etc/pbs-policy/pbs-policy.conf")


class SettingsError(Exception):
    """The settings are not usable. `faults` are all there are, each `place: what is wrong, what was expected`."""

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = list(faults)
        super().__init__("\n".join(self.faults))


def _items(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _parse_listeners(text: str) -> tuple[Listener, ...]:
    listeners = tuple(Listener.parse(item) for item in _items(text))
    if not listeners:
        raise ValueError(f"expected at least one {listener.EXPECTED}")
    return listeners


def _parse_networks(text: str) -> tuple[Network, ...]:
    return tuple(parse_network(item) for item in _items(text))


def _parse_yes_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError("expected yes or no")
    return text == "yes"


def _parse_ipv6_prefix(text: str) -> int:
    # RFC 6177: a site gets between a /48 and a /64; anything wider would permit strangers.
    if not text.isascii() or not text.isdecimal() or not 48 <= int(text) <= 128:
        raise ValueError("expected a number of bits from 48 to 128")
    return int(text)


def _parse_workers(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= 64:
        raise ValueError("expected a number of processes from 1 to 64")
    return int(text)


def _parse_key_prefix(text: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]{1,64}", text):
        raise ValueError("expected 1 to 64 printable ASCII characters without blanks")
    return text


def _parse_mode(text: str) -> int:
    if not re.fullmatch(r"0?[0-7]{3}", text):
        raise ValueError("expected an octal mode such as 0660")
    return int(text, 8)


def _parse_path(text: str) -> str:
    if text and not text.startswith("/"):
        raise ValueError("expected an absolute path")
    return text


def _parse_word(text: str) -> str:
    if re.search(r"\s", text):
        raise ValueError("expected one word")
    return text


def _choice(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"expected {', '.join(choices[:-1])} or {choices[-1]}")
        return text

    return parse


def _setting(default: str, parse: Callable[[str], Any], meaning: str) -> Any:
    return field(metadata={"default": default, "parse": parse, "meaning": meaning})


@dataclass(frozen=True, slots=True)
class Settings:
    """The effective settings, checked, each in the unit its comment names."""

    listen: tuple[Listener, ...] = _setting(
        "inet:127.0.0.1:10040",
        _parse_listeners,
        f"Where Postfix finds the service: one or more of {listener.EXPECTED}.",
    )
    unix_socket_mode: int = _setting("0660", _parse_mode, "Access mode of the unix sockets, octal.")
    unix_socket_group: str = _setting(
        "", _parse_word, "Group of the unix sockets (Debian's Postfix: postfix); empty: the service's own."
    )
    workers: int = _setting(
        "1", _parse_workers, "Processes that share the work, 1 to 64: not more than there are processor cores."
    )
    redis_url: RedisUrl = _setting(
        "redis://127.0.0.1:6379/0", RedisUrl.parse, f"Where Redis or Valkey is: {redis_url.EXPECTED}."
    )
    redis_user: str = _setting("", _parse_word, "ACL user to log in to Redis as; empty: the default user.")
    redis_password_file: str = _setting(
        "", _parse_path, "File whose first line is the Redis password; empty: no password."
    )
    key_prefix: str = _setting("pbs:", _parse_key_prefix, "What every key of ours begins with.")
    ttl: int = _setting(
        "30m", parse_duration, f"How long a login permits relaying (the old grace period): {DURATION}."
    )
    ipv6_prefix: int = _setting(
        "128", _parse_ipv6_prefix, "Bits of an IPv6 address that count, 48 to 128. IPv4 is never widened."
    )
    never_record: tuple[Network, ...] = _setting(
        "", _parse_networks, "Networks never recorded and never permitted, besides those that never are."
    )
    record_master_logins: bool = _setting(
        "no", _parse_yes_no, "Whether a Dovecot master user's login permits the address it came from."
    )
    sender_match: SenderMatch = _setting(
        "off",
        _choice("off", "domain", "address"),
        "Who must be logged in from the address: anybody (off), a user of the sender's domain, the sender.",
    )
    on_unavailable: Literal["defer", "dunno"] = _setting(
        "defer",
        _choice("defer", "dunno"),
        "Relay attempts while Redis is unavailable: try again later (defer), or refused as a stranger's (dunno).",
    )
    observe_only: bool = _setting("no", _parse_yes_no, "Answer DUNNO always, log what would have been.")
    log_decisions: Literal["permitted", "all", "none"] = _setting(
        "permitted", _choice("permitted", "all", "none"), "Which decisions are logged; Postfix logs what it refuses."
    )

    @property
    def rules(self) -> Rules:
        """What the decision needs."""
        return Rules(self.sender_match, self.on_unavailable, self.observe_only)

    @property
    def addresses(self) -> ClientAddresses:
        """How client addresses are named here."""
        return ClientAddresses(self.ipv6_prefix, self.never_record)

    def redis_password(self) -> str:
        """The password from redis_password_file, or "". Raises SettingsError where it cannot be read."""
        if not self.redis_password_file:
            return ""
        try:
            lines = Path(self.redis_password_file).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError([f"redis_password_file: {error}"]) from error
        if not lines or not lines[0]:
            raise SettingsError([f"redis_password_file: {self.redis_password_file} has no first line"])
        return lines[0]


@dataclass(frozen=True, slots=True)
class Value:
    """A setting's text as somebody wrote it, and the place: `FILE:LINE`, a variable's name, `--set`, `default`."""

    text: str
    place: str


def defaults() -> dict[str, Value]:
    """Every setting's default as it would be written, by name, in the order of the manual."""
    return {each.name: Value(each.metadata["default"], "default") for each in fields(Settings)}


def meaning(name: str) -> str:
    """One sentence on a setting. Raises KeyError for a name that is none."""
    return str({each.name: each.metadata["meaning"] for each in fields(Settings)}[name])


def load(
    file: Path | None = None, environment: Mapping[str, str] | None = None, overrides: Iterable[str] = ()
) -> tuple[Settings, dict[str, Value]]:
    """The effective settings, and the text and place of each.

    `file` None means DEFAULT_FILE, which may be absent; a file that was named may not. Raises SettingsError.
    """
    faults: list[str] = []
    values = defaults()
    for name, value in [
        *_from_file(file, faults),
        *_from_environment(environment or {}, faults),
        *_from_overrides(overrides, faults),
    ]:
        if name in values:
            values[name] = value
        else:
            faults.append(f"{value.place}: unknown setting {name!r}{_did_you_mean(name)}")
    parsed: dict[str, Any] = {}
    for each in fields(Settings):
        value = values[each.name]
        try:
            parsed[each.name] = each.metadata["parse"](value.text)
        except ValueError as error:
            comment = " (a comment has a line of its own)" if "#" in value.text else ""
            faults.append(f"{value.place}: {each.name} = {value.text}: {error}{comment}")
    if faults:
        raise SettingsError(faults)
    return Settings(**parsed), values


def _did_you_mean(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), defaults(), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _from_file(file: Path | None, faults: list[str]) -> Iterator[tuple[str, Value]]:
    path = file or DEFAULT_FILE
    try:
        data = path.read_bytes()
    except OSError as error:
        if file is not None or not isinstance(error, FileNotFoundError):
            faults.append(f"{path}: {error.strerror}")
        return
    seen: dict[str, int] = {}
    for number, line in logical_lines(data):
        place = f"{path}:{number}"
        try:
            name, equals, text = (part.strip() for part in line.decode("utf-8").partition("="))
        except UnicodeDecodeError:
            faults.append(f"{place}: not UTF-8 text")
            continue
        if not equals or not name:
            faults.append(f"{place}: expected name = value, found {line.decode().strip()!r}")
        elif name in seen:
            faults.append(f"{place}: {name} is set a second time (first in line {seen[name]})")
        else:
            seen[name] = number
            yield name, Value(text, place)


def logical_lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines of a main.cf-like file: number of the first physical line, and the text with continuations joined.

    Empty lines and comments are skipped, also between a line and its continuation (postconf(5)).
    """
    number, logical = 0, b""
    for at, line in enumerate(data.split(b"\n"), 1):
        if not line.strip() or line.lstrip().startswith(b"#"):
            continue
        if line[:1].isspace() and logical:
            logical += b" " + line.strip()
            continue
        if logical:
            yield number, logical
        number, logical = at, line.strip()
    if logical:
        yield number, logical


def _from_environment(environment: Mapping[str, str], faults: list[str]) -> Iterator[tuple[str, Value]]:
    """PBS_TTL=8h and its like. Other programs own names with PBS_ in front: only near misses are faults."""
    known = defaults()
    for variable, text in sorted(environment.items()):
        name = variable.removeprefix("PBS_").lower()
        if name == variable.lower():
            continue
        if name in known:
            yield name, Value(text.strip(), variable)
        elif difflib.get_close_matches(name, known, n=1, cutoff=0.85):
            faults.append(f"{variable}: unknown setting{_did_you_mean(name)}")


def _from_overrides(overrides: Iterable[str], faults: list[str]) -> Iterator[tuple[str, Value]]:
    for override in overrides:
        name, equals, text = (part.strip() for part in override.partition("="))
        if equals:
            yield name, Value(text, "--set")
        else:
            faults.append(f"--set {override}: expected name=value")
