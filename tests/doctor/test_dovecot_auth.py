"""Whom Dovecot lets in, as its configuration says it: forms of 2.3 and 2.4 beyond those of `broken/` and `sound/`."""

from __future__ import annotations

import fakeredis
import pytest

from pbs_policy.doctor.dovecot_auth import check_auth
from pbs_policy.doctor.finding import Finding
from pbs_policy.doctor.last_login import check_users
from pbs_policy.dovecot.doveconf import DovecotConfig, parse_lines, variables
from pbs_policy.host import Host, NotLookedAt
from pbs_policy.settings import Settings, defaults, parse_values
from pbs_policy.settings.sources import Value
from tests.stores import table_on


class Files(Host):
    """A host that has one file, or says why it may not be read."""

    def __init__(self, text: str = "", refusal: str = "No such file or directory") -> None:
        self.text, self.refusal = text, refusal

    def read(self, path: str) -> bytes:
        if not self.text:
            raise NotLookedAt(f"{path}: {self.refusal}")
        return self.text.encode()


def config_of(text: str) -> DovecotConfig:
    lines = tuple(parse_lines(text, "dovecot.conf"))
    return DovecotConfig("dovecot.conf", lines, lines)


def settings_with(**texts: str) -> Settings:
    return parse_values(defaults() | {name: Value(text, "test") for name, text in texts.items()})


def found(text: str, check: str, host: Host | None = None, plugin: tuple[str, ...] = (), **texts: str) -> Finding:
    findings = check_auth(config_of(text), list(plugin), settings_with(**texts), host or Files())
    (finding,) = [each for each in findings if each.check == f"dovecot.{check}"]
    return finding


@pytest.mark.parametrize(
    ("text", "on"),
    [
        ("auth_mechanisms = plain login ANONYMOUS", True),
        ("auth_mechanisms {\n  anonymous = yes\n  plain = yes\n}", True),
        ("auth_mechanisms {\n  anonymous = no\n  plain = yes\n}", False),
        ("auth_mechanisms = plain login", False),
        ("", False),
    ],
)
def test_anonymous_logins_are_named_and_a_fault_where_they_are_recorded(text: str, on: bool) -> None:
    assert found(text, "anonymous", plugin=("imap",)).level == ("wrong" if on else "good")
    beside_the_script = found(text, "anonymous")
    assert beside_the_script.level == "good"
    assert ("such logins are not recorded" in beside_the_script.seen) is on


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("passdb {\n driver = static\n args = user=%u nopassword=y\n}", "wrong"),
        ("passdb {\n driver = static\n args = nopassword\n}", "wrong"),
        ("passdb {\n driver = pam\n}\npassdb {\n driver = passwd-file\n override_fields = nopassword=y\n}", "wrong"),
        ("passdb static {\n fields {\n  nopassword = yes\n }\n}", "wrong"),
        ("passdb guests {\n driver = static\n fields {\n  nopassword = yes\n }\n}", "wrong"),
        ("passdb {\n driver = static\n args = password=secret\n}", "warning"),
        ("passdb static {\n password = secret\n}", "warning"),
        ("passdb masters {\n driver = static\n static_password = secret\n master = yes\n}", "good"),
        ("passdb {\n driver = static\n args = password=secret allow_nets=192.0.2.0/24\n}", "good"),
        ("passdb {\n driver = static\n args = password=\n}", "wrong"),
        ("passdb {\n driver = static\n args = password={PLAIN} user=%u\n}", "wrong"),
        ("passdb {\n driver = static\n args = nopassword=y allow_nets=192.0.2.0/24\n}", "good"),
        ("passdb {\n driver = static\n args = nopassword=y allow_nets=local,2001:db8::/32\n}", "good"),
        ("passdb {\n driver = static\n args = nopassword=y allow_nets=0.0.0.0/0\n}", "wrong"),
        ("passdb {\n driver = static\n args = nopassword=y allow_nets=192.0.2.0/24,::/0\n}", "wrong"),
        ("passdb {\n driver = static\n args = nopassword=y allow_nets=0.0.0.0/1,128.0.0.0/1\n}", "wrong"),
        ("passdb static {\n fields {\n  nopassword = yes\n  allow_nets = %{remote_ip}\n }\n}", "wrong"),
        ("passdb static {\n fields {\n  nopassword = yes\n  allow_nets = 192.0.2.0/24\n }\n}", "good"),
        ("passdb {\n driver = static\n args = nopassword=y\n result_success = continue\n}", "wrong"),
        ("passdb {\n driver = static\n args = nopassword=y\n result_success = continue-ok\n}", "wrong"),
        ("passdb {\n driver = static\n args = nopassword=y\n result_success = continue-fail\n}", "good"),
        ("passdb {\n driver = static\n args = nopassword=y\n mechanisms = cram-md5\n}", "wrong"),
        ("passdb {\n driver = static\n args = nopassword=y\n mechanisms = xoauth2 oauthbearer\n}", "wrong"),
        ("passdb {\n driver = static\n args = nopassword=y\n mechanisms = GSSAPI gss-spnego none\n}", "good"),
        ("passdb static {\n fields {\n  nopassword = yes\n }\n mechanisms_filter {\n  external = yes\n }\n}", "good"),
        ("passdb {\n driver = static\n args = nopassword=y proxy=y host=192.0.2.3\n}", "good"),
        ("passdb {\n driver = static\n args = nopassword=y\n mechanisms = external\n}", "good"),
        ("passdb {\n driver = static\n args = nopassword=y\n mechanisms = external plain\n}", "wrong"),
        ("passdb {\n driver = static\n args = nopassword=y\n skip = unauthenticated\n}", "good"),
        ("auth_ssl_require_client_cert = yes\npassdb {\n driver = static\n args = nopassword=y\n}", "good"),
        ("passdb sql {\n query = SELECT password, 'y' AS nopassword FROM users WHERE u = '%{user}'\n}", "warning"),
        ("passdb {\n driver = passwd-file\n args = /etc/dovecot/users\n}", "good"),
    ],
)
def test_logins_without_a_password_are_found_where_they_can_be_seen(text: str, level: str) -> None:
    assert found(text, "nopassword").level == level


@pytest.mark.parametrize(
    ("driver", "text"),
    [
        ("sql", "password_query = SELECT password, nopassword FROM users WHERE name = '%u'\n"),
        ("ldap", "pass_attrs = uid=user, =nopassword=y\n"),
        ("passwd-file", "kiosk:::::::nopassword=y\n"),
        ("lua", "function auth_passdb_lookup(req)\n  return 0, 'nopassword=y'\nend\n"),
    ],
)
def test_a_database_that_may_answer_nopassword_is_named(driver: str, text: str) -> None:
    args = "file=/etc/dovecot/x blocking=yes" if driver == "lua" else "/etc/dovecot/x"
    passdb = f"passdb {{\n driver = {driver}\n args = {args}\n}}"
    finding = found(passdb, "nopassword", Files(text))
    assert (finding.level, finding.place) == (
        "warning",
        f"/etc/dovecot/x:{1 + text[: text.index('nopassword')].count(chr(10))}",
    )
    assert found(passdb, "nopassword", Files(f"# {text.partition(chr(10))[0]}")).level == "good", "a comment"
    assert found(passdb, "nopassword", Files("", "Permission denied")).level == "unknown"


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("passdb {\n driver = passwd-file\n args = username_format=%n /etc/dovecot/users\n}", "warning"),
        ("passdb {\n driver = passwd-file\n args = username_format=%u /etc/dovecot/users\n}", "good"),
        ("passdb {\n driver = passwd-file\n args = scheme=CRYPT /etc/dovecot/%d/users\n}", "good"),
        ("passdb passwd-file {\n auth_username_format = %{user | username}\n}", "warning"),
        ("passdb passwd-file {\n auth_username_format = %{user|lower}\n}", "good"),
        ("passdb ldap {\n filter = (&(objectClass=person)(uid=%{user|username}))\n}", "warning"),
        ("passdb ldap {\n filter = (&(mail=%{user | lower}))\n}", "good"),
        (
            "passdb ldap {\n filter = (uid=%{user|username})\n fields {\n  user = %{ldap:mail}\n }\n}",
            "good",
        ),
        ("passdb sql {\n query = SELECT p FROM u WHERE n = '%{user|username}' AND d = '%{user|domain}'\n}", "good"),
        ("passdb sql {\n query = SELECT mail AS user, p FROM u WHERE n = '%{user|username}'\n}", "good"),
        ("passdb sql {\n query = SELECT '%{user}' AS user, p FROM u WHERE n = '%{user|username}'\n}", "warning"),
        ("passdb sql {\n query = SELECT p FROM user Where n = '%{user | lower | username}'\n}", "warning"),
        (
            "auth_username_format = %Ln\npassdb {\n driver = passwd-file\n args = username_format=%n /etc/x\n}",
            "good",
        ),
        (
            "auth_username_format = %{user | username | lower}\npassdb sql {\n query = SELECT p WHERE "
            "n = '%{user | username}'\n}",
            "good",
        ),
    ],
)
def test_a_lookup_without_the_domain_is_found_unless_the_name_is_corrected(text: str, level: str) -> None:
    assert found(text, "domains").level == level


@pytest.mark.parametrize(
    ("query", "level"),
    [
        ("SELECT password FROM users WHERE userid = '%n'", "warning"),
        ("SELECT password FROM users WHERE userid = '%Ln'", "warning"),
        ("SELECT password FROM users \\\n  WHERE userid = '%{username}'", "warning"),
        ("SELECT password FROM users WHERE userid = '%n' AND domain = '%d'", "good"),
        ("SELECT userid AS username, domain, password FROM users WHERE userid = '%n'", "good"),
        ("SELECT password FROM users WHERE userid = '%u'", "good"),
    ],
)
def test_the_query_in_the_databases_own_file_is_read(query: str, level: str) -> None:
    passdb = "passdb {\n driver = sql\n args = /etc/dovecot/sql.conf\n}"
    finding = found(passdb, "domains", Files(f"driver = mysql\npassword_query = {query}\n"))
    assert finding.level == level
    assert finding.place == ("/etc/dovecot/sql.conf:2" if level == "warning" else "")


def test_what_lets_nobody_in_or_is_corrected_is_no_fault() -> None:
    of_users = "passdb {\n driver = pam\n}\nuserdb {\n driver = static\n args = uid=vmail home=/var/vmail/%d/%n\n}"
    assert found(of_users, "domains").level == "good"
    text = "passdb passwd-file {\n auth_username_format = %{user | username}\n}"
    assert found(text, "domains", login_domains="example.com").level == "good"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("%u %n %d", {"user", "username", "domain"}),
        ("%Ln@%Ld", {"username", "domain"}),
        ("%.3n %-2Lu", {"username", "user"}),
        ("%{user} %{user | lower} %{rip}", {"user", "rip"}),
        ("%{user | username | lower}", {"username"}),
        ("100%% sure", {"%%"}),
        ("no variables", set()),
    ],
)
def test_variables_are_known_by_the_name_that_counts(text: str, names: set[str]) -> None:
    assert variables(text) == names


LAST_LOGIN = """\
protocol imap {
  mail_plugins = last_login
}
plugin {
  last_login_dict = redis:host=127.0.0.1:port=6379:expire_secs=1800
  last_login_key = pbs:login:%{rip}
}
"""


def test_a_denied_user_is_a_fault_where_last_login_records_no_user() -> None:
    table, config = table_on(fakeredis.FakeRedis(), "pbs:"), config_of(LAST_LOGIN)
    assert [each.level for each in check_users(config, settings_with(), table)] == ["good"]
    table.deny_user(b"alice@example.com", "stolen", 3600)
    (finding,) = check_users(config, settings_with(), table)
    assert (finding.level, finding.check) == ("wrong", "dovecot.last_login_users")
    assert "alice@example.com is denied" in finding.seen
    not_recorded = config_of(LAST_LOGIN.replace("pbs:login:%{rip}", "last-login/%u"))
    assert list(check_users(not_recorded, settings_with(sender_match="domain"), table)) == []
