"""Who may relay, through a real Postfix and Dovecot: neighbours behind one address, foreign senders, a cap in the
middle of a message, observe_only, require_tls.

The example files themselves are loaded (`pbs_policy.demo.real.installation`); only the test of TLS puts its own
certificate beside them.
"""

from __future__ import annotations

import smtplib
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from pbs_policy.demo.daemons import PrivateRedis, wait_until
from pbs_policy.demo.dovecot import PASSWORD, pop3_login
from pbs_policy.demo.ports import free_port
from pbs_policy.demo.postfix import LOCAL_DOMAIN, PrivatePostfix
from pbs_policy.demo.real import Site
from pbs_policy.demo.service import PrivateService
from pbs_policy.programs import find_program
from pbs_policy.shipped import shipped
from tests.conftest import need
from tests.patience import patient_script
from tests.service import CLI

ADDRESS, OTHER = "192.0.2.7", "2001:db8::7"
ALICE, BOB = "alice@example.com", "bob@example.com"


@pytest.fixture
def install(install: Callable[..., Site]) -> Callable[..., Site]:
    """The same, in which both ALICE and BOB have a mailbox."""

    def start(**settings: str) -> Site:
        site = install(**settings)
        with (site.dovecot.place / "users").open("a") as users:
            users.write(f"{BOB}:{{PLAIN}}{PASSWORD}\n")
        return site

    return start


def log_in(site: Site, user: str = ALICE, client_address: str = ADDRESS) -> None:
    """A login by POP3. The passwd-file is read again when a user is not in it and it has changed."""
    assert wait_until(lambda: pop3_login(site.dovecot.pop3_port, client_address, user).succeeded)


def decisions(service: PrivateService, number: int) -> list[str]:
    """The lines of the service's log on its decisions, once there are so many: they are written a moment later."""

    def lines() -> list[str]:
        return [line for line in service.log_text().splitlines() if "action=" in line]

    assert wait_until(lambda: len(lines()) >= number)
    return lines()


def administer(site: Site, *arguments: str) -> None:
    """One command of the administrator's."""
    subprocess.run([*CLI, "-c", str(site.service.settings_file), *arguments], check=True, capture_output=True)


@contextmanager
def smtp_session(
    postfix: PrivatePostfix, client_address: str = ADDRESS, *, tls: bool = False
) -> Iterator[smtplib.SMTP]:
    """An SMTP session of a client from this address (XCLIENT), encrypted if asked for."""
    with smtplib.SMTP("127.0.0.1", postfix.port, "client.example.net", timeout=60) as smtp:
        smtp.ehlo()
        prefix = "IPV6:" if ":" in client_address else ""
        assert smtp.docmd("XCLIENT", f"NAME=[UNAVAILABLE] ADDR={prefix}{client_address}")[0] == 220
        smtp.ehlo()
        if tls:
            anybody = ssl.create_default_context()
            anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
            assert smtp.starttls(context=anybody)[0] == 220
            smtp.ehlo()
        yield smtp


def offer(
    postfix: PrivatePostfix,
    sender: str,
    recipients: Sequence[str],
    client_address: str = ADDRESS,
    *,
    tls: bool = False,
) -> list[int]:
    """The reply codes to the recipients of one message, then that to the message, if any of them was taken."""
    with smtp_session(postfix, client_address, tls=tls) as smtp:
        assert smtp.mail(sender)[0] == 250
        codes = [smtp.rcpt(recipient)[0] for recipient in recipients]
        return [*codes, smtp.data(b"Subject: hello\r\n\r\nhello\r\n")[0]] if 250 in codes else codes


def relay(site: Site, sender: str = ALICE, client_address: str = ADDRESS) -> int:
    """The reply code to one recipient elsewhere."""
    return offer(site.postfix, sender, ["bob@example.net"], client_address)[0]


def test_of_two_users_behind_one_address_the_denied_one_relays_no_more_and_the_other_does(
    install: Callable[..., Site],
) -> None:
    site = install()
    log_in(site, ALICE)
    log_in(site, BOB)
    assert [relay(site, sender) for sender in (ALICE, BOB, "mallory@example.net")] == [250, 250, 250]
    administer(site, "deny", BOB, "--for", "24h")
    log_in(site, BOB)
    assert relay(site, BOB) == 554, "logging in again permits nothing"
    assert relay(site, "mallory@example.net") == 554
    assert relay(site, ALICE) == 250, "in her own name"
    log_in(site, BOB, OTHER)
    assert relay(site, BOB, OTHER) == 554, "at any address"
    log_in(site, ALICE)
    assert relay(site, ALICE) == 250
    administer(site, "undeny", BOB)
    assert relay(site, BOB, OTHER) == 250, "his login is there still"


@pytest.mark.parametrize("match", ["domain", "address"])
def test_a_denied_user_of_an_own_sender_is_refused_with_the_very_next_request(
    install: Callable[..., Site], match: str
) -> None:
    site = install(sender_match=match)
    log_in(site, BOB)
    with smtp_session(site.postfix) as smtp:
        smtp.mail(BOB)
        assert smtp.rcpt("a@example.net")[0] == 250
        administer(site, "deny", BOB, "--for", "24h")
        assert smtp.rcpt("b@example.net")[0] == 554, "in the middle of a session"
        log_in(site, BOB)
        assert smtp.rcpt("c@example.net")[0] == 554
        log_in(site, ALICE)
        smtp.rset()
        smtp.mail(ALICE)
        assert smtp.rcpt("d@example.net")[0] == 250


@pytest.mark.parametrize("what", ["address", "network", "all"])
def test_a_deny_of_an_address_or_network_or_everybody_outranks_a_later_login(
    install: Callable[..., Site], what: str
) -> None:
    site = install()
    log_in(site)
    assert relay(site) == 250
    administer(site, "deny", {"address": ADDRESS, "network": "192.0.2.0/24", "all": "--all"}[what], "--for", "24h")
    assert relay(site) == 554
    log_in(site)
    assert relay(site) == 554
    assert offer(site.postfix, ALICE, [f"carol@{LOCAL_DOMAIN}"]) == [250, 250], "mail for us is nobody's relaying"


def test_whom_the_file_of_denies_has_relays_no_more_and_again_when_the_line_is_out(
    install: Callable[..., Site], tmp_path: Path
) -> None:
    file = tmp_path / "denies"
    file.write_text("# nobody yet\n")
    site = install(denies=str(file))
    log_in(site, ALICE)
    log_in(site, BOB, OTHER)
    assert (relay(site), relay(site, BOB, OTHER)) == (250, 250)
    file.write_text(f"{ADDRESS} spam\n{BOB} stolen\n")
    assert wait_until(lambda: (relay(site), relay(site, BOB, OTHER)) == (554, 554))
    log_in(site, ALICE)
    log_in(site, BOB, OTHER)
    assert (relay(site), relay(site, BOB, OTHER)) == (554, 554)
    file.write_text("# nobody any more\n")
    assert wait_until(lambda: (relay(site), relay(site, BOB, OTHER)) == (250, 250))


@pytest.mark.parametrize(("match", "same_domain"), [("address", 554), ("domain", 250)])
def test_a_foreign_sender_is_refused_whoever_is_logged_in(
    install: Callable[..., Site], match: str, same_domain: int
) -> None:
    site = install(sender_match=match)
    log_in(site)
    assert relay(site, ALICE) == 250
    assert relay(site, "Alice@Example.COM") == 250
    assert relay(site, "dave@example.com") == same_domain
    assert relay(site, "mallory@example.net") == 554
    assert relay(site, f"{ALICE}@example.net") == 554
    assert relay(site, "") == 554
    assert relay(site, ALICE, OTHER) == 554
    reasons = [line.partition("reason=")[2].split()[0] for line in decisions(site.service, 7)]
    assert reasons[-4:] == ["sender_mismatch"] * 3 + ["no_login"]


def test_senders_that_the_maps_name_are_the_users_own(install: Callable[..., Site], tmp_path: Path) -> None:
    maps = tmp_path / "senders"
    maps.write_text(f"sales@example.org {ALICE}\n@example.net {BOB}\n")
    site = install(sender_match="address", sender_maps=str(maps), null_sender="permit")
    log_in(site)
    senders = (ALICE, "sales@example.org", "", "other@example.org", "x@example.net")
    assert [relay(site, sender) for sender in senders] == [250, 250, 250, 554, 554]
    log_in(site, BOB)
    assert relay(site, "x@example.net") == 250


def is_logged(site: Site, text: str) -> bool:
    return text in site.postfix.log_text()


def test_a_cap_in_the_middle_of_a_message_lets_the_first_recipients_through(install: Callable[..., Site]) -> None:
    site = install(max_recipients_per_address="3/1h")
    log_in(site)
    names = [f"r{number}@example.net" for number in range(5)]
    assert offer(site.postfix, ALICE, names) == [250, 250, 250, 554, 554, 250]
    assert wait_until(lambda: "nrcpt=3 (queue active)" in site.postfix.log_text())
    for number, name in enumerate(names):
        assert wait_until(partial(is_logged, site, f"to=<{name}>"))
        assert (f"to=<{name}>, relay=none" in site.postfix.log_text()) == (number < 3)
    assert offer(site.postfix, ALICE, ["r0@example.net"]) == [554], "another message counts anew"
    assert offer(site.postfix, ALICE, [f"carol@{LOCAL_DOMAIN}"]) == [250, 250], "and no cap counts mail for us"
    decisions(site.service, 6)
    assert site.service.log_text().count("warning: ") == 1
    log_in(site, ALICE, OTHER)
    assert relay(site, ALICE, OTHER) == 250


def test_a_recipient_that_is_named_twice_in_one_message_counts_once(install: Callable[..., Site]) -> None:
    site = install(max_recipients_per_user="2/1h")
    log_in(site)
    names = ["a@example.net", "a@example.net", "b@example.net", "a@example.net", "c@example.net", "b@example.net"]
    assert offer(site.postfix, ALICE, names) == [250, 250, 250, 250, 554, 250, 250]


def test_who_goes_over_twice_the_cap_is_denied(install: Callable[..., Site]) -> None:
    site = install(max_recipients_per_address="2/1h", auto_deny="1h")
    log_in(site)
    names = [f"r{number}@example.net" for number in range(5)]
    assert offer(site.postfix, ALICE, names) == [250] * 2 + [554] * 3 + [250]
    log_in(site)
    assert relay(site) == 554
    assert "reason=denied" in decisions(site.service, 6)[-1]


def test_observed_nobody_relays_and_the_log_says_who_would(install: Callable[..., Site]) -> None:
    site = install(observe_only="yes")
    assert relay(site) == 554
    log_in(site)
    assert relay(site) == 554
    assert offer(site.postfix, ALICE, [f"carol@{LOCAL_DOMAIN}"]) == [250, 250]
    seen = decisions(site.service, 2)
    assert [line.partition("would_be=")[2].split()[0] for line in seen] == ["DUNNO", "OK"]
    assert all("action=DUNNO" in line for line in seen)


def test_a_device_relays_by_a_permit_to_where_it_may(install: Callable[..., Site]) -> None:
    site = install()
    conditions = ("--sender", "scanner@example.com", "--recipient-domain", "example.net")
    administer(site, "permit", "192.0.2.0/24", "--user", "scanner@example.com", *conditions)
    assert wait_until(lambda: relay(site, "scanner@example.com") == 250)
    assert relay(site, ALICE) == 554
    assert offer(site.postfix, "scanner@example.com", ["x@example.org", "x@example.net"]) == [554, 250, 250]
    assert relay(site, "scanner@example.com", "198.51.100.7") == 554


# --- TLS


class PostfixWithTls(PrivatePostfix):
    """With tlsmgr, which the others have no need of: smtpd takes its random numbers from it."""

    def command(self) -> list[str]:
        line = super().command()
        with (self.place / "conf" / "master.cf").open("a") as master:
            master.write("tlsmgr unix - - n 1000? 1 tlsmgr\n")
        return line


def test_with_require_tls_only_an_encrypted_session_relays(tmp_path: Path) -> None:
    need("redis", "postfix", "openssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    openssl = find_program("openssl") or "openssl"
    new = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", f"/CN=mx.{LOCAL_DOMAIN}"]
    subprocess.run([openssl, *new, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    port = free_port()
    example = shipped("postfix-examples/main.cf.inet").read_text()
    assert "127.0.0.1:10040" in example
    fragment = example.replace("127.0.0.1:10040", f"127.0.0.1:{port}")
    fragment += f"smtpd_tls_security_level = may\nsmtpd_tls_cert_file = {certificate}\nsmtpd_tls_key_file = {key}\n"
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pbs-")))
        redis = stack.enter_context(PrivateRedis(directory / "redis", port=None))
        settings = {"redis_url": redis.url, "listen": f"inet:127.0.0.1:{port}", "require_tls": "yes"}
        service = stack.enter_context(PrivateService(directory, {**settings, "log_decisions": "all"}))
        postfix = stack.enter_context(PostfixWithTls(directory / "postfix", fragment=fragment))
        script = [
            sys.executable,
            "-IS",
            str(patient_script()),
            "-c",
            str(service.settings_file),
        ]
        subprocess.run([*script, "pop3", "/bin/true"], env={"IP": ADDRESS, "USER": ALICE}, check=True)
        recipients = ["bob@example.net"]
        assert offer(postfix, ALICE, recipients) == [554]
        assert offer(postfix, ALICE, recipients, tls=True) == [250, 250]
        assert offer(postfix, ALICE, recipients, "192.0.2.8", tls=True) == [554], "encrypted, and a stranger"
        assert offer(postfix, ALICE, [f"carol@{LOCAL_DOMAIN}"]) == [250, 250]
        reasons = [line.partition("reason=")[2].split()[0] for line in decisions(service, 3)]
        assert reasons == ["no_tls", "login", "no_login"]
