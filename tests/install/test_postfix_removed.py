"""`pbs-policy install-postfix --remove` after changes by hand: our words are gone, everything else is as it would be
had they never been there; and what was configured by hand goes the same way."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from pbs_policy.shipped import shipped
from tests.install.support import (
    DEBIAN_MAIN_CF,
    INET_CHECK,
    MAIN_CF,
    MASTER,
    MASTER_CF,
    SETTINGS,
    Edit,
    Files,
    arrange,
    main_cf,
    pbs,
    postconf,
    snapshot,
)

APPLY, REMOVE = "install-postfix --apply", "install-postfix --remove --apply"
SUBMISSION = "submission inet n - y - - smtpd\n  -o syslog_name=postfix/submission\n"
IN_MASTER = "check_policy_service,inet:127.0.0.1:10040"

def replaced(pattern: str, new: str) -> Edit:
    return lambda cf: re.sub(pattern, new, cf)


def at_end(text: str) -> Edit:
    return lambda cf: cf + text


BY_HAND: dict[str, Files] = {
    "a parameter more at the end": {MAIN_CF: at_end("relayhost = [relay.example.net]\n")},
    "a parameter changed": {MAIN_CF: replaced("biff = no", "biff = yes")},
    "a line gone": {MAIN_CF: replaced(r"recipient_delimiter.*\n", "")},
    "a comment above the list": {MAIN_CF: replaced(r"(?m)^(smtpd_relay)", r"# who may relay\n\1")},
    "a restriction more before the check": {
        MAIN_CF: replaced("permit_mynetworks", "permit_mynetworks reject_unknown_sender_domain")
    },
    "the list over several lines": {
        MAIN_CF: replaced("permit_mynetworks permit_sasl", "\n  permit_mynetworks\n# who log in\n  permit_sasl")
    },
    "another refusal at the end": {MAIN_CF: replaced(r"defer_(unauth_destination\n)", r"reject_\1")},
    "a list of its own besides": {MAIN_CF: at_end("smtpd_client_restrictions = permit_mynetworks\n")},
    "submission in master.cf": {MASTER: at_end(SUBMISSION)},
    "both at once, without an end of line": {MAIN_CF: at_end("mail_name = M"), MASTER: at_end(SUBMISSION)},
    "a class of restrictions": {
        MAIN_CF: at_end("smtpd_restriction_classes = strict\nstrict = reject_unlisted_sender\n")
    },
}


def effective(root: Path) -> tuple[str, ...]:
    """What Postfix reads, blanks and commas aside."""
    folder = root / "etc/postfix"
    return tuple(" ".join(re.split(r"[\s,]+", postconf(folder, option))) for option in ("-n", "-M", "-P"))


@pytest.mark.parametrize("done", BY_HAND)
def test_after_a_change_by_hand_our_words_are_gone_and_all_else_is_as_it_would_be_without_them(
    root: Path, done: str
) -> None:
    arrange(root, BY_HAND[done])
    expected = effective(root)
    arrange(root, {MAIN_CF: (DEBIAN_MAIN_CF, 0o640), MASTER: MASTER_CF})
    assert pbs(root, APPLY).status == 0
    arrange(root, BY_HAND[done])
    shown = pbs(root, "install-postfix --remove")
    assert re.search(r"(?m)^-.*10040", shown.output)
    removed = pbs(root, REMOVE)
    assert (removed.status, removed.output) == (
        0,
        f"{'restored' if done == 'submission in master.cf' else 'our words taken out'}: {root}/etc/postfix/main.cf\n"
        "Now: postfix reload\n",
    )
    assert effective(root) == expected
    assert "10040" not in (root / "etc/postfix/main.cf").read_text()
    assert not (root / "var/lib").exists(), "the record is gone"
    assert "Nothing to remove" in pbs(root, REMOVE).output


EXAMPLE = shipped("postfix-examples/main.cf.inet").read_text()
BY_HAND_ALONE = {
    "the example": (EXAMPLE, ""),
    "the example for a socket": (shipped("postfix-examples/main.cf.unix").read_text(), ""),
    "in one line": ("smtpd_relay_restrictions = permit_mynetworks, " + INET_CHECK + ", reject\n", ""),
    "a mere warning": (
        "smtpd_relay_restrictions = permit_mynetworks warn_if_reject\n  " + INET_CHECK + " reject\n",
        "",
    ),
    "without inet:": (f"smtpd_relay_restrictions =\n  {INET_CHECK.replace('inet:', '')}\n  reject\n", ""),
    "by another name of the host": (
        "smtpd_relay_restrictions = check_policy_service inet:localhost:10040, reject\n",
        "",
    ),
    "by a parameter": ("p = inet:127.0.0.1:10040\nsmtpd_relay_restrictions = check_policy_service $p, reject\n", ""),
    "in a parameter": (f"p = {INET_CHECK}\nsmtpd_relay_restrictions = $p, reject\n", ""),
    "twice": (f"smtpd_relay_restrictions = {INET_CHECK}, reject\nsmtpd_recipient_restrictions = {INET_CHECK}\n", ""),
    "in a class": (f"smtpd_restriction_classes = ours\nours = {INET_CHECK} permit_mynetworks\n", ""),
    "at submission": ("", f"{SUBMISSION}  -o smtpd_relay_restrictions=permit_mynetworks,{IN_MASTER},reject\n"),
    "at submission, in braces": ("", f"{SUBMISSION}  -o {{ smtpd_relay_restrictions = {INET_CHECK}, reject }}\n"),
}


@pytest.mark.parametrize("written", BY_HAND_ALONE)
def test_what_was_configured_by_hand_is_taken_out_too(root: Path, written: str) -> None:
    in_main, in_master = BY_HAND_ALONE[written]
    theirs = "smtpd_sender_restrictions = check_policy_service { inet:127.0.0.1:10023, timeout = 5s }\n"
    arrange(root, {MAIN_CF: main_cf(theirs + in_main), MASTER: MASTER_CF + in_master})
    removed = pbs(root, REMOVE)
    assert removed.status == 0
    assert removed.output.startswith(f"our words taken out: {root}/etc/postfix/")
    read = " ".join(effective(root))
    assert "10040" not in read
    assert "pbs-policy" not in read
    assert "warn_if_reject" not in read, "it would open the relay"
    assert theirs in (root / "etc/postfix/main.cf").read_text()
    assert "Nothing to remove" in pbs(root, REMOVE).output


def test_a_class_that_would_be_empty_is_refused_with_what_to_do(root: Path) -> None:
    arrange(root, {MAIN_CF: main_cf(f"smtpd_restriction_classes = ours\nours = {INET_CHECK}\n")})
    before = snapshot(root)
    refused = pbs(root, REMOVE)
    assert refused.status == os.EX_CONFIG
    assert "main.cf:9: ours is a restriction class that has nothing but our check" in refused.output
    assert "Everything was put back." in refused.output
    assert snapshot(root) == before


def test_the_other_instances_are_looked_at_too(root: Path) -> None:
    other = root / "etc/postfix-out"
    arrange(
        root,
        {
            MAIN_CF: main_cf("multi_instance_directories = /etc/postfix-out\n"),
            "/etc/postfix-out/main.cf": f"smtpd_relay_restrictions = {INET_CHECK}, reject\n",
            "/etc/postfix-out/master.cf": MASTER_CF,
        },
    )
    assert pbs(root, APPLY).status == 0
    assert pbs(root, REMOVE).status == 0
    assert postconf(other, "-h", "smtpd_relay_restrictions") == "reject"


RELAY_LINE = "smtpd_relay_restrictions = permit_mynetworks, reject_unauth_destination"


@pytest.mark.parametrize("last", ["recipient_delimiter = +", RELAY_LINE], ids=["another line", "the list"])
@pytest.mark.parametrize("added", ["message_size_limit = 99\n", "smtpd_helo_restrictions = permit", "# mine\n", ""])
def test_a_last_line_without_its_end_is_a_line_of_its_own_afterwards(root: Path, last: str, added: str) -> None:
    arrange(root, {MAIN_CF: main_cf(last)})
    place = root / "etc/postfix/main.cf"
    before = place.read_text()
    assert pbs(root, APPLY).status == 0
    arrange(root, {MAIN_CF: lambda cf: cf + added})
    assert pbs(root, REMOVE).status == 0
    assert place.read_text() == before + ("\n" + added if added else "")
    assert "is not set" not in postconf(root / "etc/postfix", "-n")


def test_a_line_that_continues_ours_never_continues_another_one(root: Path) -> None:
    arrange(root, {MAIN_CF: main_cf("")})
    assert pbs(root, APPLY).status == 0
    arrange(root, {MAIN_CF: lambda cf: cf + "# mine\n  permit_sasl_authenticated\n"})
    assert pbs(root, REMOVE).status == 0
    assert postconf(root / "etc/postfix", "-h", "recipient_delimiter") == "+"
    assert postconf(root / "etc/postfix", "-h", "smtpd_relay_restrictions").endswith("permit_sasl_authenticated")


def test_texts_of_the_site_that_are_no_restrictions_stay(root: Path) -> None:
    texts = "header_note = check_policy_service inet:127.0.0.1:10040 is our own text\n"
    option = f"  -o {{ header_note = {INET_CHECK} }}\n"
    in_main = f"{texts}smtpd_relay_restrictions = ${{p}}, reject\np = $q\nq = {INET_CHECK}\n"
    arrange(root, {MAIN_CF: main_cf(in_main), MASTER: MASTER_CF + SUBMISSION + option})
    assert pbs(root, REMOVE).status == 0
    left = (root / "etc/postfix/main.cf").read_text()
    assert texts in left
    assert left.count("10040") == 1
    assert option in (root / "etc/postfix/master.cf").read_text()


def test_where_a_line_of_the_site_would_be_lost_nothing_is_removed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pbs(root, APPLY).status == 0
    arrange(root, {MAIN_CF: lambda cf: cf + "message_size_limit = 99\n"})
    before = snapshot(root / "etc")
    monkeypatch.setattr(
        "pbs_policy.install.undo._without_difference",
        lambda _data, entry: entry.before.data.rstrip() + b"message_size_limit = 99\n",
    )
    refused = pbs(root, REMOVE)
    assert refused.status == os.EX_CONFIG
    assert "what is not ours would be changed" in refused.output
    assert snapshot(root / "etc") == before


@pytest.mark.parametrize("fault", ["settings", "main.cf"])
def test_a_fault_elsewhere_keeps_nothing_in(root: Path, fault: str) -> None:
    pbs(root, f"{APPLY} --set listen=inet:127.0.0.1:4711")
    if fault == "settings":
        arrange(root, {SETTINGS: "no_such_setting = 1\n", MAIN_CF: at_end("mail_name = M\n")})
    else:
        arrange(root, {MAIN_CF: lambda cf: "  in_column_1 = 1\n" + cf})
    removed = pbs(root, REMOVE)
    assert removed.status == 0
    assert ("no_such_setting" in removed.output) is (fault == "settings")
    assert "4711" not in (root / "etc/postfix/main.cf").read_text()


def test_a_main_cf_that_is_gone_leaves_nothing_to_do(root: Path) -> None:
    pbs(root, APPLY)
    (root / "etc/postfix/main.cf").unlink()
    assert pbs(root, REMOVE).status == 0
    assert not (root / "var/lib").exists()
