"""Installations like those that there are: thirty of Postfix, each sound, and each with one fault.

A `Site` is what its main.cf and master.cf set beside Postfix's defaults. `{ours}` stands for our check with what it
needs before it, in the place where install-postfix puts it, and is empty where the site has not got it.
"""

from __future__ import annotations

from typing import NamedTuple

from pbs_policy.postfix.placing import check_for
from pbs_policy.postfix.restrictions import PERMIT_LOCAL

INET, UNIX = "inet:127.0.0.1:10040", "unix:/var/spool/postfix/pbs-policy/policy"
OURS = f"{PERMIT_LOCAL}, {check_for(INET)}, "
OURS_BY_SOCKET = f"{PERMIT_LOCAL}, {check_for('unix:pbs-policy/policy')}, "

RELAY = "smtpd_relay_restrictions = "
DEFERRING = RELAY + "permit_mynetworks, permit_sasl_authenticated, {ours}defer_unauth_destination\n"
REJECTING = RELAY + "permit_mynetworks, permit_sasl_authenticated, {ours}reject_unauth_destination\n"
ALONE = "mynetworks = 127.0.0.0/8 [::1]/128\n"

PORT_25 = "smtp inet n - {chroot} - - smtpd\n"
SUBMISSION = """\
{port} inet n - n - - smtpd
  -o smtpd_sasl_auth_enable=yes
  -o smtpd_relay_restrictions=permit_sasl_authenticated,reject
"""
SUBMISSION_BY_CLIENT_LIST = """\
{port} inet n - n - - smtpd
  -o smtpd_sasl_auth_enable=yes
  -o smtpd_client_restrictions=permit_sasl_authenticated,reject
"""
AMAVIS = """\
smtp-amavis unix - - n - 2 smtp
  -o smtp_send_xforward_command=yes
127.0.0.1:10025 inet n - n - - smtpd
  -o content_filter=
  -o smtpd_client_restrictions=permit_mynetworks,reject
  -o smtpd_helo_restrictions=
  -o smtpd_sender_restrictions=
  -o smtpd_recipient_restrictions=permit_mynetworks,reject
  -o smtpd_relay_restrictions=
  -o mynetworks=127.0.0.0/8
"""
SCREENED = """\
smtp inet n - n - 1 postscreen
smtpd pass - - n - - smtpd
dnsblog unix - - n - 0 dnsblog
tlsproxy unix - - n - 0 tlsproxy
"""


class Site(NamedTuple):
    """One installation: `like` says what it is made after, `said` what doctor has to say of it as it is, in order."""

    like: str
    main_cf: str
    master_cf: str = PORT_25.format(chroot="n")
    said: tuple[str, ...] = ()
    fault: str = ""
    ours: str = OURS
    listen: str = INET


def entries(*entries_: str, chroot: str = "n") -> str:
    """A master.cf with port 25 and these."""
    return PORT_25.format(chroot=chroot) + "".join(entries_)


BOTH_PORTS = SUBMISSION.format(port="submission") + SUBMISSION.format(port="submissions")
HELO_CHECKED = """\
smtpd_helo_required = yes
smtpd_helo_restrictions = permit_mynetworks, permit_sasl_authenticated,
  reject_invalid_helo_hostname, reject_non_fqdn_helo_hostname
"""
BY_SQL = "virtual_mailbox_domains = proxy:mysql:/etc/postfix/mysql/domains.cf\n"
FILTERED = "not looked at postfix.filters"
NAMES, SERVICES = "warning postfix.client_names", "warning postfix.policy_services"
LISTED = "warning postfix.dns_list"

SITES = {
    "debian-12": Site("Debian 12 as it comes", DEFERRING + ALONE, entries(chroot="y"), fault="not asked"),
    "debian-12-unix": Site(
        "Debian 12, chrooted, the service at a unix socket", DEFERRING + ALONE, entries(BOTH_PORTS, chroot="y"),
        ours=OURS_BY_SOCKET, listen=UNIX, fault="no socket",
    ),
    "debian-13": Site(
        "Debian 13 with submission", DEFERRING + ALONE, entries(BOTH_PORTS, chroot="y"), fault="one brace less",
    ),
    "debian-13-tls": Site(
        "Debian 13, TLS and SASL by Dovecot",
        REJECTING + ALONE
        + "smtpd_tls_security_level = may\nsmtpd_sasl_type = dovecot\nsmtpd_sasl_path = private/auth\n",
        entries(BOTH_PORTS, chroot="y"), fault="no transport",
    ),
    "ubuntu-22.04": Site(
        "Ubuntu 22.04 as it comes",
        RELAY.rstrip() + "\n  permit_mynetworks permit_sasl_authenticated\n  {ours}defer_unauth_destination\n"
        + ALONE + "mailbox_size_limit = 0\nrecipient_delimiter = +\ninet_interfaces = all\n",
        entries(chroot="y"), fault="after the refusal",
    ),
    "ubuntu-24.04": Site(
        "Ubuntu 24.04 with mailboxes in SQL", DEFERRING + ALONE + BY_SQL, entries(BOTH_PORTS, chroot="y"),
        fault="any domain",
    ),
    "rhel-9": Site("RHEL 9, nothing chrooted", REJECTING + ALONE + "inet_protocols = all\n",
                   fault="default action OK"),
    "fedora": Site(
        "Fedora, aliases in LMDB", REJECTING + ALONE + "alias_maps = lmdb:/etc/aliases\nrelay_domains =\n",
        fault="default action of a class",
    ),
    "alpine": Site(
        "Alpine, a few lines of its own", REJECTING + ALONE + "mydestination = example.com\n",
        fault="a word misspelt",
    ),
    "freebsd": Site("FreeBSD's port", REJECTING + ALONE + "smtpd_banner = $myhostname ESMTP\n", fault="column 0"),
    "iredmail": Site(
        "iRedMail: Amavis, its own policy service, SQL",
        REJECTING + ALONE + BY_SQL + HELO_CHECKED + """\
content_filter = smtp-amavis:[127.0.0.1]:10024
smtpd_sender_restrictions = reject_non_fqdn_sender, reject_unlisted_sender, permit_mynetworks,
  permit_sasl_authenticated, reject_unknown_sender_domain
smtpd_recipient_restrictions = reject_non_fqdn_recipient, reject_unlisted_recipient,
  check_policy_service inet:127.0.0.1:7777, permit_mynetworks, permit_sasl_authenticated
""",
        entries(AMAVIS, SUBMISSION_BY_CLIENT_LIST.format(port="submission")),
        (NAMES, SERVICES, FILTERED), "refused later",
    ),
    "iredmail-greylisting": Site(
        "iRedMail with greylisting in the relay list",
        RELAY + "permit_mynetworks, permit_sasl_authenticated, {ours}reject_unauth_destination\n" + ALONE
        + "smtpd_recipient_restrictions = check_policy_service { inet:127.0.0.1:7777, timeout=10s }\n",
        entries(AMAVIS, BOTH_PORTS), (SERVICES,), "wrong port",
    ),
    "mailcow": Site(
        "mailcow: postscreen, rspamd, ports of its own for the proxy and the webmail",
        DEFERRING + "mynetworks = 127.0.0.0/8 [::1]/128 172.22.1.0/24\n" + """\
smtpd_milters = inet:rspamd:9900
virtual_mailbox_domains = proxy:mysql:/opt/postfix/conf/sql/domains.cf
relay_domains = proxy:mysql:/opt/postfix/conf/sql/relay_domains.cf
smtpd_sender_restrictions = reject_authenticated_sender_login_mismatch, permit_mynetworks,
  permit_sasl_authenticated, reject_unlisted_sender, reject_unknown_sender_domain
smtpd_recipient_restrictions = permit_sasl_authenticated, permit_mynetworks, reject_invalid_helo_hostname
""",
        SCREENED + "".join(
            f"{port} inet n - n - - smtpd\n"
            "  -o smtpd_client_restrictions=permit_mynetworks,permit_sasl_authenticated,reject\n"
            for port in ("587", "588", "590", "591", "10587")
        ) + """\
10465 inet n - n - - smtpd
  -o smtpd_upstream_proxy_protocol=haproxy
  -o smtpd_client_restrictions=permit_mynetworks,permit_sasl_authenticated,reject
""",
        (NAMES, FILTERED, "warning postfix.proxy_port"), "everybody in mynetworks",
    ),
    "docker-mailserver": Site(
        "docker-mailserver: postscreen with DNS lists, Amavis",
        DEFERRING + ALONE + HELO_CHECKED + """\
postscreen_dnsbl_action = enforce
postscreen_dnsbl_sites = zen.example.net*3
content_filter = smtp-amavis:[127.0.0.1]:10024
smtpd_recipient_restrictions = permit_sasl_authenticated, permit_mynetworks, reject_unauth_pipelining,
  reject_unknown_recipient_domain
""",
        SCREENED + AMAVIS + BOTH_PORTS, (NAMES, LISTED, FILTERED), "without permit_auth_destination",
    ),
    "modoboa": Site(
        "Modoboa: PostgreSQL, address verification, its policy daemon",
        DEFERRING + ALONE + """\
virtual_mailbox_domains = proxy:pgsql:/etc/postfix/sql-domains.cf
relay_domains = proxy:pgsql:/etc/postfix/sql-relaydomains.cf
smtpd_recipient_restrictions = check_policy_service inet:localhost:9999, permit_mynetworks,
  permit_sasl_authenticated, reject_unverified_recipient
""",
        entries(AMAVIS, SUBMISSION_BY_CLIENT_LIST.format(port="submission")),
        ("warning postfix.verification", SERVICES), "last refusal elsewhere",
    ),
    "mailu": Site(
        "Mailu: a proxy that says XCLIENT, a port for those who have authenticated",
        REJECTING + ALONE + """\
smtpd_authorized_xclient_hosts = 192.168.203.3
smtpd_milters = inet:antispam:11332
virtual_mailbox_domains = socketmap:unix:/tmp/podop.socket:domain
""",
        entries(
            "10025 inet n - n - - smtpd\n"
            "  -o smtpd_sasl_auth_enable=yes\n  -o smtpd_client_restrictions=reject_unlisted_sender,permit\n"
        ),
        (FILTERED,), "everybody says XCLIENT",
    ),
    "mail-in-a-box": Site(
        "Mail-in-a-Box: DNS lists, greylisting, DKIM by milters",
        REJECTING + ALONE + """\
smtpd_milters = inet:127.0.0.1:8891 inet:127.0.0.1:8893
virtual_mailbox_domains = sqlite:/etc/postfix/virtual-mailbox-domains.cf
smtpd_sender_restrictions = reject_non_fqdn_sender, reject_unknown_sender_domain, reject_rhsbl_sender dbl.example.net
smtpd_recipient_restrictions = permit_sasl_authenticated, permit_mynetworks, reject_rbl_client zen.example.net,
  reject_unlisted_recipient, check_policy_service inet:127.0.0.1:10023
""",
        entries(BOTH_PORTS), (LISTED, LISTED, SERVICES, FILTERED), "asked in another list",
    ),
    "ispconfig": Site(
        "ISPConfig: a class for greylisting, two ports of Amavis",
        REJECTING + ALONE + """\
smtpd_restriction_classes = greylisting
greylisting = check_policy_service inet:127.0.0.1:10023
virtual_mailbox_domains = proxy:mysql:/etc/postfix/mysql-virtual_domains.cf
content_filter = lmtp:[127.0.0.1]:10024
smtpd_recipient_restrictions = permit_mynetworks, check_recipient_access proxy:mysql:/etc/postfix/mysql-policy.cf,
  permit_sasl_authenticated, reject_unlisted_recipient
""",
        entries(AMAVIS, AMAVIS.replace("10025", "10027"), BOTH_PORTS), (FILTERED,), "one try",
    ),
    "postfixadmin": Site(
        "PostfixAdmin with MySQL", REJECTING + ALONE + BY_SQL, entries(BOTH_PORTS), fault="Postfix' own time-outs",
    ),
    "two-addresses": Site(
        "Two entries for port 25, each at an address of its own", REJECTING + ALONE,
        "192.0.2.25:smtp inet n - n - - smtpd\n198.51.100.25:25 inet n - n - - smtpd\n" + BOTH_PORTS,
        fault="port 25 has its own list",
    ),
    "out-instance": Site(
        "The outgoing one of two instances", REJECTING + ALONE + """\
multi_instance_name = postfix-out
queue_directory = /var/spool/postfix-out
data_directory = /var/lib/postfix-out
master_service_disable =
""", fault="nothing refuses",
    ),
    "before-2.10": Site(
        "The recipient list decides, as before Postfix 2.10",
        "smtpd_relay_restrictions =\n" + REJECTING.replace("smtpd_relay", "smtpd_recipient") + ALONE,
        entries(BOTH_PORTS), fault="permit before the end",
    ),
    "class": Site(
        "Our check in a restriction class",
        "smtpd_restriction_classes = pbs\npbs = {ours}reject_unauth_destination\n"
        + RELAY + "permit_mynetworks, permit_sasl_authenticated, pbs\n" + ALONE, fault="any domain",
    ),
    "variables": Site(
        "Lists put together of variables",
        "trusted = permit_mynetworks, permit_sasl_authenticated\n"
        + RELAY + "$trusted, {ours}reject_unauth_destination\n" + ALONE,
        entries(BOTH_PORTS), fault="a word misspelt",
    ),
    "behind-haproxy": Site(
        "Behind HAProxy, at an inside address",
        REJECTING + ALONE,
        entries("10.0.0.1:10025 inet n - n - - smtpd\n  -o smtpd_upstream_proxy_protocol=haproxy\n"),
        fault="strangers refused",
    ),
    "port-2525": Site(
        "A second port for clients whose provider closes 25", REJECTING + ALONE,
        entries("2525 inet n - n - - smtpd\n", BOTH_PORTS), fault="submission asks",
    ),
    "backup-mx": Site(
        "A backup MX: relay_domains in a file",
        REJECTING + ALONE + "relay_domains = example.org, hash:/etc/postfix/relay_domains\n",
        fault="any domain",
    ),
    "mailman": Site(
        "Mailman 3: relay_domains of regular expressions",
        REJECTING + ALONE + "relay_domains = inline:{ lists.example.com=x }\nowner_request_special = no\n",
        fault="smtpd ends",
    ),
    "ldap": Site(
        "Domains in LDAP, networks in a table",
        REJECTING + "mynetworks = 127.0.0.0/8, inline:{ 192.0.2.77=x }\n"
        "virtual_mailbox_domains = ldap:/etc/postfix/domains.cf\n",
        fault="everybody in a table",
    ),
    "webmail-host": Site(
        "A webmail beside it, clients checked at connect",
        REJECTING + ALONE + """\
smtpd_client_restrictions = permit_mynetworks, permit_sasl_authenticated, reject_unknown_client_hostname
""",
        entries(BOTH_PORTS), (NAMES,), "refused before RCPT",
    ),
}  # fmt: skip


class Fault(NamedTuple):
    """What goes wrong: words of main.cf and master.cf that change (the first that is there), lines that are added;
    and what doctor has to say of it. `by_hand`: the fix is no line that could be applied as it stands. `finding` is
    its place, and parts of what is seen and of the fix, where one installation has this fault."""

    said: str
    changes: tuple[tuple[str, str], ...] = ()
    more: str = ""
    by_hand: bool = False
    finding: tuple[str, str, str] = ("", "", "")


_DEFER = "DEFER_IF_REJECT 4.3.0 relay permission cannot be checked now"
_REFUSALS = ("reject_unauth_destination", "defer_unauth_destination")

FAULTS = {
    "not asked": Fault("wrong postfix.relay_restrictions", ((OURS, ""),),
        finding=("main.cf:2", "does not ask the policy service",
                 "smtpd_relay_restrictions = permit_mynetworks, permit_sasl_authenticated, permit_auth_")),
    "no socket": Fault("wrong postfix.socket", by_hand=True),
    "one brace less": Fault("wrong postfix.syntax", (("now } },", "now },"),), by_hand=True,
        finding=("main.cf:2", "the braces of smtpd_relay_restrictions do not match", "each { needs a }")),
    "no transport": Fault("wrong postfix.syntax", (("inet:127.0.0.1:10040", "127.0.0.1:10040"),),
        finding=("main.cf:2", "inet: is missing before 127.0.0.1:10040", "write inet:127.0.0.1:10040")),
    "after the refusal": Fault(
        "wrong postfix.order", ((OURS, ""), *((each, f"{each}, {OURS.rstrip(', ')}") for each in _REFUSALS)),
        finding=("main.cf:2", "defer_unauth_destination stands before", "smtpd_relay_restrictions = ")),
    "any domain": Fault("wrong postfix.destinations", more="relay_domains = example.org static:all\n", by_hand=True),
    "default action OK": Fault("wrong postfix.default_action", ((_DEFER, "OK"),),
        finding=("main.cf:2", "open relay for as long as the service is down", "{ default_action = DEFER_IF_REJECT")),
    "default action of a class": Fault("wrong postfix.default_action", ((_DEFER, "later"),),
        "smtpd_restriction_classes = later\nlater = permit\n"),
    "a word misspelt": Fault(
        "wrong postfix.syntax", (("permit_sasl_authenticated", "permit_sasl_authenticatd"),), by_hand=True),
    "column 0": Fault("wrong postfix.configuration", more=f"{check_for(INET)}\n", by_hand=True,
        finding=("main.cf:5", "missing '=' after attribute name", "postconf -c ")),
    "refused later": Fault("wrong postfix.later_refusal",
        (("7777, permit_mynetworks, ", "7777, permit_mynetworks, reject_unauth_destination, "),),
        finding=("main.cf:11", "reject_unauth_destination in smtpd_recipient_restrictions refuses",
                 "take reject_unauth_destination out of smtpd_recipient_restrictions")),
    "wrong port": Fault("wrong postfix.address", (("inet:127.0.0.1:10040", "inet:127.0.0.1:10041"),),
        finding=("main.cf:2", "Postfix asks inet:127.0.0.1:10041, and the service listens at inet:127.0.0.1:10040",
                 "inet:127.0.0.1:10040")),
    "everybody in mynetworks": Fault("wrong postfix.mynetworks", (("172.22.1.0/24", "0.0.0.0/0"),), by_hand=True,
        finding=("main.cf:3", "mynetworks has 0.0.0.0/0",
                 "name 127.0.0.0/8 [::1]/128 and your own hosts in mynetworks")),
    "without permit_auth_destination": Fault("warning postfix.inbound", ((f"{PERMIT_LOCAL}, ", ""),),
        finding=("main.cf:2", "without permit_auth_destination before it", "smtpd_relay_restrictions = ")),
    "last refusal elsewhere": Fault("wrong postfix.later_refusal",
        ((", defer_unauth_destination", ""), ("verified_recipient", "verified_recipient, reject_unauth_destination")),
        finding=("main.cf:6", "reject_unauth_destination in smtpd_recipient_restrictions refuses",
                 "first put reject_unauth_destination at the end of smtpd_relay_restrictions")),
    "everybody says XCLIENT": Fault("wrong postfix.xclient", (("192.168.203.3", "0.0.0.0/0"),), by_hand=True,
        finding=("main.cf:4", "everybody in 0.0.0.0/0 may say XCLIENT", "the proxies alone")),
    "asked in another list": Fault("warning postfix.other_lists",
        (("smtpd_sender_restrictions = ", f"smtpd_sender_restrictions = {check_for(INET)}, "),),
        finding=("main.cf:6", "asked in smtpd_sender_restrictions, too", "take check_policy_service out")),
    "one try": Fault("warning postfix.tries", (("try_limit=2", "try_limit=1"),),
        finding=("main.cf:2", "450 until the session ends", "try_limit=2")),
    "Postfix' own time-outs": Fault("warning postfix.timeout", (("timeout=2s, ", ""),),
        finding=("main.cf:2", "201 s", "timeout=2s, try_limit=2")),
    "port 25 has its own list": Fault("warning postfix.relay_restrictions",
        (("198.51.100.25:25 inet n - n - - smtpd\n", "198.51.100.25:25 inet n - n - - smtpd\n"
        "  -o smtpd_relay_restrictions=permit_mynetworks,reject_unauth_destination\n"),),
        finding=("master.cf:3", "the entry 198.51.100.25:25 of master.cf sets smtpd_relay_restrictions itself",
                 "remove -o smtpd_relay_restrictions")),
    "nothing refuses": Fault("wrong postfix.order", ((", reject_unauth_destination", ""),),
        finding=("main.cf:2", "nothing after the policy service refuses relaying", "reject_unauth_destination")),
    "permit before the end": Fault("wrong postfix.mynetworks", (("authenticated, ", "authenticated, permit, "),)),
    "strangers refused": Fault(
        "wrong postfix.later_refusal", more="smtpd_client_restrictions = permit_mynetworks, reject\n"
    ),
    "submission asks": Fault(
        "warning postfix.submission", (("  -o smtpd_relay_restrictions=permit_sasl_authenticated,reject\n", ""),),
        finding=("master.cf:3", "the entry submission of master.cf",
                 "-o smtpd_relay_restrictions=permit_sasl_authenticated,reject")),
    "smtpd ends": Fault("wrong postfix.smtpd", more="smtpd_helo_required = maybe\n", by_hand=True,
        finding=("main.cf:6", "bad boolean configuration: smtpd_helo_required = maybe", "correct what it names")),
    "everybody in a table": Fault(
        "wrong postfix.mynetworks", (("inline:{ 192.0.2.77=x }", "static:all"),), by_hand=True),
    "refused before RCPT": Fault("warning postfix.delay_reject", more="smtpd_delay_reject = no\n",
        finding=("main.cf:5", "smtpd_client_restrictions refuse a client before RCPT", "smtpd_delay_reject = yes")),
}  # fmt: skip
