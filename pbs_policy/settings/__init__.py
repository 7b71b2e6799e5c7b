"""Every setting once: its name, default, unit, meaning and check; and where its value comes from.

Defaults < file < environment `PBS_<NAME>` < `--set name=value` (`sources`). Whatever is wrong is reported at once,
each fault with its place (`SettingsError`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from pbs_policy.address import ClientAddresses, Network
from pbs_policy.cap import EXPECTED as CAP
from pbs_policy.cap import Cap
from pbs_policy.changing_file import FileFault
from pbs_policy.decision.denies import Denies
from pbs_policy.decision.rules import Rules
from pbs_policy.decision.sender import (
    SenderRules,
    parse_login_domains,
    parse_recipient_delimiter,
    parse_user_domain,
)
from pbs_policy.decision.sender_maps import SenderMaps
from pbs_policy.duration import EXPECTED as DURATION
from pbs_policy.duration import parse_duration
from pbs_policy.postfix import listener
from pbs_policy.postfix.listener import Listener
from pbs_policy.settings.conflicts import find_conflicts, find_idle
from pbs_policy.settings.sources import (
    SettingsError,
    Value,
    did_you_mean,
    from_environment,
    from_file,
    from_overrides,
)
from pbs_policy.settings.values import (
    choice,
    parse_cap,
    parse_duration_or_0,
    parse_ipv6_prefix,
    parse_key_prefix,
    parse_listeners,
    parse_listeners_or_none,
    parse_log_to,
    parse_mode,
    parse_networks,
    parse_path,
    parse_services,
    parse_tcp_listeners,
    parse_word,
    parse_yes_no,
)
from pbs_policy.store import redis_url
from pbs_policy.store.redis_url import Login, RedisUrl, TlsFiles, in_one_slot
from pbs_policy.trust import read_trusted

REMOVED = {
    "workers": "one process serves; several hosts are several services on one Redis",
}
"""Settings that there were, and what to do instead. An upgrade must not stop the mail for one of them."""


def _setting(default: str, parse: Callable[[str], Any], meaning: str) -> Any:
    return field(metadata={"default": default, "parse": parse, "meaning": meaning})


@dataclass(frozen=True, slots=True)
class Settings:
    """The effective settings, checked, each in the unit its comment names."""

    listen: tuple[Listener, ...] = _setting(
        "inet:127.0.0.1:10040",
        parse_listeners,
        f"Where Postfix finds the service: one or more of {listener.EXPECTED}.",
    )
    unix_socket_mode: int = _setting("0660", parse_mode, "Access mode of the unix sockets, octal.")
    unix_socket_group: str = _setting(
        "", parse_word, "Group of the unix sockets (Debian's Postfix: postfix); empty: the service's own."
    )
    redis_url: RedisUrl = _setting(
        "redis://127.0.0.1:6379/0", RedisUrl.parse, f"Where Redis or Valkey is: {redis_url.EXPECTED}."
    )
    redis_user: str = _setting("", parse_word, "ACL user to log in to Redis as; empty: the default user.")
    redis_password_file: str = _setting(
        "", parse_path, "File whose first line is the Redis password; empty: no password."
    )
    sentinel_user: str = _setting("", parse_word, "ACL user to log in to Sentinels as; empty: their default user.")
    sentinel_password_file: str = _setting(
        "", parse_path, "File whose first line is the Sentinels' password; empty: no password."
    )
    redis_tls_ca_file: str = _setting(
        "", parse_path, "Certificates of the authorities to trust for rediss://; empty: the system's."
    )
    redis_tls_cert_file: str = _setting("", parse_path, "Our own certificate, where Redis asks for one.")
    redis_tls_key_file: str = _setting("", parse_path, "The key of redis_tls_cert_file; empty: it is in that file.")
    key_prefix: str = _setting("pbs:", parse_key_prefix, "What every key of ours begins with.")
    ttl: int = _setting(
        "30m", parse_duration, f"How long a login permits relaying (the old grace period): {DURATION}."
    )
    ipv6_prefix: int = _setting(
        "128",
        parse_ipv6_prefix,
        "Bits of an IPv6 address that count, 48 to 128. Never widened: IPv4, NAT64, Teredo, 6to4, ISATAP, ORCHID.",
    )
    never_record: tuple[Network, ...] = _setting(
        "", parse_networks, "Networks never recorded and never permitted, besides those that never are."
    )
    record_master_logins: bool = _setting(
        "no", parse_yes_no, "Whether a Dovecot master user's login permits the address it came from."
    )
    services: frozenset[str] = _setting(
        "", parse_services, "Services whose logins count, such as pop3 imap; empty: all."
    )
    sender_match: Literal["off", "domain", "address"] = _setting(
        "off",
        choice("off", "domain", "address"),
        "Who must be logged in from the address: anybody (off), a user of the sender's domain, the sender.",
    )
    user_domain: str = _setting("", parse_user_domain, "The domain of users whose name has none.")
    login_domains: frozenset[str] = _setting(
        "", parse_login_domains, "Domains whose users' logins count, such as example.com example.net; empty: all."
    )
    sender_maps: str = _setting(
        "", parse_path, "File of further senders per user, written like Postfix' smtpd_sender_login_maps."
    )
    recipient_delimiter: str = _setting(
        "",
        parse_recipient_delimiter,
        "What separates an extension from a user in a sender, as in Postfix: +; empty: nothing.",
    )
    batv: Literal["off", "fold"] = _setting(
        "off",
        choice("off", "fold"),
        "Whether a sender's BATV tag (prvs=TAG=, btv1==TAG==) is left out, as an extension is.",
    )
    null_sender: Literal["refuse", "permit"] = _setting(
        "refuse",
        choice("refuse", "permit"),
        "Mail from the null sender (bounces) where sender_match is not off.",
    )
    require_tls: bool = _setting("no", parse_yes_no, "Permit relaying only over an encrypted SMTP session.")
    max_recipients_per_address: Cap | None = _setting(
        "", parse_cap, f"How many recipients one client address may have relayed: {CAP}; empty: any number."
    )
    max_recipients_per_user: Cap | None = _setting(
        "", parse_cap, "The same for one user, at all addresses together."
    )
    denies: str = _setting(
        "", parse_path, "File of addresses, networks and users that are denied whatever becomes of Redis."
    )
    auto_deny: int = _setting(
        "0", parse_duration_or_0, "How long an address is denied that tries twice its cap, such as 1h; 0: never."
    )
    on_unavailable: Literal["defer", "dunno"] = _setting(
        "defer",
        choice("defer", "dunno"),
        "Relay attempts while Redis is unavailable: try again later (defer), or refused as a stranger's (dunno).",
    )
    observe_only: bool = _setting("no", parse_yes_no, "Answer DUNNO always, log what would have been.")
    usage_kept: int = _setting(
        "30d", parse_duration_or_0, "How long `pbs-policy report` can look back: 1d and more; 0: nothing is kept."
    )
    log_decisions: Literal["permitted", "all", "none"] = _setting(
        "permitted", choice("permitted", "all", "none"), "Which decisions are logged; Postfix logs what it refuses."
    )

    log_to: str = _setting(
        "stderr", parse_log_to, "Where the log goes: stderr (the journal, under systemd), syslog, or syslog:/PATH."
    )
    log_format: Literal["text", "json"] = _setting(
        "text", choice("text", "json"), "How a line of the log is written: for people, or as a JSON object."
    )
    log_logins: bool = _setting(
        "no",
        parse_yes_no,
        "Whether the post-login script tells syslog of each login, recorded or left out; Dovecot's log has them too.",
    )
    metrics_listen: tuple[Listener, ...] = _setting(
        "", parse_listeners_or_none, f"Where metrics and health are asked: {listener.EXPECTED}; empty: nowhere."
    )

    reports_listen: tuple[Listener, ...] = _setting(
        "", parse_tcp_listeners, "Where `pbs-policy record` hears Dovecot's reports, inet:HOST:PORT; empty: nowhere."
    )
    reports_check_passwords: bool = _setting(
        "no",
        parse_yes_no,
        "Say yes where each Dovecot that reports checks passwords itself: nothing is recorded without. One that "
        "leaves them to another host (a proxy with nopassword) reports a success for any password: an open relay.",
    )
    record_proxied_logins: bool = _setting(
        "no",
        parse_yes_no,
        "yes: also the logins that a reporting Dovecot proxies to another host, if it checks the password itself.",
    )
    reports_secret_file: str = _setting(
        "", parse_path, "File whose first line is Dovecot's auth_policy_server_api_header; empty: on loopback only."
    )
    renew_sessions: int = _setting(
        "1m",
        parse_duration_or_0,
        "How often `pbs-policy record` renews the logins of users who are still connected, as doveadm tells, and at "
        "least three times in a ttl; 0: never, nor where no doveadm is installed.",
    )
    dovecot_config: str = _setting("", parse_path, "Dovecot's configuration file, for doveadm; empty: its own.")
    recorder_metrics_listen: tuple[Listener, ...] = _setting(
        "", parse_listeners_or_none, "As metrics_listen, for `pbs-policy record`."
    )

    @property
    def rules(self) -> Rules:
        """What the decision needs."""
        return Rules(
            senders=SenderRules(
                self.sender_match, self.user_domain, self.recipient_delimiter, self.null_sender, self.batv
            ),
            services=self.services,
            login_domains=frozenset(domain.encode("utf-8", "surrogateescape") for domain in self.login_domains),
            require_tls=self.require_tls,
            address_cap=self.max_recipients_per_address,
            user_cap=self.max_recipients_per_user,
            auto_deny=self.auto_deny,
            on_unavailable=self.on_unavailable,
            observe_only=self.observe_only,
        )

    def rules_on_users(self) -> list[str]:
        """The settings that judge by who logged in, which Dovecot's last_login plugin does not record. Raises
        SettingsError."""
        denies = self.load_denies()
        rules = {
            "sender_match": self.sender_match != "off",
            "login_domains": bool(self.login_domains),
            "max_recipients_per_user": self.max_recipients_per_user is not None,
            "denies": denies is not None and denies.has_users,
        }
        return [name for name, holds in rules.items() if holds]

    @property
    def renew_interval(self) -> float:
        """Seconds after which the login of a session is renewed: three times in a `ttl` at least, since a round may
        fail."""
        return min(float(self.renew_sessions), self.ttl / 3)

    def load_sender_maps(self) -> SenderMaps | None:
        """The file of sender_maps, where one is set. Raises SettingsError for what is wrong in it."""
        if not self.sender_maps:
            return None
        with _faults_of("sender_maps"):
            return SenderMaps.load(Path(self.sender_maps), self.user_domain)

    def load_denies(self) -> Denies | None:
        """The file of denies, where one is set. Raises SettingsError for what is wrong in it."""
        if not self.denies:
            return None
        with _faults_of("denies"):
            return Denies.load(Path(self.denies), self.addresses, self.user_domain)

    @property
    def addresses(self) -> ClientAddresses:
        """How client addresses are named here."""
        return ClientAddresses(self.ipv6_prefix, self.never_record)

    @property
    def redis_tls(self) -> TlsFiles:
        """The files for TLS with Redis."""
        return TlsFiles(self.redis_tls_ca_file, self.redis_tls_cert_file, self.redis_tls_key_file)

    def redis_password(self, credentials: str = "") -> str:
        """The password for Redis, or "": the credential `redis_password` in that directory, if it is there, else what
        redis_password_file says. Raises SettingsError where it cannot be read."""
        return _read_password("redis_password", self.redis_password_file, credentials)

    @property
    def reports_places(self) -> list[tuple[str, int]]:
        """Host and port of each of `reports_listen`."""
        return [(each.host, each.port) for each in self.reports_listen]

    def reports_secret(self, credentials: str = "") -> str:
        """What `auth_policy_server_api_header` is to be, or "", found as the password is. Raises SettingsError."""
        header = _read_password("reports_secret", self.reports_secret_file, credentials)
        if header and not header.partition(":")[2].strip() and (":" in header or not header.strip()):
            fault = "expected a secret in the first line, such as `Authorization: Bearer WORD`"
            raise SettingsError([f"reports_secret_file: {self.reports_secret_file}: {fault}"])
        return header

    def sentinel_login(self, credentials: str = "") -> Login:
        """Who to log in to Sentinels as, with the password found in the same way. Raises SettingsError."""
        password = _read_password("sentinel_password", self.sentinel_password_file, credentials)
        return Login(self.sentinel_user, password)


@contextmanager
def _faults_of(name: str) -> Iterator[None]:
    """What is wrong in the file of the setting `name`, as a fault of the settings."""
    try:
        yield
    except FileFault as error:
        raise SettingsError([f"{name}: {line}" for line in error.faults]) from error


def _read_password(name: str, file: str, credentials: str) -> str:
    what = f"{name}_file"
    if credentials and Path(credentials, name).exists():
        what, file = f"the credential {name}", str(Path(credentials, name))
    if not file:
        return ""
    try:
        line = read_trusted(Path(file))[0].split(b"\n")[0].rstrip(b"\r").decode()
    except OSError as error:
        raise SettingsError([f"{what}: {file}: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise SettingsError([f"{what}: {error}"]) from error
    if not line:
        raise SettingsError([f"{what}: {file} has no first line"])
    return line


def defaults() -> dict[str, Value]:
    """Every setting's default as it would be written, by name, in the order of the manual."""
    return {each.name: Value(each.metadata["default"], "default") for each in fields(Settings)}


def meaning(name: str) -> str:
    """One sentence on a setting. Raises KeyError for a name that is none."""
    return str({each.name: each.metadata["meaning"] for each in fields(Settings)}[name])


def load(
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    overrides: Iterable[str] = (),
    tell: Callable[[str], object] = lambda _: None,
) -> tuple[Settings, dict[str, Value]]:
    """The effective settings, and the text and place of each.

    `file` None means `sources.DEFAULT_FILE`, which may be absent; one that was named may not. `tell` is given a line
    for each setting that was removed or has no effect. Raises SettingsError.
    """
    faults: list[str] = []
    values = defaults()
    known = [*values, *REMOVED]
    environment = environment or {}
    for name, value in [
        *from_file(file, known, faults),
        *from_environment(environment, known, faults),
        *from_overrides(overrides, faults),
    ]:
        if name in values:
            values[name] = value
        elif name in REMOVED:
            tell(f"a removed setting is ignored: {value.place}: {name}: {REMOVED[name]}")
        else:
            faults.append(f"{value.place}: unknown setting {name!r}{did_you_mean(name, values)}")
    faults += find_conflicts(values, environment.get("CREDENTIALS_DIRECTORY", ""))
    settings = parse_values(values, faults)
    for line in find_idle(values):
        tell(line)
    return settings, values


def parse_values(values: Mapping[str, Value], faults: Iterable[str] = ()) -> Settings:
    """The settings that these texts are. Raises SettingsError with what is wrong in any of them, after `faults`."""
    faults = list(faults)
    parsed: dict[str, Any] = {}
    for each in fields(Settings):
        value = values[each.name]
        try:
            parsed[each.name] = each.metadata["parse"](value.text)
        except ValueError as error:
            comment = " (a comment has a line of its own)" if "#" in value.text else ""
            text = re.sub(r"://.*@", "://...@", value.text)  # somebody's password
            faults.append(f"{value.place}: {each.name} = {text}: {error}{comment}")
    prefix = parsed.get("key_prefix")
    if prefix and "redis_url" in parsed and parsed["redis_url"].cluster and not in_one_slot(prefix):
        # Each relay attempt is one MGET, which a Cluster answers only for keys of one slot.
        place = values["key_prefix" if values["key_prefix"].place != "default" else "redis_url"].place
        faults.append(
            f"{place}: key_prefix = {prefix}: with redis+cluster expected a hash tag in braces, such as "
            "{pbs}:, which keeps the table in one hash slot"
        )
    if faults:
        raise SettingsError(faults)
    return Settings(**parsed)
