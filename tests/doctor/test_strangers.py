"""What doctor says of Postfix where it takes a permitted client for a stranger, and where it does not. A row is what
main.cf and master.cf hold besides a sound installation; the real postconf reads them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from pbs_policy.doctor.finding import Finding
from pbs_policy.programs import find_program
from tests.doctor.installation import Case

OURS = "check_policy_service { inet:127.0.0.1:10040, timeout=2s, try_limit=2, { default_action = DEFER_IF_REJECT } }"
RELAY = f"smtpd_relay_restrictions = permit_mynetworks, permit_auth_destination, {OURS}, reject_unauth_destination"
MAIN = f"compatibility_level = 3.6\nmydestination = example.com\nmynetworks = 127.0.0.1\n{RELAY}\n"
SMTPD = "smtp inet n - n - - smtpd\n"
SCREEN = "smtp inet n - n - 1 postscreen\nsmtpd pass - - n - - smtpd\n"
AUTH = "permit_mynetworks, permit_sasl_authenticated"


class Row(NamedTuple):
    """`seen` is what doctor says besides the good, each as `check place text`."""

    main: str
    seen: tuple[str, ...] = ()
    master: str = SMTPD


HITS = {
    "a HELO check": Row(
        f"smtpd_helo_restrictions = {AUTH}, reject_non_fqdn_helo_hostname, reject_unknown_helo_hostname",
        ("client_names main.cf:5 reject_non_fqdn_helo_hostname, reject_unknown_helo_hostname in smtpd_helo_restr",),
    ),
    "a PTR check": Row(
        f"smtpd_client_restrictions = {AUTH}, reject_unknown_client_hostname",
        ("client_names main.cf:5 reject_unknown_client_hostname in smtpd_client_restrictions may refuse clients",),
    ),
    "two lists": Row(
        "smtpd_data_restrictions = reject_unknown_hostname\nsmtpd_sender_restrictions = Reject_Unknown_Client",
        ("client_names main.cf:6 reject_unknown_client in", "client_names main.cf:5 reject_unknown_hostname in"),
    ),
    "a class": Row(
        "smtpd_restriction_classes = strict\nstrict =\n reject_unknown_client_hostname\n"
        "smtpd_end_of_data_restrictions = strict",
        ("client_names main.cf:6 reject_unknown_client_hostname in strict may",),
    ),
    "an option in master.cf": Row(
        "",
        ("client_names master.cf:2 reject_unknown_client_hostname in smtpd_client_restrictions",),
        f"{SMTPD} -o smtpd_client_restrictions=reject_unknown_client_hostname\n",
    ),
    "a port for clients": Row(
        "",
        ("client_names master.cf:3 reject_unknown_client_hostname in smtpd_client_restrictions",),
        f"{SMTPD}2525 inet n - n - - smtpd\n -o smtpd_client_restrictions=reject_unknown_client_hostname\n",
    ),
    "before ours in the relay list": Row(
        "smtpd_relay_restrictions = reject_rhsbl_client dbl.example.net, permit_auth_destination,"
        f"  {OURS}, reject_unauth_destination",
        ("dns_list main.cf:5 reject_rhsbl_client dbl.example.net in smtpd_relay_restrictions may refuse",),
    ),
    "verified addresses": Row(
        "smtpd_recipient_restrictions = reject_unverified_sender, reject_unverified_recipient",
        ("verification main.cf:5 reject_unverified_sender, reject_unverified_recipient in smtpd_recip",),
    ),
    "DNS lists of names": Row(
        "smtpd_sender_restrictions = reject_rhsbl_helo dbl.example.net, reject_rhsbl_sender dbl.example.net",
        ("dns_list main.cf:5 reject_rhsbl_helo dbl.example.net, reject_rhsbl_sender dbl.example.net in",),
    ),
    "greylisting": Row(
        f"smtpd_recipient_restrictions = {AUTH}, check_policy_service inet:127.0.0.1:10023",
        ("policy_services main.cf:5 check_policy_service inet:127.0.0.1:10023 in smtpd_recipient_restr",),
    ),
    "postscreen with DNS lists": Row(
        "postscreen_dnsbl_sites = dnsbl.example.net=127.0.0.[2..11]*3\npostscreen_dnsbl_action = enforce",
        ("dns_list main.cf:6 postscreen_dnsbl_action = enforce: postscreen refuses clients at dial-up",),
        SCREEN,
    ),
    "postscreen's tests after 220": Row(
        "postscreen_bare_newline_enable = yes\npostscreen_pipelining_enable = yes",
        ("postscreen main.cf:6 postscreen_pipelining_enable = yes", "postscreen main.cf:5 postscreen_bare_newline"),
        SCREEN,
    ),
    "a milter": Row("smtpd_milters = inet:[::1]:8891", ("filters main.cf:5 smtpd_milters = inet:[::1]:8891",)),
    "content filters": Row(
        "content_filter = amavis:[127.0.0.1]:10024",
        ("filters master.cf:2 smtpd_proxy_filter = 127.0.0.1:10026", "filters main.cf:5 content_filter = amavis"),
        f"{SMTPD} -o smtpd_proxy_filter=127.0.0.1:10026\n",
    ),
}
HITS_NOBODY = {
    "behind our own check": Row(f"smtpd_helo_restrictions = {OURS}, reject_unknown_helo_hostname"),
    "behind permit": Row("smtpd_client_restrictions = permit, reject_unknown_client_hostname"),
    "only warned of": Row("smtpd_client_restrictions = warn_if_reject reject_rbl_client dnsbl.example.net"),
    "a class that is only warned of": Row(
        "smtpd_restriction_classes = strict\nstrict = reject_unknown_client_hostname, reject_rbl_client a.test\n"
        "smtpd_client_restrictions = warn_if_reject strict",
    ),
    "behind ours in the relay list": Row(
        f"smtpd_relay_restrictions = permit_auth_destination, {OURS}, reject_unverified_recipient,"
        " reject_rbl_client dnsbl.example.net, check_policy_service unix:private/greylist, reject_unauth_destination",
    ),
    "a class for mail to our own domains": Row(
        "smtpd_restriction_classes = inbound\n"
        "inbound = reject_rbl_client a.test, reject_unknown_client_hostname, check_policy_service inet:[::1]:1\n"
        "smtpd_recipient_restrictions = check_recipient_access inline:{ example.com=inbound }",
    ),
    "what any sound mail passes": Row(
        "smtpd_recipient_restrictions = reject_non_fqdn_sender, reject_unknown_sender_domain, reject_unlisted_sender,"
        " reject_unknown_recipient_domain, reject_non_fqdn_recipient\n"
        "smtpd_data_restrictions = reject_unauth_pipelining"
    ),
    "whether a mailbox is full": Row("smtpd_recipient_restrictions = check_policy_service unix:private/quota-status"),
    "ETRN": Row("smtpd_etrn_restrictions = reject_rbl_client dnsbl.example.net, reject"),
    "the submission port and a filter's way back": Row(
        "",
        (),
        f"{SMTPD}submission inet n - n - - smtpd\n"
        " -o smtpd_relay_restrictions=permit_sasl_authenticated,reject -o smtpd_milters=inet:127.0.0.1:8891\n"
        " -o smtpd_client_restrictions=reject_unknown_client_hostname\n"
        "127.0.0.1:10025 inet n - n - - smtpd\n -o smtpd_helo_restrictions=reject_unknown_helo_hostname\n",
    ),
    "postscreen that only counts": Row("postscreen_dnsbl_sites = dnsbl.example.net", (), SCREEN),
    "postscreen that runs nowhere": Row(
        "postscreen_dnsbl_sites = dnsbl.example.net\npostscreen_dnsbl_action = drop\n"
        "postscreen_pipelining_enable = yes"
    ),
    "a milter that is told which clients these are": Row(
        "smtpd_relay_restrictions = permit_mynetworks, reject_unauth_destination\nsmtpd_milters = inet:[::1]:8891",
        (),
        f"smtp inet n - n - - smtpd -o smtpd_milters=\n -o {{ {RELAY} }}\n2525 inet n - n - - smtpd\n"
        f" -o milter_macro_daemon_name=PBS -o {{ smtpd_relay_restrictions = {OURS}, reject }}\n",
    ),
    "a milter for local mail": Row("non_smtpd_milters = inet:127.0.0.1:8891"),
}


def examine(folder: Path, row: Row) -> list[Finding]:
    if find_program("postconf") is None:
        pytest.skip("postfix is not installed: apt-get install postfix")
    (folder / "main.cf").write_text(f"{MAIN}{row.main}\n")
    (folder / "master.cf").write_text(row.master)
    return [each for each in Case(folder).findings() if each.level != "good"]


@pytest.mark.parametrize("row", HITS.values(), ids=list(HITS))
def test_doctor_names_what_refuses_permitted_clients_with_its_line(tmp_path: Path, row: Row) -> None:
    found = examine(tmp_path, row)
    assert len(found) == len(row.seen), found
    for finding, seen in zip(found, row.seen, strict=True):
        assert f"{finding.check.removeprefix('postfix.')} {finding.place} {finding.seen}".startswith(seen)
        assert finding.mend


@pytest.mark.parametrize("row", HITS_NOBODY.values(), ids=list(HITS_NOBODY))
def test_doctor_is_silent_about_what_hits_no_permitted_client(tmp_path: Path, row: Row) -> None:
    assert [each for each in examine(tmp_path, row) if each.check != "postfix.other_lists"] == []
