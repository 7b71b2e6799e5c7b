"""What the installers do not do, or point out: said with file, line and what to do, and nothing is written."""

from __future__ import annotations

import os
import re
from pathlib import Path

import fakeredis
import pytest

from pbs_policy.store.errors import StoreUnavailable
from tests.install.support import (
    INET_CHECK,
    MAIN_CF,
    MASTER,
    MASTER_CF,
    OWN,
    SETTINGS,
    USERADD,
    Files,
    arrange,
    main_cf,
    only_23,
    pbs,
    snapshot,
)
from tests.stores import table_on

OK, USAGE, CONFIG = os.EX_OK, os.EX_USAGE, os.EX_CONFIG
SCRIPT, PLUGIN = "install-hook", "install-hook --last-login"
REPORTS = "install-hook --reports --set reports_listen=inet:127.0.0.1:10041 --set reports_check_passwords=yes"
POSTFIX = "install-postfix"
UNIX = "--set listen=unix:/var/spool/postfix/pbs-policy/policy"
NOT_INCLUDED: Files = {"/etc/dovecot/dovecot.conf": lambda text: text.replace("!include", "#!include")}
SUBMISSION = MASTER_CF + "submission inet n - y - - smtpd\n"

Row = tuple[str, Files, int, str]
"""A command line, what is in the tree besides, the exit status, and what is said: `...` between two parts of it."""

ROWS: dict[str, Row] = {
    "no user": (
        SCRIPT, {"/etc/passwd": ""}, OK,
        f"before --apply: there is no user pbs-policy to run the script. {USERADD}",
    ),
    "no user, applied": (f"{SCRIPT} --apply", {"/etc/passwd": ""}, CONFIG, USERADD),
    "settings that the user may not read": (
        SCRIPT, {"/etc/passwd": "pbs-policy:x:990:990::/:\n", SETTINGS: ("", 0o600)}, OK,
        f"note: ROOT{SETTINGS}: pbs-policy may not read it",
    ),
    "a later file wins": (
        f"{SCRIPT} --apply", {"/etc/dovecot/conf.d/99-zz.conf": "service imap {\n  executable = imap\n}\n"}, CONFIG,
        "doveconf reads service/imap/executable = imap, not imap imap-postlogin: either a file",
    ),
    "Dovecot refuses it": (f"{SCRIPT} --apply", {OWN: "no_such_setting = 1\n"}, CONFIG, "no_such_setting"),
    "the drop-in is not included": (
        f"{SCRIPT} --apply", NOT_INCLUDED, CONFIG, "is not included (!include conf.d/*.conf)",
    ),
    "nor that of the plugin": (
        f"{PLUGIN} --apply", NOT_INCLUDED, CONFIG, "is not included (!include conf.d/*.conf)",
    ),
    "no Dovecot": (
        SCRIPT, {"/etc/dovecot/dovecot.conf": None}, CONFIG, "ROOT/etc/dovecot/dovecot.conf: there is no such file",
    ),
    **{
        options: (f"{SCRIPT} {options}", {}, USAGE, said)
        for options, said in {
            "--user 'pbs policy'": "without blanks or quotes",
            "--lib-dir '/opt/a b'": "without blanks or quotes",
            "--settings '/a\"b'": "without blanks or quotes",
            "--lib-dir lib": "expected an absolute path",
            "--root /nowhere/at/all": "there is no such folder",
        }.items()
    },
    **{
        setting: (f"{PLUGIN} --set {setting}", {}, CONFIG, f"{setting.partition('=')[0]} ...Use the script")
        for setting in (
            "redis_url=rediss://192.0.2.1:6379/0", "redis_url=unix:///run/redis.sock",
            "redis_url=redis://redis.example.com:6379/0", "redis_url=redis://127.0.0.1:6379/1",
            "redis_password_file=/etc/redis-password", "services=pop3", "ipv6_prefix=64", "key_prefix=%:",
        )
    },
    **{
        setting: (
            f"{PLUGIN} --apply --set {setting}", {"/denies": "alice@example.com stolen\n"}, CONFIG,
            f"{setting.partition('=')[0]} is set, and it records no user...Use the script",
        )
        for setting in ("max_recipients_per_user=10/1h", "sender_match=domain", "sender_match=address",
                        "login_domains=example.com", "denies=ROOT/denies")
    },
    "denies of addresses": (f"{PLUGIN} --set denies=ROOT/denies", {"/denies": "192.0.2.7 spam\n"}, OK, ""),
    "no secret": (
        REPORTS, {}, OK, "note: reports_secret_file is not set: every user of this host can report a login",
    ),
    "no group": (
        REPORTS, {}, OK, "note: there is no group pbs-policy, so the recorder may not ask who is connected",
    ),
    "nowhere to listen": (
        f"{REPORTS} --apply --set reports_listen=", {}, CONFIG,
        "reports_check_passwords = yes if this Dovecot checks every password itself",
    ),
    "no promise": (
        f"{REPORTS} --apply --set reports_check_passwords=no", {}, CONFIG,
        "reports_check_passwords = yes if this Dovecot checks every password itself",
    ),
    "no Postfix": (POSTFIX, {MAIN_CF: None}, CONFIG, f"ROOT{MAIN_CF}: there is no such file"),
    "no user for the socket": (
        f"{POSTFIX} {UNIX}", {"/etc/passwd": "postfix:x:101:101::/:\n"}, OK,
        f"before --apply: there is no user pbs-policy to own /var/spool/postfix/pbs-policy. {USERADD}",
    ),
    "no user for the socket, applied": (
        f"{POSTFIX} --apply {UNIX}", {"/etc/passwd": "postfix:x:101:101::/:\n"}, CONFIG, USERADD,
    ),
    **{
        listen: (
            f"{POSTFIX} --set listen={listen}", {}, CONFIG,
            f"{listen}...Expected in the settings file: inet:127.0.0.1:10040 or unix:/var/spool/postfix/",
        )
        for listen in ("unix:/run/pbs.sock", "inet:127.0.0.1:0")
    },
    "a list of its own": (
        f"{POSTFIX} --apply", {MASTER: MASTER_CF.replace("smtpd\n", "smtpd\n  -o smtpd_relay_restrictions=reject\n")},
        CONFIG, f"ROOT{MASTER}:2: smtp/inet has smtpd_relay_restrictions of its own",
    ),
    "refused by Postfix": (
        f"{POSTFIX} --apply", {MASTER: "smtp inet too few\n"}, CONFIG, "postconf does not accept ROOT/etc/postfix",
    ),
    "submission inherits the check": (
        POSTFIX, {MASTER: SUBMISSION}, OK,
        f"note: ROOT{MASTER}:3: submission/inet has no smtpd_relay_restrictions of its own",
    ),
}  # fmt: skip

BY_POSTFIX = "smtpd_relay_restrictions = permit_mynetworks, permit_sasl_authenticated, {}reject_unauth_destination\n"
LIST = BY_POSTFIX.format("")


def assert_said_and_nothing_written(root: Path, line: str, files: Files, status: int, said: str) -> str:
    arrange(root, files)
    before = snapshot(root)
    outcome = pbs(root, line)
    assert outcome.status == status, outcome.output
    expected = ".*".join(map(re.escape, said.replace("ROOT", str(root)).split("...")))
    assert re.search(expected, outcome.output, re.DOTALL), outcome.output
    assert snapshot(root) == before
    return outcome.output


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_what_is_not_right_is_said_and_nothing_is_written(root: Path, row: Row) -> None:
    assert_said_and_nothing_written(root, *row)


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        (LIST + LIST, "9", "set more than once (lines 8, 9)"),
        ("smtpd_relay_restrictions =\n", "8", "it is empty"),
        ("compatibility_level = 0\n", "", "it is empty"),
        ("smtpd_restriction_classes = x\nx = permit\n" + BY_POSTFIX.format("x, "), "10", "restriction class"),
        (BY_POSTFIX.format("$more, ") + "more = permit_mynetworks\n", "8", "another parameter"),
        (BY_POSTFIX.format("permit_sasl, "), "8", "no restriction that is known here"),
        ("smtpd_relay_restrictions = permit_mynetworks, reject\n", "8", "there is no reject_unauth_destination"),
        (
            BY_POSTFIX.format("permit_auth_destination, check_policy_service 127.0.0.1:10040, "), "8",
            "inet: is missing before",
        ),
        (BY_POSTFIX.format(f"{INET_CHECK}, "), "8", "in it, but without permit_auth_destination"),
        (
            LIST.rstrip() + ", permit_auth_destination, check_policy_service inet:localhost:10040\n", "8",
            "our check_policy_service stands in it, but reject_unauth_destination stands before",
        ),
        (
            LIST + f"smtpd_recipient_restrictions = {INET_CHECK}\n", "9",
            "our check_policy_service stands in smtpd_recipient_restrictions",
        ),
        (
            LIST + "smtpd_restriction_classes = x\nx = check_policy_service inet:localhost:10040\n", "10",
            "our check_policy_service stands in x",
        ),
        (
            LIST + "smtpd_recipient_restrictions = permit_mynetworks, reject_unauth_destination\n", "9",
            "reject_unauth_destination in smtpd_recipient_restrictions refuses a relay attempt even when",
        ),
        (LIST + "smtpd_client_restrictions = permit_mynetworks reject\n", "9", "reject in smtpd_client"),
    ],
)  # fmt: skip
def test_a_main_cf_that_is_not_understood_is_refused_with_its_line_and_what_to_do(
    root: Path, text: str, line: str, why: str
) -> None:
    said = f"ROOT{MAIN_CF}{line and f':{line}: '}...{why}...By hand: "
    for options in ("", " --apply"):
        assert_said_and_nothing_written(root, POSTFIX + options, {MAIN_CF: main_cf(text)}, CONFIG, said)


OWN_TABLE = """\
dict {
  lastlogin = file:/var/lib/dovecot/lastlogin.db
}
plugin {
  last_login_dict = proxy::lastlogin
  last_login_key = last-login/%s/%u/%d
}
protocol imap {
  mail_plugins = $mail_plugins last_login
}
"""
OURS_CHAINED = (
    "service imap {\n  executable = imap own\n}\nservice own {\n"
    "  executable = script-login /usr/local/lib/pbs-policy/pbs-postlogin imap\n}\n"
)
OURS_PLUGIN = (
    "plugin {\n  last_login_dict = redis:host=127.0.0.1:port=6379\n  last_login_key = pbs:login:%{rip}\n}\n"
    "protocol imap {\n  mail_plugins = last_login\n}\n"
)


def static(arguments: str, more: str = "") -> str:
    return f"passdb {{\n  driver = static\n  args = {arguments}\n{more}}}\n"


IN_THE_WAY = {
    "a table of the site's own": (PLUGIN, OWN_TABLE, "5: ...keeps a table of your own (last-login/%s/%u/%d)"),
    "anonymous logins": (PLUGIN, "auth_mechanisms = plain anonymous\n", "1: auth_mechanisms has anonymous"),
    "no passwords": (PLUGIN, static("user=%u nopassword=y"), "3: passdb static has nopassword"),
    "an empty password": (PLUGIN, static("password="), "3: passdb static has an empty password"),
    "no second look": (
        PLUGIN, static("nopassword=y", "  result_success = continue\n"), "3: passdb static has nopassword",
    ),
    "a mechanism that checks nothing": (
        PLUGIN, static("nopassword=y", "  mechanisms = xoauth2\n"), "3: passdb static has nopassword",
    ),
    "the script": (PLUGIN, OURS_CHAINED, "5: service own runs pbs-postlogin"),
    "weakforced": (
        REPORTS, "auth_policy_server_url = http://user:word@127.0.0.1:8084/\nauth_policy_hash_nonce = salt\n",
        "1: auth_policy_server_url is http://127.0.0.1:8084/, and Dovecot reports to one server alone. Use",
    ),
    "a blind proxy": (
        REPORTS, static("proxy=y host=192.0.2.3 nopassword=y"),
        "3: passdb static has nopassword: Dovecot reports a success whatever",
    ),
    "a proxy": (
        REPORTS, static("proxy=y host=192.0.2.3 password=x"),
        "3: passdb static has proxy: its logins go on to another host",
    ),
    "no passwords, reported": (REPORTS, static("nopassword=y"), "3: passdb static has nopassword"),
    "empty": (REPORTS, static("proxy=y host=192.0.2.3 password="), "3: passdb static has an empty password"),
    "no second look, reported": (
        REPORTS, static("nopassword=y", "  result_success = continue\n"), "3: passdb static has nopassword",
    ),
    "no passwords by override": (
        REPORTS, "passdb {\n  driver = passwd-file\n  args = /x\n  override_fields = nopassword=y\n}\n",
        "4: passdb passwd-file has nopassword",
    ),
    "last_login": (REPORTS, OURS_PLUGIN, "2: the last_login plugin records logins without"),
}  # fmt: skip


@pytest.mark.parametrize(("way", "own", "said"), IN_THE_WAY.values(), ids=IN_THE_WAY)
def test_what_stands_in_the_way_of_plugin_or_reports_is_named_with_its_line(
    root: Path, way: str, own: str, said: str
) -> None:
    only_23()
    output = assert_said_and_nothing_written(root, f"{way} --apply", {OWN: own}, CONFIG, f"ROOT{OWN}:{said}")
    assert "word" not in re.sub("passwords?|nopassword", "", output), "no secret is shown"


SQL = "password_query = SELECT pw, 'y' AS proxy, nopassword FROM u\n"
POINTED_OUT = {
    "one password, plugin": (PLUGIN, static("password=secret"), f"{OWN}:3: passdb static has one password for"),
    "one password, reports": (REPORTS, static("password=secret"), f"{OWN}:3: passdb static has one password for"),
    "no passwords, script": (SCRIPT, static("nopassword=y"), f"{OWN}:3: passdb static has nopassword"),
    "the script, reports": (REPORTS, OURS_CHAINED, f"{OWN}:5: imap logins run pbs-postlogin, too, and are recorded"),
    "what a database may answer": (
        REPORTS, "passdb {\n  driver = sql\n  args = ROOT/sql.conf\n}\n",
        "/sql.conf:1: passdb sql may answer nopassword: such a login is reported as a...note: ROOT/sql.conf:1: "
        "passdb sql may answer proxy: such a login is not recorded",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("way", "own", "said"), POINTED_OUT.values(), ids=POINTED_OUT)
def test_what_has_to_be_confirmed_is_pointed_out(root: Path, way: str, own: str, said: str) -> None:
    only_23()
    files: Files = {OWN: own.replace("ROOT", str(root)), "/sql.conf": SQL}
    assert_said_and_nothing_written(root, way, files, OK, f"note: ROOT{said}")


@pytest.mark.parametrize(
    ("line", "files"),
    [
        (SCRIPT, {OWN: OWN_TABLE}),
        (SCRIPT, {OWN: "auth_mechanisms = plain anonymous\n"}),
        (SCRIPT, {OWN: static("nopassword=y allow_nets=192.0.2.0/24")}),
        (SCRIPT, {OWN: static("nopassword=y proxy=y host=192.0.2.3")}),
        (POSTFIX, {MASTER: f"{SUBMISSION}  -o {{ smtpd_relay_restrictions = permit_sasl_authenticated, reject }}\n"}),
    ],
)
def test_what_is_in_nobodys_way_is_not_mentioned(root: Path, line: str, files: Files) -> None:
    only_23()
    assert "note:" not in assert_said_and_nothing_written(root, line, files, OK, "Nothing was changed")


def test_a_user_who_is_denied_keeps_the_plugin_out(root: Path, denies: fakeredis.FakeRedis) -> None:
    table_on(denies, "pbs:").deny_user(b"alice@example.com", "stolen", 3600)
    said = "alice@example.com is denied, and last_login records no user"
    assert_said_and_nothing_written(root, f"{PLUGIN} --apply", {}, CONFIG, said)


def test_where_redis_is_away_it_is_said_that_denies_are_unknown(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(_settings: object) -> None:
        raise StoreUnavailable("connection refused")

    monkeypatch.setattr("pbs_policy.install.last_login.connect", away)
    said = "note: whether users are denied, whom last_login does not know, is unknown"
    assert_said_and_nothing_written(root, PLUGIN, {}, OK, said)


@pytest.mark.parametrize(("line", "daemon"), [(SCRIPT, "dovecot"), (POSTFIX, "postfix")])
def test_without_the_daemon_it_is_said_what_to_install(
    root: Path, monkeypatch: pytest.MonkeyPatch, line: str, daemon: str
) -> None:
    monkeypatch.setattr("pbs_policy.programs.shutil.which", lambda *_, **__: None)
    said = f"{daemon} is not installed: apt-get install {daemon}"
    assert_said_and_nothing_written(root, line, {}, os.EX_UNAVAILABLE, said)


@pytest.mark.parametrize("word", ["Authorization: a # b", 'Authorization: "x"', "a b", "$x"])
def test_a_secret_that_dovecot_would_read_as_another_is_refused_and_not_shown(root: Path, word: str) -> None:
    line = f"{REPORTS} --set reports_secret_file=ROOT/secret"
    said = "expected a first line of `Authorization: Bearer `"
    output = assert_said_and_nothing_written(root, line, {"/secret": f"{word}\n"}, CONFIG, said)
    assert word not in output.replace("Authorization: Bearer", "")


def test_where_main_cf_was_changed_since_another_check_is_not_put_there(root: Path) -> None:
    pbs(root, f"{POSTFIX} --apply")
    arrange(root, {MAIN_CF: lambda text: text + "relayhost = [relay.example.net]\n"})
    assert_said_and_nothing_written(root, f"{POSTFIX} --apply", {}, OK, "Nothing to do")
    moved = f"{POSTFIX} --apply --set listen=inet:127.0.0.1:4711"
    assert_said_and_nothing_written(root, moved, {}, CONFIG, "was changed since the installation")
