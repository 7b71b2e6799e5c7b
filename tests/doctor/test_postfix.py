"""Doctor's checks of Postfix, one by one, on configurations that are made here."""

from __future__ import annotations

from pathlib import Path

import fakeredis
import pytest

from pbs_policy.demo.postfix import PrivatePostfix
from pbs_policy.doctor import Doctor
from pbs_policy.doctor.entry import SmtpdEntry
from pbs_policy.doctor.finding import Finding
from pbs_policy.doctor.postfix import check_relaying, check_running, check_smtpd
from pbs_policy.doctor.postfix_lists import check_rewriting
from pbs_policy.host import Host, ProgramOutput
from pbs_policy.postfix.configuration import PostfixConfig, read_postfix
from pbs_policy.postfix.listener import Listener
from pbs_policy.postfix.standalone import is_running, why_smtpd_ends
from pbs_policy.programs import find_program, missing
from pbs_policy.settings import load
from tests.stores import table_on

LISTENERS = (Listener("127.0.0.1", 10040),)
needs_postfix = pytest.mark.skipif(
    not find_program("postconf"), reason="postfix is not installed: apt-get install postfix"
)


def entry_of(lines: dict[str, list[int]] | None = None, **values: str) -> SmtpdEntry:
    return SmtpdEntry(PostfixConfig("main.cf", values, lines or {}, ()), None, LISTENERS, Host())


def relaying(entry: SmtpdEntry) -> dict[str, Finding]:
    """What is found, by check."""
    return {each.check: each for each in check_relaying(entry)}


@pytest.mark.parametrize(
    ("action", "level", "seen"),
    [
        ("DEFER_IF_REJECT 4.3.0 later", "good", ""),
        ("defer", "good", ""),
        ("OK", "wrong", "an open relay"),
        ("relay", "wrong", "an open relay"),
        ("permit", "wrong", "an open relay"),
        ("1200", "wrong", "an open relay"),
        ("450", "wrong", "an open relay"),  # a number alone is OK, whatever it begins with: access(5)
        ("450 4.3.0 later", "warning", "configuration problem"),
        ("open", "wrong", "an open relay"),
        ("Inner", "wrong", "an open relay"),
        ("permit_mynetworks, reject", "warning", "decides who relays"),
        ("closed", "warning", "decides who relays"),
        ("DUNNO", "warning", "loses its message"),
        ("DEFER_IF_PERMIT 4.3.0 later", "warning", "loses its message"),
        ("554 no", "warning", "loses its message"),
    ],
)
def test_what_smtpd_does_while_the_service_is_down_is_known_as_smtpd_knows_it(
    action: str, level: str, seen: str
) -> None:
    check = f"check_policy_service {{ inet:127.0.0.1:10040, {{ default_action = {action} }} }}"
    entry = entry_of(
        smtpd_relay_restrictions=f"permit_auth_destination, {check}, reject", queue_directory="/var/spool/postfix",
        smtpd_restriction_classes="open Inner closed", open="permit_mynetworks, Inner", Inner="permit",
        closed="check_client_access cidr:/etc/postfix/clients, reject",
    )  # fmt: skip
    found = relaying(entry)["postfix.default_action"]
    assert (found.level, seen in found.seen) == (level, True), found


@pytest.mark.parametrize("name", ["smtpd_relay_restrictions", "smtpd_sender_restrictions", "ours"])
def test_a_word_that_is_no_restriction_is_named_where_it_stands(name: str) -> None:
    values = {"smtpd_restriction_classes": "ours", "ours": "reject", "smtpd_relay_restrictions": "ours, reject"}
    values[name] = "permit_mynetwork, " + values.get(name, "")
    found = relaying(entry_of({name: [7]}, **values))["postfix.syntax"]
    assert (found.level, found.place, "permit_mynetwork in smtpd_" in found.seen) == ("wrong", "main.cf:7", True)


def folder_with(directory: Path, main_cf: str) -> PostfixConfig:
    (directory / "main.cf").write_text(f"compatibility_level = 3.6\n{main_cf}\n")
    (directory / "master.cf").write_text("smtp inet n - y - - smtpd\n")
    return read_postfix(Host(), str(directory))


LIST = "smtpd_relay_restrictions = permit_mynetworks, {}, reject_unauth_destination"


@needs_postfix
@pytest.mark.parametrize(
    ("main_cf", "why"),
    [
        (LIST.format("permit_sasl_authenticated"), ""),
        (LIST.format("reject") + "\nvirtual_mailbox_domains = proxy:mysql:/etc/postfix/domains.cf", ""),
        (LIST.format("check_policy_service 127.0.0.1:10040"), "invalid transport name: 127.0.0.1"),
        (LIST.format("check_policy_service { inet:127.0.0.1:10040, tries=2 }"), 'unknown option: "tries = 2"'),
        ("smtpd_relay_restrictions = permit_mynetworks", "specify at least one working instance of"),
        (LIST.format("reject") + "\nsmtpd_helo_required = maybe", "bad boolean configuration"),
        (LIST.format("reject") + "\nmail_owner = pbs-nobody", "mail_owner"),
    ],
)
def test_the_real_smtpd_says_why_it_ends(tmp_path: Path, main_cf: str, why: str) -> None:
    queue = tmp_path / "queue"
    config = folder_with(tmp_path, f"{main_cf}\nqueue_directory = {queue}")
    said = why_smtpd_ends(Host(), config, config.main_service())
    assert why in said if why else said == ""
    assert not queue.exists(), "the queue directory is left alone"


@needs_postfix
@pytest.mark.parametrize(
    ("main_cf", "place", "seen"),
    [
        (None, "/main.cf", "No such file or directory"),
        ("mynetworks = 127.0.0.1\ncheck_policy_service inet:127.0.0.1:10040,", "/main.cf:2", "missing '='"),
        ("inet_protocols = ipv9", "/main.cf", "unknown inet_protocols value"),
    ],
)
def test_a_configuration_that_postfix_does_not_read_is_wrong(
    tmp_path: Path, main_cf: str | None, place: str, seen: str
) -> None:
    if main_cf is not None:
        (tmp_path / "main.cf").write_text(main_cf + "\n")
        (tmp_path / "master.cf").write_text("smtp inet n - y - - smtpd\n")
    settings, values = load(Path("/dev/null"))
    (found,) = Doctor(settings, values, str(tmp_path)).examine_postfix()
    assert (found.check, found.level, found.place) == ("postfix.configuration", "wrong", f"{tmp_path}{place}")
    assert seen in found.seen


@pytest.mark.parametrize(
    ("values", "user", "level"),
    [
        ({}, "alice@example.com", "good"),
        ({"masquerade_domains": "example.com"}, "", "good"),
        ({"masquerade_domains": "example.com"}, "alice@example.com", "warning"),
        ({"sender_canonical_maps": "hash:/etc/postfix/senders"}, "alice@example.com", "warning"),
        ({"smtp_generic_maps": "hash:/etc/postfix/generic"}, "alice@example.com", "warning"),
    ],
)
@pytest.mark.parametrize("in_file", [True, False])
def test_senders_that_are_rewritten_while_a_user_is_denied_deserve_a_warning(
    tmp_path: Path, values: dict[str, str], user: str, level: str, in_file: bool
) -> None:
    file = tmp_path / "denies"
    file.write_text(f"192.0.2.7\n{user if in_file else ''}\n")
    settings, _ = load(Path("/dev/null"), overrides=[f"denies={file}"])
    table = table_on(fakeredis.FakeRedis(), "pbs:")
    if user and not in_file:
        table.deny_user(user.encode(), "stolen", 3600)
    config = PostfixConfig("main.cf", values, {}, ())
    (found,) = check_rewriting(config, settings, table)
    assert found.level == level


class Master(Host):
    """A host whose `master -t` ends with this status: 1 where the lock is held."""

    def __init__(self, status: int) -> None:
        self.status = status

    def run(self, program: str, *arguments: str) -> ProgramOutput:
        assert (program, arguments[1:]) == ("env", ("/usr/lib/postfix/sbin/master", "-t"))
        return ProgramOutput("", "", self.status)


@pytest.mark.parametrize(
    ("uid", "why", "level"),
    [(1000, "open /etc/postfix/sql.cf: Permission denied", "unknown"), (1000, "no such word", "wrong"),
     (0, "open /etc/postfix/sql.cf: Permission denied", "wrong"), (1000, "", "good")],
)  # fmt: skip
def test_what_smtpd_may_not_read_as_somebody_else_than_root_is_no_fault(
    monkeypatch: pytest.MonkeyPatch, uid: int, why: str, level: str
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: uid)
    monkeypatch.setattr("pbs_policy.doctor.postfix.why_smtpd_ends", lambda *_: why)
    (found,) = check_smtpd(entry_of())
    assert found.level == level


@pytest.mark.parametrize(("status", "level"), [(1, "good"), (0, "wrong"), (127, "unknown")])
def test_a_postfix_that_does_not_run_is_not_called_good(status: int, level: str) -> None:
    config = PostfixConfig("/etc/postfix/main.cf", {"daemon_directory": "/usr/lib/postfix/sbin"}, {}, ())
    (found,) = check_running(config, Master(status))
    assert found.level == level


@pytest.mark.skipif(missing("postfix") is not None, reason=missing("postfix") or "")
def test_a_real_postfix_runs_until_it_is_ended_and_smtpd_is_tried_beside_it(tmp_path: Path) -> None:
    with PrivatePostfix(tmp_path, fragment=LIST.format("permit_sasl_authenticated") + "\n") as postfix:
        config = read_postfix(Host(), str(postfix.place / "conf"))
        assert is_running(Host(), config)
        assert why_smtpd_ends(Host(), config, config.main_service()) == ""
    folder_with(tmp_path, f"queue_directory = {tmp_path}")
    assert not is_running(Host(), read_postfix(Host(), str(tmp_path)))
