"""Checks of who Dovecot lets in: logins that nobody authenticated, and names that are not the client's to choose.

Whoever logs in may relay, so a login without a password is an open relay, for whoever asks.
"""

from __future__ import annotations

from collections.abc import Iterator

from pbs_policy.doctor.finding import Finding, check, good, warning, wrong
from pbs_policy.dovecot.auth import (
    Passdb,
    domainless_lookup,
    keeps_domain,
    lets_everybody_in,
    may_answer,
    mechanism,
    one_for_all,
    passdbs,
)
from pbs_policy.dovecot.doveconf import DovecotConfig
from pbs_policy.host import Host
from pbs_policy.settings import Settings

_NO_DOMAIN = {(2, 3): "%Ln", (2, 4): "%{user | username | lower}"}


def check_auth(config: DovecotConfig, plugin: list[str], settings: Settings, host: Host) -> Iterator[Finding]:
    """Every check of authentication. `plugin` are the protocols whose logins last_login records."""
    databases = passdbs(config)
    yield from _check_anonymous(config, plugin)
    yield from _check_nopassword(config, databases, host)
    yield from _check_domains(config, databases, settings, host)


@check("dovecot.anonymous", "nobody logs in anonymously")
def _check_anonymous(config: DovecotConfig, plugin: list[str]) -> Iterator[Finding]:
    line = mechanism(config, "anonymous")
    seen = "auth_mechanisms has anonymous: whoever asks is logged in"
    if line and plugin:
        seen += f", and last_login records that ({' and '.join(plugin)}): strangers may relay"
        yield wrong(seen, line.place, "take anonymous out of auth_mechanisms, or use the post-login script")
    elif line:
        yield good(f"{seen}; such logins are not recorded", line.place)


@check("dovecot.nopassword", "no passdb of the configuration lets users in without a password")
def _check_nopassword(config: DovecotConfig, databases: list[Passdb], host: Host) -> Finding | None:
    found = lets_everybody_in(config, databases)
    if found:
        seen = f"passdb {found.passdb.driver} has {found.field}: whoever asks logs in as anybody, is recorded, "
        mend = "take it out: every login that is recorded must have had a password"
        return wrong(seen + "and may relay", found.place, mend)
    for each in databases:
        place = may_answer(each, "nopassword", host)
        if place:
            seen = f"passdb {each.driver} may answer nopassword: such a user's login needs none, and permits"
            return warning(seen, place, "see that it does so for nobody whom nothing else vouches for")
    for shared in one_for_all(databases):
        seen = f"passdb {shared.passdb.driver} has {shared.field}: whoever knows it logs in as anybody, and may relay"
        return warning(seen, shared.place, "give each user a password; or see that nobody else knows this one")
    return None


@check("dovecot.domains", "no passdb that can be seen is asked for a user without the domain")
def _check_domains(
    config: DovecotConfig, databases: list[Passdb], settings: Settings, host: Host
) -> Finding | None:
    if settings.login_domains:
        return good("login_domains names the domains whose users count")
    if not keeps_domain(config):
        return good("auth_username_format leaves the domain out of every user's name")
    for each in databases:
        line = domainless_lookup(each, host)
        if line:
            seen = f"passdb {each.driver} is asked for the user without the domain ({line.name}): Dovecot takes "
            seen += "alice@victim.example for alice, and she sends and relays as a user of that domain"
            mend = f"login_domains = YOUR-DOMAINS, or auth_username_format = {_NO_DOMAIN[config.version]}"
            return warning(seen, line.place, mend)
    return None
