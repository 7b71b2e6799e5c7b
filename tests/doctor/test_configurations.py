"""How doctor reads Postfix's and Dovecot's configurations, and who may read what: the parts under the checks."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbs_policy.dovecot.doveconf import ConfigLine, DovecotConfig, parse_lines, read_dovecot
from pbs_policy.dovecot.last_login import parse_seconds
from pbs_policy.host import EXECUTE, READ, WRITE, Account, ConfigurationFault, Host, NotLookedAt, Owned, ProgramOutput
from pbs_policy.postfix.configuration import PostfixConfig, read_postfix
from pbs_policy.postfix.listener import Listener
from pbs_policy.postfix.restrictions import (
    PolicyCheck,
    find_refusal,
    is_at,
    parse_policy_check,
    parse_restrictions,
    words,
)
from pbs_policy.programs import find_program

LISTS = st.text(alphabet="ab ,{}=\t\n", max_size=60)


def test_restrictions_are_split_at_commas_and_blanks_outside_of_braces() -> None:
    text = "permit_mynetworks check_policy_service { inet:a:1, timeout=2s },\n reject_rbl_client a.example, reject"
    assert [f"{each.name} {each.argument}".rstrip() for each in parse_restrictions(text)] == [
        "permit_mynetworks", "check_policy_service { inet:a:1, timeout=2s }", "reject_rbl_client a.example", "reject"
    ]  # fmt: skip


def test_nested_braces_hold_a_value_with_blanks_and_without_them_it_is_a_fault() -> None:
    asked = parse_policy_check("inet:127.0.0.1:10040, timeout=2s { default_action = DEFER_IF_REJECT 4.3.0 later }")
    attributes = {"timeout": "2s", "default_action": "DEFER_IF_REJECT 4.3.0 later"}
    assert asked == PolicyCheck("inet:127.0.0.1:10040", attributes)
    assert "'4.3.0'" in parse_policy_check("inet:a:1, default_action=DEFER_IF_REJECT 4.3.0").fault


@given(LISTS)
def test_no_list_of_restrictions_is_too_odd_to_be_read(text: str) -> None:
    for restriction in parse_restrictions(text):
        parse_policy_check(restriction.argument)


@given(st.lists(st.text(alphabet="ab=:", min_size=1, max_size=5)))
def test_words_without_braces_are_what_was_joined(items: list[str]) -> None:
    assert words(", ".join(items)) == items


@pytest.mark.parametrize(
    ("endpoint", "listener", "expected"),
    [
        ("inet:127.0.0.1:10040", "inet:127.0.0.1:10040", True),
        ("inet:localhost:10040", "inet:127.0.0.1:10040", True),
        ("127.0.0.1:10040", "inet:127.0.0.1:10040", True),
        ("inet:[::1]:10040", "inet:[::1]:10040", True),
        ("inet:[::1]:10040", "inet:127.0.0.1:10040", False),
        ("inet:192.0.2.2:10040", "inet:0.0.0.0:10040", True),
        ("inet:127.0.0.1:10041", "inet:127.0.0.1:10040", False),
        ("inet:192.0.2.2:10040", "inet:127.0.0.1:10040", False),
        ("unix:pbs-policy/policy", "unix:/var/spool/postfix/pbs-policy/policy", True),
        ("unix:/pbs-policy/policy", "unix:/var/spool/postfix/pbs-policy/policy", True),
        ("unix:/run/policy", "unix:/run/policy", True),
        ("unix:private/greylist", "unix:/run/policy", False),
        ("unix:pbs-policy/policy", "inet:127.0.0.1:10040", False),
        ("inet:127.0.0.1:10040", "unix:/run/policy", False),
    ],
)
def test_an_endpoint_is_told_to_be_ours(endpoint: str, listener: str, expected: bool) -> None:
    assert is_at(endpoint, Listener.parse(listener), "/var/spool/postfix") is expected


needs_postfix = pytest.mark.skipif(
    not find_program("postconf"), reason="postfix is not installed: apt-get install postfix"
)


@needs_postfix
def test_the_last_assignment_in_main_cf_is_the_place(tmp_path: Path) -> None:
    (tmp_path / "main.cf").write_text("mynetworks = 127.0.0.1\n# more\nmynetworks =\n  192.0.2.0/24\n")
    entry = "smtp inet n - y - - smtpd\n  -o { mynetworks = 192.0.2.2 }\n  -o a=b -o c=d\n"
    (tmp_path / "master.cf").write_text(entry)
    config = read_postfix(Host(), str(tmp_path))
    (service,) = config.services
    assert service.chrooted
    assert (config.value("mynetworks"), config.value("mynetworks", service)) == ("192.0.2.0/24", "192.0.2.2")
    assert config.place("mynetworks") == f"{tmp_path}/main.cf:3"
    assert config.place("mynetworks", service) == f"{tmp_path}/master.cf:2"
    assert config.place("c", service) == f"{tmp_path}/master.cf:3"
    assert config.place("smtpd_delay_reject", service) == f"{tmp_path}/main.cf"


def test_a_program_that_is_missing_was_not_looked_at() -> None:
    with pytest.raises(NotLookedAt, match="pbs-no-such-program is not installed"):
        Host().run("pbs-no-such-program")


def test_a_class_that_names_itself_comes_to_an_end() -> None:
    values = {"smtpd_restriction_classes": "a b", "a": "b, reject", "b": "a, permit", "smtpd_relay_restrictions": "a"}
    config = PostfixConfig("main.cf", values, {}, ())
    assert [each.name for each in config.restrictions("smtpd_relay_restrictions")] == ["a", "permit", "reject"]


@pytest.mark.parametrize(
    ("text", "refusing"),
    [
        ("permit_mynetworks, Reject_Unauth_Destination", "reject_unauth_destination"),
        ("warn_if_reject reject_unauth_destination, reject", "reject"),
        ("warn_if_reject, permit_mynetworks, defer_unauth_destination", "defer_unauth_destination"),
        ("warn_if_reject Ours, defer", "defer"),
        ("Ours, defer", "reject"),
        ("ours, defer_if_permit", None),
        ("check_client_access reject, permit", None),
    ],
)
def test_what_refuses_is_known_as_smtpd_knows_it(text: str, refusing: str | None) -> None:
    values = {"smtpd_restriction_classes": "Ours", "Ours": "reject", "smtpd_relay_restrictions": text}
    restrictions = PostfixConfig("main.cf", values, {}, ()).restrictions("smtpd_relay_restrictions")
    at = find_refusal(restrictions)
    assert (None if at is None else restrictions[at].name) == refusing


@pytest.mark.parametrize(
    ("argument", "mend"),
    [
        ("127.0.0.1:10040", "inet:127.0.0.1:10040"),
        ("{ [::1]:10040, timeout=2s }", "inet:[::1]:10040"),
        ("INET:127.0.0.1:10040", ""),
        ("localhost", ""),
    ],
)
def test_an_endpoint_without_a_transport_is_a_fault(argument: str, mend: str) -> None:
    check = parse_policy_check(argument)
    assert ("is missing" if mend else "is neither inet:HOST:PORT") in check.fault
    assert check.mend == mend


def test_dovecot_lines_know_their_blocks_and_places() -> None:
    text = """\
a = 1  # a comment
service "imap" {
  executable = imap \\
    imap-postlogin
  unix_listener "srv.imap/%{pid}" {
    mode = 0600
  }
}
b = "two words"
"""
    assert list(parse_lines(text, "f")) == [
        ConfigLine((), "a", "1", "f:1"),
        ConfigLine(("service imap",), "", "", "f:2"),
        ConfigLine(("service imap",), "executable", "imap imap-postlogin", "f:3"),
        ConfigLine(("service imap", "unix_listener srv.imap/%{pid}"), "", "", "f:5"),
        ConfigLine(("service imap", "unix_listener srv.imap/%{pid}"), "mode", "0600", "f:6"),
        ConfigLine((), "b", "two words", "f:9"),
    ]


@given(st.text(alphabet='ab={}" #\\\n!', max_size=80))
def test_no_dovecot_configuration_is_too_odd_to_be_read(text: str) -> None:
    for line in parse_lines(text, "f"):
        assert line.place.startswith("f:")


class Conf(Host):
    """A doveconf that says `out`, or ends with this error."""

    def __init__(self, out: str = "", error: str = "") -> None:
        self.said = ProgramOutput(out, f"doveconf: Fatal: Error in configuration file /etc/d.conf{error}\n", 89)
        if not error:
            self.said = ProgramOutput(out, "", 0)

    def run(self, program: str, *_: str) -> ProgramOutput:
        assert program == "doveconf"
        return self.said


def test_a_file_that_doveconf_may_not_read_was_not_looked_at() -> None:
    with pytest.raises(NotLookedAt, match="Permission denied"):
        read_dovecot(Conf(error=" line 3: Couldn't open include file x: Permission denied"))


@pytest.mark.parametrize("said", [" line 3: Unknown setting: x", ": Missing '}' (section started at /etc/d.conf:3)"])
def test_a_fault_that_doveconf_finds_has_its_place(said: str) -> None:
    with pytest.raises(ConfigurationFault) as caught:
        read_dovecot(Conf(error=said))
    assert caught.value.place == "/etc/d.conf:3"


def test_includes_are_read_where_they_stand_and_the_last_assignment_counts(tmp_path: Path) -> None:
    main = tmp_path / "dovecot.conf"
    main.write_text(
        "ssl = no\nservice imap {\n  !include part\n}\n!include_try conf.d/*.conf\n!include_try nowhere\n"
    )
    (tmp_path / "part").write_text("executable = imap one\n")
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "20.conf").write_text("!include_try 20.conf\nservice imap {\n  executable = imap two\n}\n")
    config = read_dovecot(Conf("service imap {\n  executable = imap two\n}\n"), str(main))
    assert config.place(("service imap",), "executable").endswith("/conf.d/20.conf:3")
    assert config.place(("service imap",), "user").endswith("/conf.d/20.conf:2")
    assert config.place(("service pop3",), "user") == str(main)
    assert config.written[2] == ConfigLine(("service imap",), "executable", "imap one", f"{tmp_path}/part:1")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("protocols = imap pop3 lmtp", ["pop3", "imap"]),
        ("protocols = lmtp imap", ["imap"]),
        ("protocols {\n  imap = yes\n  pop3 = no\n}", ["imap"]),
        ("", ["pop3", "imap"]),
    ],
)
def test_the_protocols_are_known_as_2_3_and_2_4_write_them(text: str, expected: list[str]) -> None:
    assert DovecotConfig("f", tuple(parse_lines(text, "f")), ()).protocols() == expected


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30 mins", 1800), ("1800", 1800), ("1800s", 1800), ("8 hours", 28800), ("1 week", 604800), ("1d", 86400),
     ("infinite", None), ("", None), ("30 msecs", None)],
)  # fmt: skip
def test_dovecots_times_are_read(text: str, seconds: int | None) -> None:
    assert parse_seconds(text) == seconds


def test_what_a_configuration_names_and_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "users")
    for name in ("users", "."):
        with pytest.raises(NotLookedAt, match=r"is not a file|Is a directory"):
            Host().read(str(tmp_path / name))


SOMEBODY = Account("somebody", 4711, 4712, frozenset({4712, 4713}))


@pytest.mark.parametrize(
    ("mode", "uid", "gid", "need", "verb"),
    [
        (0o644, 0, 0, READ, ""),
        (0o640, 0, 0, READ, "read"),
        (0o640, 0, 4713, READ, ""),
        (0o400, 4711, 0, READ, ""),
        (0o044, 4711, 0, READ, "read"),  # the owner's own bits count, not those of the others
        (0o644, 0, 0, EXECUTE, "execute"),
        (0o755, 0, 0, READ | EXECUTE, ""),
        (0o660, 0, 0, READ | WRITE, "connect to"),
    ],
)
def test_access_is_judged_by_owner_group_and_mode(mode: int, uid: int, gid: int, need: int, verb: str) -> None:
    class Described(Host):
        def owned(self, path: str) -> Owned:
            return Owned(0o100000 | mode, uid, gid) if path == "/a/file" else Owned(0o40755, 0, 0)

    said = Described().obstacle(SOMEBODY, "/a/file", need)
    assert said == (f"somebody may not {verb} /a/file (mode {mode:04o})" if verb else "")


def test_a_folder_on_the_way_must_be_open_too(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o700)
    (folder / "file").touch(mode=0o644)
    assert "somebody may not search" in Host().obstacle(SOMEBODY, str(folder / "file"), READ)
    assert Host().obstacle(Account("root", 0, 0, frozenset({0})), str(folder / "file"), READ) == ""
    assert "does not exist" in Host().obstacle(Account("root", 0, 0, frozenset()), str(folder / "none"), READ)


def test_an_account_of_this_host_is_found_with_its_groups() -> None:
    account = Host().account("root")
    assert account.uid == 0
    assert account.primary_gid in account.gids
    with pytest.raises(KeyError):
        Host().account(f"pbs-nobody-{os.getpid()}")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as others: run this as root")
def test_what_dovecot_starts_has_the_groups_that_dovecot_gives_it_alone(tmp_path: Path) -> None:
    mail = grp.getgrnam("mail").gr_gid
    own = pwd.getpwnam("daemon").pw_gid
    accounts = [Host().account("daemon", groups) for groups in (("",), ("", "mail"), ("mail",))]
    assert [(each.primary_gid, each.gids) for each in accounts] == [
        (own, frozenset({own})), (own, frozenset({own, mail})), (mail, frozenset({mail}))
    ]  # fmt: skip
    file = tmp_path / "file"
    file.write_text("said")
    os.chown(file, 0, mail)
    file.chmod(0o640)
    for each in (tmp_path, *tmp_path.parents[:-2]):
        each.chmod(each.stat().st_mode | 0o711)
    with pytest.raises(NotLookedAt, match="Permission denied"):
        Host().read_as("daemon", str(file), ("",))
    assert Host().read_as("daemon", str(file), ("", "mail")) == b"said"
    with pytest.raises(NotLookedAt, match="no such group"), Host().acting_as("daemon", ("", "pbs-none")):
        pass
