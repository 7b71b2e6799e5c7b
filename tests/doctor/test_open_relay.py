"""Who may relay whatever the service says: at every entry of master.cf that others reach, by domains and by access
tables. A row is what main.cf and master.cf hold besides a sound installation; the real postconf and postmap read
them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.doctor.test_strangers import OURS, SMTPD, Row, examine

PORT_26 = f"{SMTPD}26 inet n - n - - smtpd\n"
EVERYBODY = "-o smtpd_relay_restrictions=permit_mynetworks,reject -o mynetworks=0.0.0.0/0"


def relay(first: str) -> str:
    """A relay list that begins with this."""
    return f"smtpd_relay_restrictions = {first}, permit_auth_destination, {OURS}, reject_unauth_destination"


OPEN = {
    "mynetworks of a second port": Row(
        "", ("mynetworks master.cf:3 mynetworks has 0.0.0.0/0",), f"{PORT_26} {EVERYBODY}\n"
    ),
    "permit at a second port": Row(
        "", ("mynetworks master.cf:3 permit stands in smtpd_relay_restrictions before",),
        f"{PORT_26} -o smtpd_relay_restrictions=permit,reject\n",
    ),
    "permit in both lists of a second port": Row(
        "", ("mynetworks master.cf:3 permit stands in smtpd_relay_restrictions before",),
        f"{PORT_26} -o smtpd_relay_restrictions=permit -o smtpd_recipient_restrictions=permit,reject\n",
    ),
    "the submission port": Row(
        "", ("mynetworks master.cf:3 mynetworks has 0.0.0.0/0",),
        f"{SMTPD}submission inet n - n - - smtpd\n {EVERYBODY}\n",
    ),
    "domains of a second port": Row(
        "", ("destinations master.cf:3 relay_domains has static:all",), f"{PORT_26} -o relay_domains=static:all\n",
    ),
    "a sender list that another table opens closes nothing": Row(
        "", ("mynetworks master.cf:3 mynetworks has 0.0.0.0/0",),
        f"{PORT_26} {EVERYBODY} -o {{ smtpd_sender_restrictions=check_sender_access inline:{{a=OK}},reject }}\n",
    ),
    "top-level domains": Row(
        "relay_domains = example.org com net", ("destinations main.cf:5 relay_domains has com: whoever sends to",)
    ),
    "a country": Row("relay_domains = DE", ("destinations main.cf:5 relay_domains has de:",)),
    "a country that is the host's name": Row(
        "myhostname = mx.example.com\nrelay_domains = mx", ("destinations main.cf:6 relay_domains has mx:",)
    ),
    "top-level domains in a table": Row(
        "relay_domains = inline:{ com=x }", ("destinations main.cf:5 relay_domains has inline:{ com=x }",)
    ),
    "top-level domains with a dot": Row(
        "parent_domain_matches_subdomains =\nrelay_domains = .com",
        ("destinations main.cf:6 relay_domains has .com:",),
    ),
    "static:OK first in the relay list": Row(
        relay("check_client_access static:OK"),
        ("mynetworks main.cf:5 check_client_access static:OK in smtpd_relay_restrictions permits everybody (OK)",),
    ),
    "a table that permits every recipient": Row(
        relay("check_recipient_access inline:{ a=b }, check_recipient_access regexp:{ {/./ 200} }"),
        ("mynetworks main.cf:5 check_recipient_access regexp:{ {/./ 200} } in",),
    ),
}  # fmt: skip
REFUSING = {
    "every recipient": Row(
        relay("permit_mynetworks, check_recipient_access static:DEFER"),
        ("access main.cf:5 check_recipient_access static:DEFER in smtpd_relay_restrictions refuses everybody",),
    ),
    "every client in another list": Row(
        "smtpd_client_restrictions = check_client_access static:{550 no}",
        ("access main.cf:5 check_client_access static:{550 no} in smtpd_client_restrictions refuses everybody",),
    ),
    "every client at a port for clients": Row(
        "", ("access master.cf:3 check_client_access static:REJECT in smtpd_client_restrictions",),
        f"{PORT_26} -o {{ smtpd_client_restrictions=check_client_access static:REJECT }}\n",
    ),
    "by a class": Row(
        "smtpd_restriction_classes = never\nnever = permit_mynetworks, reject\n"
        "smtpd_sender_restrictions = check_sender_access static:never",
        ("access main.cf:7 check_sender_access static:never in smtpd_sender_restrictions",),
    ),
    "perhaps permitting strangers": Row(
        relay("check_client_access cidr:/nowhere/clients"),
        ("access main.cf:5 whom check_client_access in smtpd_relay_restrictions permits is not known: cidr:",),
    ),
}  # fmt: skip
SOUND = {
    "a filter's way back": Row("", (), f"{SMTPD}127.0.0.1:10025 inet n - n - - smtpd\n {EVERYBODY}\n"),
    "ports of loopback alone": Row(
        "inet_interfaces = loopback-only", (), f"{PORT_26} {EVERYBODY}\n",
    ),
    "a port that another list closes": Row(
        "", (),
        f"{SMTPD}587 inet n - n - - smtpd\n -o smtpd_relay_restrictions=permit,reject\n"
        " -o smtpd_client_restrictions=permit_sasl_authenticated,reject\n",
    ),
    "a second port with the lists of the first": Row("", (), PORT_26),
    "a port for clients with SMTP AUTH": Row(
        "", (),
        f"{PORT_26} -o smtpd_relay_restrictions=permit_sasl_authenticated,reject -o relay_domains=static:all\n",
    ),
    "names without a dot in mydestination": Row(
        "myhostname = mail\nmydestination = $myhostname, com, localhost, localhost.localdomain, box"
    ),
    "names that relay_domains has from mydestination": Row(
        "compatibility_level = 0\nmyhostname = mail.example.com\n"
        "mydestination = $myhostname, mail, box, localhost, localhost.localdomain"
    ),
    "mydestination as relay_domains": Row(
        "mydestination = $myhostname, box, localhost\nrelay_domains = $mydestination, example.org"
    ),
    "this host's names in relay_domains": Row("myhostname = mail\nrelay_domains = $myhostname, localhost, lan"),
    "only the domain itself": Row("parent_domain_matches_subdomains =\nrelay_domains = com"),
    "a constant that leaves it to the others": Row(relay("check_client_access static:DUNNO")),
    "a constant behind ours": Row(
        f"smtpd_relay_restrictions = permit_auth_destination, {OURS}, check_client_access static:REJECT,"
        " reject_unauth_destination"
    ),
    "senders of other domains are refused": Row(
        "smtpd_sender_restrictions = check_sender_access regexp:{ {!/@example\\.com$$/ REJECT} }"
    ),
    "some are permitted": Row(
        relay("permit_mynetworks, check_client_access inline:{ 192.0.2.77=OK }")
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", [*OPEN.values(), *REFUSING.values()], ids=[*OPEN, *REFUSING])
def test_who_relays_without_a_login_or_never_is_named_with_its_line(tmp_path: Path, row: Row) -> None:
    found = [each for each in examine(tmp_path, row) if each.check != "postfix.smtpd"]
    (seen,) = row.seen
    assert len(found) == 1, found
    assert f"{found[0].check.removeprefix('postfix.')} {found[0].place} {found[0].seen}".startswith(seen)
    assert found[0].mend
    assert found[0].level == ("not looked at" if "not known" in seen else "wrong")


@pytest.mark.parametrize("row", SOUND.values(), ids=list(SOUND))
def test_a_sound_list_of_domains_tables_and_ports_is_called_good(tmp_path: Path, row: Row) -> None:
    assert [each for each in examine(tmp_path, row) if each.check != "postfix.smtpd"] == []
