"""What doctor says of Postfix where it takes a permitted client for a stranger, and of who may relay whatever the
service says: at each entry of master.cf that others reach, by domains and by access tables. The real postconf and
postmap read what stands here."""

from __future__ import annotations

from pathlib import Path

import pytest

from pbs_policy.programs import find_program
from tests.doctor.installation import Case

MAIN = "compatibility_level = 3.6\nmydestination = example.com\nmynetworks = 127.0.0.1\n"
MAIN += "smtpd_relay_restrictions = permit_mynetworks, OURS_LAST\n"
WORDS = {
    "OURS_LAST": "permit_auth_destination, OURS, reject_unauth_destination",
    "OURS": "check_policy_service { inet:127.0.0.1:10040, timeout=2s, try_limit=2,"
    " { default_action = DEFER_IF_REJECT } }",
    "AUTH": "permit_mynetworks, permit_sasl_authenticated",
    "EVERYBODY": "-o smtpd_relay_restrictions=permit_mynetworks,reject -o mynetworks=0.0.0.0/0",
    "SCREEN": "smtp inet n - n - 1 postscreen\nsmtpd pass - - n - - smtpd",
    "SMTPD": "inet n - n - - smtpd",
}
"""What these words stand for below, one after the other."""

# What main.cf and master.cf hold besides a sound installation; what doctor says besides the good, in order, each as
# `level check place text`.
FOUND: dict[str, tuple[str, ...]] = {
    "a HELO check": (
        "smtpd_helo_restrictions = AUTH, reject_non_fqdn_helo_hostname, reject_unknown_helo_hostname", "",
        "warning postfix.client_names main.cf:5 reject_non_fqdn_helo_hostname, reject_unknown_helo_hostname in "
        "smtpd_helo_restr",
    ),
    "a PTR check": (
        "smtpd_client_restrictions = AUTH, reject_unknown_client_hostname", "",
        "warning postfix.client_names main.cf:5 "
        "reject_unknown_client_hostname in smtpd_client_restrictions may refuse clients",
    ),
    "two lists": (
        "smtpd_data_restrictions = reject_unknown_hostname\nsmtpd_sender_restrictions = Reject_Unknown_Client", "",
        "warning postfix.client_names main.cf:6 reject_unknown_client in",
        "warning postfix.client_names main.cf:5 reject_unknown_hostname in",
    ),
    "a class": (
        "smtpd_restriction_classes = strict\nstrict =\n reject_unknown_client_hostname\n"
        "smtpd_end_of_data_restrictions = strict", "",
        "warning postfix.client_names main.cf:6 reject_unknown_client_hostname in strict may",
    ),
    "an option in master.cf": (
        "", " -o smtpd_client_restrictions=reject_unknown_client_hostname",
        "warning postfix.client_names master.cf:2 reject_unknown_client_hostname in smtpd_client_restrictions",
    ),
    "a port for clients": (
        "", "2525 SMTPD\n -o smtpd_client_restrictions=reject_unknown_client_hostname",
        "warning postfix.client_names master.cf:3 reject_unknown_client_hostname in smtpd_client_restrictions",
    ),
    "before ours in the relay list": (
        "smtpd_relay_restrictions = reject_rhsbl_client dbl.example.net, OURS_LAST", "",
        "warning postfix.dns_list main.cf:5 reject_rhsbl_client dbl.example.net in smtpd_relay_restrictions may",
    ),
    "verified addresses": (
        "smtpd_recipient_restrictions = reject_unverified_sender, reject_unverified_recipient", "",
        "warning postfix.verification main.cf:5 reject_unverified_sender, reject_unverified_recipient in smtpd_recip",
    ),
    "DNS lists of names": (
        "smtpd_sender_restrictions = reject_rhsbl_helo dbl.example.net, reject_rhsbl_sender dbl.example.net", "",
        "warning postfix.dns_list main.cf:5 reject_rhsbl_helo dbl.example.net, reject_rhsbl_sender dbl.example.net",
    ),
    "greylisting": (
        "smtpd_recipient_restrictions = AUTH, check_policy_service inet:127.0.0.1:10023", "",
        "warning postfix.policy_services main.cf:5 check_policy_service inet:127.0.0.1:10023 in",
    ),
    "postscreen with DNS lists": (
        "postscreen_dnsbl_sites = dnsbl.example.net=127.0.0.[2..11]*3\npostscreen_dnsbl_action = enforce", "SCREEN",
        "warning postfix.dns_list main.cf:6 postscreen_dnsbl_action = enforce: postscreen refuses clients at dial-up",
    ),
    "postscreen's tests after 220": (
        "postscreen_bare_newline_enable = yes\npostscreen_pipelining_enable = yes", "SCREEN",
        "warning postfix.postscreen main.cf:6 postscreen_pipelining_enable = yes",
        "warning postfix.postscreen main.cf:5 postscreen_bare_newline",
    ),
    "a milter": (
        "smtpd_milters = inet:[::1]:8891", "",
        "not looked at postfix.filters main.cf:5 smtpd_milters = inet:[::1]:8891",
    ),
    "content filters": (
        "content_filter = amavis:[127.0.0.1]:10024", " -o smtpd_proxy_filter=127.0.0.1:10026",
        "not looked at postfix.filters master.cf:2 smtpd_proxy_filter = 127.0.0.1:10026",
        "not looked at postfix.filters main.cf:5 content_filter = amavis",
    ),
    "permit at a second port": (
        "", "26 SMTPD\n -o smtpd_relay_restrictions=permit,reject",
        "wrong postfix.mynetworks master.cf:3 permit stands in smtpd_relay_restrictions before",
    ),
    "permit in both lists of a second port": (
        "", "26 SMTPD\n -o smtpd_relay_restrictions=permit -o smtpd_recipient_restrictions=permit,reject",
        "wrong postfix.mynetworks master.cf:3 permit stands in smtpd_relay_restrictions before",
    ),
    "the submission port": (
        "", "submission SMTPD\n EVERYBODY", "wrong postfix.mynetworks master.cf:3 mynetworks has 0.0.0.0/0",
    ),
    "domains of a second port": (
        "", "26 SMTPD\n -o relay_domains=static:all",
        "wrong postfix.destinations master.cf:3 relay_domains has static:all",
    ),
    "a sender list that another table opens closes nothing": (
        "", "26 SMTPD\n EVERYBODY -o { smtpd_sender_restrictions=check_sender_access inline:{a=OK},reject }",
        "wrong postfix.mynetworks master.cf:3 mynetworks has 0.0.0.0/0",
    ),
    "a country": ("relay_domains = DE", "", "wrong postfix.destinations main.cf:5 relay_domains has de:"),
    "a country that is the host's name": (
        "myhostname = mx.example.com\nrelay_domains = mx", "",
        "wrong postfix.destinations main.cf:6 relay_domains has mx:",
    ),
    "top-level domains in a table": (
        "relay_domains = inline:{ com=x }", "",
        "wrong postfix.destinations main.cf:5 relay_domains has inline:{ com=x }",
    ),
    "top-level domains with a dot": (
        "parent_domain_matches_subdomains =\nrelay_domains = .com", "",
        "wrong postfix.destinations main.cf:6 relay_domains has .com:",
    ),
    "static:OK first in the relay list": (
        "smtpd_relay_restrictions = check_client_access static:OK, OURS_LAST", "",
        "wrong postfix.mynetworks main.cf:5 check_client_access static:OK in smtpd_relay_restrictions permits",
    ),
    "a table that permits every recipient": (
        "smtpd_relay_restrictions = check_recipient_access inline:{ a=b }, check_recipient_access regexp:{ {/./ 200} "
        "}, OURS_LAST", "", "wrong postfix.mynetworks main.cf:5 check_recipient_access regexp:{ {/./ 200} } in",
    ),
    "every recipient": (
        "smtpd_relay_restrictions = permit_mynetworks, check_recipient_access static:DEFER, OURS_LAST", "",
        "wrong postfix.access main.cf:5 check_recipient_access static:DEFER in smtpd_relay_restrictions refuses",
    ),
    "every client in another list": (
        "smtpd_client_restrictions = check_client_access static:{550 no}", "",
        "wrong postfix.access main.cf:5 check_client_access static:{550 no} in smtpd_client_restrictions refuses",
    ),
    "every client at a port for clients": (
        "", "26 SMTPD\n -o { smtpd_client_restrictions=check_client_access static:REJECT }",
        "wrong postfix.access master.cf:3 check_client_access static:REJECT in smtpd_client_restrictions",
    ),
    "by a class": (
        "smtpd_restriction_classes = never\nnever = permit_mynetworks, reject\n"
        "smtpd_sender_restrictions = check_sender_access static:never", "",
        "wrong postfix.access main.cf:7 check_sender_access static:never in smtpd_sender_restrictions",
    ),
    "a sender that anybody can name": (
        "smtpd_relay_restrictions = check_sender_access inline:{ {a@x.org = REJECT}, example.com=OK }, OURS_LAST", "",
        "wrong postfix.access main.cf:5 check_sender_access inline:{ {a@x.org = REJECT}, example.com=OK } in "
        "smtpd_relay_restrictions permits whoever says example.com",
    ),
    "a name that anybody can say": (
        "smtpd_relay_restrictions = permit_mynetworks, check_helo_access inline:{ client.example.net=permit }, "
        "OURS_LAST", "", "wrong postfix.access main.cf:5 check_helo_access inline:{ client.example.net=permit } in",
    ),
    "patterns of senders": (
        "smtpd_relay_restrictions = check_sender_access regexp:{ {/x/ OK} }, OURS_LAST", "",
        "not looked at postfix.access main.cf:5 whom check_sender_access in smtpd_relay_restrictions permits is not",
    ),
    "perhaps permitting strangers": (
        "smtpd_relay_restrictions = check_client_access cidr:/nowhere/clients, OURS_LAST", "",
        "not looked at postfix.access main.cf:5 whom check_client_access in smtpd_relay_restrictions permits is not "
        "known: cidr:",
    ),
}  # fmt: skip
SOUND: dict[str, tuple[str, ...]] = {
    "behind our own check": ("smtpd_helo_restrictions = OURS, reject_unknown_helo_hostname",),
    "behind permit": ("smtpd_client_restrictions = permit, reject_unknown_client_hostname",),
    "only warned of": ("smtpd_client_restrictions = warn_if_reject reject_rbl_client dnsbl.example.net",),
    "a class that is only warned of": (
        "smtpd_restriction_classes = strict\nstrict = reject_unknown_client_hostname, reject_rbl_client a.test\n"
        "smtpd_client_restrictions = warn_if_reject strict",
    ),
    "behind ours in the relay list": (
        "smtpd_relay_restrictions = permit_auth_destination, OURS, reject_unverified_recipient, reject_rbl_client "
        "dnsbl.example.net, check_policy_service unix:private/greylist, reject_unauth_destination",
    ),
    "a class for mail to our own domains": (
        "smtpd_restriction_classes = inbound\ninbound = reject_rbl_client a.test, reject_unknown_client_hostname, "
        "check_policy_service inet:[::1]:1\nsmtpd_recipient_restrictions = check_recipient_access inline:{ "
        "example.com=inbound }",
    ),
    "what any sound mail passes": (
        "smtpd_recipient_restrictions = reject_non_fqdn_sender, reject_unknown_sender_domain, "
        "reject_unlisted_sender, reject_unknown_recipient_domain, reject_non_fqdn_recipient\n"
        "smtpd_data_restrictions = reject_unauth_pipelining",
    ),
    "whether a mailbox is full": ("smtpd_recipient_restrictions = check_policy_service unix:private/quota-status",),
    "ETRN": ("smtpd_etrn_restrictions = reject_rbl_client dnsbl.example.net, reject",),
    "the submission port and a filter's way back": (
        "", "submission SMTPD\n -o smtpd_relay_restrictions=permit_sasl_authenticated,reject -o "
        "smtpd_milters=inet:127.0.0.1:8891\n -o smtpd_client_restrictions=reject_unknown_client_hostname\n"
        "127.0.0.1:10025 SMTPD\n -o smtpd_helo_restrictions=reject_unknown_helo_hostname",
    ),
    "postscreen that only counts": ("postscreen_dnsbl_sites = dnsbl.example.net", "SCREEN"),
    "postscreen that runs nowhere": (
        "postscreen_dnsbl_sites = dnsbl.example.net\npostscreen_dnsbl_action = drop\n"
        "postscreen_pipelining_enable = yes",
    ),
    "a milter that is told which clients these are": (
        "smtpd_relay_restrictions = permit_mynetworks, reject_unauth_destination\nsmtpd_milters = inet:[::1]:8891",
        "smtp SMTPD -o smtpd_milters=\n -o { smtpd_relay_restrictions = permit_mynetworks, OURS_LAST }\n2525 SMTPD\n"
        " -o milter_macro_daemon_name=PBS -o { smtpd_relay_restrictions = OURS, reject }",
    ),
    "a milter for local mail": ("non_smtpd_milters = inet:127.0.0.1:8891",),
    "a filter's way back": ("", "127.0.0.1:10025 SMTPD\n EVERYBODY"),
    "ports of loopback alone": ("inet_interfaces = loopback-only", "26 SMTPD\n EVERYBODY"),
    "a port that another list closes": (
        "", "587 SMTPD\n -o smtpd_relay_restrictions=permit,reject\n"
        " -o smtpd_client_restrictions=permit_sasl_authenticated,reject",
    ),
    "a second port with the lists of the first": ("", "26 SMTPD"),
    "a port for clients with SMTP AUTH": (
        "", "26 SMTPD\n -o smtpd_relay_restrictions=permit_sasl_authenticated,reject -o relay_domains=static:all",
    ),
    "names without a dot in mydestination": (
        "myhostname = mail\nmydestination = $myhostname, com, localhost, localhost.localdomain, box",
    ),
    "names that relay_domains has from mydestination": (
        "compatibility_level = 0\nmyhostname = mail.example.com\n"
        "mydestination = $myhostname, mail, box, localhost, localhost.localdomain",
    ),
    "mydestination as relay_domains": (
        "mydestination = $myhostname, box, localhost\nrelay_domains = $mydestination, example.org",
    ),
    "this host's names in relay_domains": ("myhostname = mail\nrelay_domains = $myhostname, localhost, lan",),
    "only the domain itself": ("parent_domain_matches_subdomains =\nrelay_domains = com",),
    "a constant that leaves it to the others": (
        "smtpd_relay_restrictions = check_client_access static:DUNNO, OURS_LAST",
    ),
    "a constant behind ours": (
        "smtpd_relay_restrictions = permit_auth_destination, OURS, check_client_access static:REJECT, "
        "reject_unauth_destination",
    ),
    "senders of other domains are refused": (
        "smtpd_sender_restrictions = check_sender_access regexp:{ {!/@example\\.com$$/ REJECT} }",
    ),
    "senders that are refused, and that others judge": (
        "smtpd_relay_restrictions = check_sender_access inline:{ {a@example.org = REJECT}, example.com=DUNNO }, "
        "warn_if_reject check_helo_access inline:{ x=REJECT }, check_sender_access static:DUNNO, OURS_LAST",
    ),
    "some are permitted": (
        "smtpd_relay_restrictions = permit_mynetworks, check_client_access inline:{ 192.0.2.77=OK }, OURS_LAST",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [*FOUND, *SOUND])
def test_doctor_names_what_is_wrong_with_a_list_and_nothing_else(tmp_path: Path, name: str) -> None:
    if find_program("postconf") is None:
        pytest.skip("postfix is not installed: apt-get install postfix")
    main, master, *seen = FOUND.get(name) or (*SOUND[name], "")[:2]
    if not master.startswith(("smtp ", "SCREEN")):
        master = f"smtp SMTPD\n{master}"
    for file, text in (("main.cf", f"{MAIN}{main}\n"), ("master.cf", f"{master}\n")):
        for word, meaning in WORDS.items():
            text = text.replace(word, meaning)
        (tmp_path / file).write_text(text)
    # smtpd cannot run with all of it; that ours is asked in another list, too, is so in some.
    others = ("postfix.smtpd", "postfix.other_lists")
    found = [each for each in Case(tmp_path).findings() if each.level != "good" and each.check not in others]
    said = [f"{each.level} {each.check} {each.place} {each.seen}" for each in found]
    assert [text[: len(begin)] for text, begin in zip(said, seen, strict=True)] == seen
    assert all(each.mend for each in found)
