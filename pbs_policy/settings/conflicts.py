"""Settings that are sound each by itself, and do not do what they say beside the others.

A fault is where the connection to Redis would be less secure than the file says, without a word: nothing starts.
Other settings that have no effect are told, and change nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pbs_policy.postfix.listener import Listener
from pbs_policy.settings.sources import Value


def find_conflicts(values: Mapping[str, Value], credentials: str = "") -> Iterator[str]:
    """A fault for each setting that would silently not hold. `credentials` is the service manager's directory of
    passwords, if there is one."""
    for server in ("redis", "sentinel"):
        user, file = values[f"{server}_user"], f"{server}_password_file"
        has_credential = bool(credentials) and Path(credentials, f"{server}_password").exists()
        if user.text and not values[file].text and not has_credential:
            yield (
                f"{user.place}: {server}_user = {user.text}: nobody logs in as that user without a password: "
                f"set {file}, or leave {server}_user empty"
            )
    certificate, key = values["redis_tls_cert_file"], values["redis_tls_key_file"]
    if not values["redis_url"].text.startswith(("rediss", "valkeys")):
        for name in ("redis_tls_ca_file", "redis_tls_cert_file", "redis_tls_key_file"):
            if values[name].text:
                yield (
                    f"{values[name].place}: {name} = {values[name].text}: redis_url is without TLS: "
                    f"write rediss:// for redis://, or leave {name} empty"
                )
    elif key.text and not certificate.text:
        yield f"{key.place}: redis_tls_key_file = {key.text}: a key needs its certificate: set redis_tls_cert_file"


def find_reports_faults(
    values: Mapping[str, Value], listen: Iterable[Listener], *, checks_passwords: bool, has_secret: bool
) -> Iterator[str]:
    """A fault for each thing that has to be said before anybody's report is believed."""
    value = values["reports_listen"]
    if listen and not checks_passwords:
        yield (
            f"{value.place}: reports_listen = {value.text}: a Dovecot that leaves passwords to another host (a proxy "
            "with nopassword) reports a success for any password, and its reports would open the relay to everybody: "
            "expected reports_check_passwords = yes, to say that each Dovecot that reports checks passwords itself"
        )
    public = [str(each) for each in listen if not each.is_local]
    if public and not has_secret:
        yield (
            f"{value.place}: reports_listen = {value.text}: whoever reaches {public[0]} could permit any address: "
            "set reports_secret_file, or listen on 127.0.0.1 or [::1]"
        )


def find_idle(values: Mapping[str, Value]) -> Iterator[str]:
    """A line for each setting that has no effect, and harms nothing by that."""
    if "+sentinel:" not in values["redis_url"].text.partition("//")[0]:
        for name in ("sentinel_user", "sentinel_password_file"):
            if values[name].text:
                yield f"{values[name].place}: {name} has no effect: redis_url names no Sentinels"
    if values["sender_match"].text == "off":
        for name, idle in (("sender_maps", ""), ("null_sender", "refuse")):
            if values[name].text != idle:
                yield f"{values[name].place}: {name} has no effect with sender_match = off: any sender may relay"
