"""Checks of Dovecot's reports of logins, where `pbs-policy record` is who hears them: do they get there, do they say
all that is needed, can nobody else report, and does a success prove a password? And a report of the trial.
"""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator
from hmac import compare_digest
from urllib.parse import urlsplit

from pbs_policy.demo.daemons import wait_until
from pbs_policy.doctor.finding import Finding, check, good, not_looked_at, warning, wrong
from pbs_policy.doctor.trial import Trial, Way
from pbs_policy.dovecot.auth import EMPTY, passdbs, unchecked
from pbs_policy.dovecot.doveconf import DovecotConfig, variables
from pbs_policy.dovecot.reports import Reports, read_reports, report_url
from pbs_policy.host import Host, NotLookedAt
from pbs_policy.log import printable
from pbs_policy.recorder.auth_policy import ATTRIBUTES, Header
from pbs_policy.settings import Settings
from pbs_policy.table.login_table import LoginTable
from pbs_policy.trust import Untrusted

_SECONDS = 5.0  # until a report has its answer, and until its login is there
_VARIABLES = {
    "user": {"user"}, "remote": {"rip", "remote_ip"}, "master_user": {"master_user"},
    "mech": {"mech", "mechanism"}, "protocol": {"service", "protocol"},
}  # fmt: skip
_WHOLE = ("mech", "protocol")  # by which a login does not count: they are a variable, and nothing beside it
_SHIPPED = "as dovecot-hooks/report-{}.{}.conf has it"


def reported_protocols(config: DovecotConfig, settings: Settings) -> list[str]:
    """The protocols whose logins Dovecot reports, where there is a recorder: whether it is told is `check_reports`'
    to say."""
    if read_reports(config) is None or not settings.reports_listen:
        return []
    return [each for each in config.protocols() if not settings.services or each in settings.services]


def check_reports(config: DovecotConfig, settings: Settings, host: Host) -> Iterator[Finding]:
    """Nothing where Dovecot does not report, or to a policy server of the site's own."""
    reports = read_reports(config)
    if reports is None or not settings.reports_listen:
        return
    yield from _check_url(reports, settings)
    if reports.is_to(settings.reports_places):
        yield from _check_settings(reports)
        yield from _check_attributes(reports, config)
        yield from _check_secret(reports, config, settings, host)
        yield from _check_passwords(config, settings, host)


@check("dovecot.reports")
def _check_url(reports: Reports, settings: Settings) -> Finding:
    seen = f"Dovecot reports logins to {printable(reports.server)}"
    fault = ""
    if not reports.is_to(settings.reports_places):
        fault = f"{seen}, and the recorder listens on {' '.join(map(str, settings.reports_listen))}"
    elif reports.url.endswith("?"):
        fault = "auth_policy_server_url ends in ?, and Dovecot adds another: no report is understood"
    elif not reports.url.startswith("http://"):
        fault = f"{seen} by TLS, which the recorder does not speak"
    mend = f"auth_policy_server_url = {report_url(*settings.reports_places[0])}"
    return wrong(fault, reports.place, mend) if fault else good(seen, reports.place)


@check("dovecot.reports_settings", "Dovecot reports each login afterwards, and waits for nobody")
def _check_settings(reports: Reports) -> Iterator[Finding]:
    asks = [name for name in ("check_before_auth", "check_after_auth") if reports.is_on(name)]
    mend = "; ".join(f"auth_policy_{name} = no" for name in asks)
    if not reports.is_on("report_after_auth"):
        seen = "auth_policy_report_after_auth = no: no login is reported, and none recorded"
        yield wrong(seen, reports.place_of("report_after_auth"), "auth_policy_report_after_auth = yes")
    elif asks and reports.value("reject_on_fail") == "yes":
        seen = "Dovecot asks the recorder before it lets anybody in, and refuses every login while that is away"
        yield wrong(seen, reports.place_of("reject_on_fail"), mend)
    elif asks:
        seen = "Dovecot asks the recorder at each login, and waits for it, up to two seconds where it hangs"
        yield warning(seen, reports.place_of(asks[0]), mend)


@check("dovecot.reports_attributes", "reports say all that the recorder needs, and nothing of the password")
def _check_attributes(reports: Reports, config: DovecotConfig) -> Iterator[Finding]:
    place, said = reports.attributes_place, reports.attributes
    mend = f"auth_policy_request_attributes {_SHIPPED.format(*config.version)}"
    lack = [name for name in ATTRIBUTES if name not in said]
    if lack:
        yield wrong(f"reports do not say {', '.join(lack)}: the recorder takes none of them", place, mend)
        return
    others = [name for name in _VARIABLES if not _is_of_login(name, said[name])]
    constant = [name for name in ("proxied", "nologin") if "passdb:" not in said[name]]
    for name in [*others, *constant][:1]:
        why = ": that is not the login's own" if name in _VARIABLES else ", whatever Dovecot does"
        yield wrong(f"reports say {name}={printable(said[name])}{why}", place, mend)
        return
    if reports.tells_hash:
        yield warning("reports have a hash of the password, which nobody needs", place, mend)


def _is_of_login(name: str, text: str) -> bool:
    is_alone = name not in _WHOLE or re.fullmatch(r"%[A-Z]*[a-z]|%\{[^{}]*\}", text) is not None
    return is_alone and bool(variables(text) & _VARIABLES[name])


@check("dovecot.reports_secret")
def _check_secret(reports: Reports, config: DovecotConfig, settings: Settings, host: Host) -> Finding:
    header, file = reports.value("server_api_header"), settings.reports_secret_file
    place = reports.place_of("server_api_header")
    try:
        secret = _secret(settings, host)
    except NotLookedAt as error:
        return not_looked_at(str(error))
    except Untrusted as error:
        return wrong(f"the recorder does not take its secret: {error}", file, "chmod go-w, as root's")
    if not secret:
        seen = "there is no secret: every user and program of this host can report a login, and so permit any address"
        mend = "reports_secret_file = FILE, with `Authorization: Bearer ` and a random word in it"
        return warning(seen, reports.place, mend)
    mend = f"auth_policy_server_api_header = what the first line of {file} says"
    if not header and config.unread:
        return not_looked_at(f"what stands in {config.unread[0]} is not known: Permission denied")
    if not header:
        return wrong("Dovecot reports without the secret: the recorder takes none of it", reports.place, mend)
    ours, theirs = (f"{name.lower()}:{value}".encode() for name, value in map(Header.parse, (secret, header)))
    if not compare_digest(ours, theirs):
        return wrong(f"Dovecot's secret is not the one in {file}: the recorder takes no report", place, mend)
    written = place.rpartition(":")[0] or place
    try:
        is_open = host.owned(written).mode & 0o004 != 0
    except OSError:
        is_open = False
    if is_open:
        mend = f"the line in a file of its own, chmod 600, and `!include_try` of that in {written}"
        return warning("every user of this host may read the secret, and report logins with it", place, mend)
    return good(f"Dovecot and the recorder have one secret, in {file}", place)


def _secret(settings: Settings, host: Host) -> str:
    """The first line of the file, "" for none. Raises NotLookedAt, Untrusted."""
    file = settings.reports_secret_file
    return host.read_as("", file).split(b"\n")[0].strip().decode("utf-8", "replace") if file else ""


@check("dovecot.reports_passwords", "no database has another host check the password of a login that is recorded")
def _check_passwords(config: DovecotConfig, settings: Settings, host: Host) -> Finding | None:
    """Of `nopassword` without a proxy, and of databases that may answer it, `dovecot.nopassword` tells."""
    try:
        found = list(unchecked(passdbs(config), host))
    except NotLookedAt as error:
        return not_looked_at(f"whether a password database answers nopassword or proxy: {error}")
    for each in found:
        name = f"passdb {each.passdb.driver}"
        if each.always and each.field in ("nopassword", EMPTY) and each.passdb.proxies:
            seen = f"{name} has {each.field}, and proxies: a success is reported whatever the password was"
            return wrong(seen, each.place, "report from the backends, which check passwords; not from here")
        if each.field == "nologin" and not each.always and config.version >= (2, 4):
            seen = f"{name} may answer nologin, which 2.4 hides from reports where it has no value: such a login is "
            return warning(f"{seen}refused, and recorded", each.place, "nologin=closed instead of nologin")
    line = next((each.passdb.proxies for each in found if each.passdb.proxies), None)
    if line and not settings.record_proxied_logins:
        seen = "passdb sets proxy: a proxied login is not recorded, since another host may be the one that checks it"
        mend = "report from the backends; or record_proxied_logins = yes, if every password is checked here"
        return warning(seen, line.place, mend)
    return None


def by_report(config: DovecotConfig, protocol: str, settings: Settings, table: LoginTable, host: Host) -> Way:
    """A report as Dovecot sends it, to where the recorder listens."""
    reports = read_reports(config)
    return Way(
        protocol, protocol, "a report has recorded a login", reports.place if reports else config.file,
        "systemctl status pbs-policy-record",
        "systemctl reload pbs-policy pbs-policy-record: one may go by settings from before a change",
        lambda trial: _report(trial, protocol, settings, table, host), settings.ttl,
    )  # fmt: skip


def _report(trial: Trial, protocol: str, settings: Settings, table: LoginTable, host: Host) -> str:
    body = {"user": trial.user, "remote": trial.raw, "protocol": protocol, "mech": "PLAIN", "master_user": "",
            "proxied": "no", "nologin": "no", "success": True, "policy_reject": False, "tls": True}  # fmt: skip
    try:
        secret = Header.parse(_secret(settings, host))
    except Untrusted as error:
        raise NotLookedAt(str(error)) from None
    answer = _post(f"{report_url(*settings.reports_places[0])}?command=report", json.dumps(body), secret)
    if answer != "200 OK":
        return f"the recorder answers a report with {answer}"
    key = table.keys.login(trial.client.text)
    if not wait_until(lambda: table.read([key])[0] != [None], seconds=_SECONDS):
        return "the recorder has taken a report, and the login is not in Redis"
    return ""


def _post(url: str, body: str, secret: Header) -> str:
    """What is answered: the status, or why there is none."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=_SECONDS)
    headers = {"Content-Type": "application/json"} | ({secret.name: secret.value} if secret.value else {})
    try:
        connection.request("POST", f"{parts.path}?{parts.query}", body, headers)
        answer = connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        return f"nothing: {printable(str(error))}"
    else:
        return f"{answer.status} {printable(answer.reason)}"
    finally:
        connection.close()
