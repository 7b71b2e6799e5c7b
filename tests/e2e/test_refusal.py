"""The text for a client that is refused because nobody has logged in: postfix-examples/main.cf.refusal, on a real
Postfix, and what postfix-examples/README.md says of the other ways to have such a text.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from pbs_policy.demo.daemons import PrivateRedis, wait_until
from pbs_policy.demo.ports import free_port
from pbs_policy.demo.postfix import LOCAL_DOMAIN, PrivatePostfix, SmtpAttempt, attempt_relay
from pbs_policy.demo.service import PrivateService
from pbs_policy.postfix.listener import Listener
from pbs_policy.shipped import shipped
from tests.conftest import need
from tests.e2e.test_daemons import DUNNO
from tests.patience import patient_script
from tests.stand_ins import answering

CLIENT = "192.0.2.7"
RELAYED = "bob@example.net"
LOCAL = f"carol@{LOCAL_DOMAIN}"
REFUSED_LOCAL = f'"nobody: Relay access denied"@{LOCAL_DOMAIN}'
OURS = "check your mail first, or use SMTP AUTH on port 587"
STOCK = f"5.7.1 <{RELAYED}>: Relay access denied"

# Mail for our own domain is refused as well, with the words of a relay's refusal in it, but not at its end.
OWN_REFUSAL = "smtpd_recipient_restrictions = check_recipient_access regexp:{{ /nobody/ REJECT }}\n"


def inet_example(port: int) -> str:
    """The example for a TCP port, with this port in place."""
    text = shipped("postfix-examples/main.cf.inet").read_text()
    assert "127.0.0.1:10040" in text
    return text.replace("127.0.0.1:10040", f"127.0.0.1:{port}")


def attempt(postfix: PrivatePostfix, recipient: str, client_address: str = CLIENT) -> SmtpAttempt:
    """The reply to one RCPT."""
    return attempt_relay(postfix.port, client_address, "alice@example.com", recipient)


@dataclass
class Site:
    """Redis, the service and Postfix, with the lines of main.cf.refusal beside those of main.cf.inet."""

    redis: PrivateRedis
    service: PrivateService
    postfix: PrivatePostfix

    def log_in(self, client_address: str) -> None:
        """One login, recorded by the post-login script as Dovecot runs it."""
        settings_file = str(self.service.settings_file)
        command = [sys.executable, "-IS", str(patient_script()), "-c", settings_file, "pop3", "/bin/true"]
        subprocess.run(command, env={"IP": client_address, "USER": "alice@example.com"}, check=True)


@pytest.fixture
def site() -> Iterator[Site]:
    need("redis", "postfix")
    port = free_port()
    fragment = inet_example(port) + shipped("postfix-examples/main.cf.refusal").read_text() + OWN_REFUSAL
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pbs-")))
        redis = stack.enter_context(PrivateRedis(directory / "redis", port=None))
        settings = {"redis_url": redis.url, "listen": f"inet:127.0.0.1:{port}"}
        service = stack.enter_context(PrivateService(directory, settings))
        postfix = stack.enter_context(PrivatePostfix(directory / "postfix", fragment=fragment))
        yield Site(redis, service, postfix)


@pytest.mark.parametrize("client_address", [CLIENT, "2001:db8::7"])
def test_a_stranger_is_told_what_to_do_and_after_a_login_may_relay(site: Site, client_address: str) -> None:
    refused = attempt(site.postfix, RELAYED, client_address)
    assert (refused.code, refused.text) == (554, f"{STOCK}; {OURS}")
    site.log_in(client_address)
    assert attempt(site.postfix, RELAYED, client_address).code == 250
    assert OURS in attempt(site.postfix, RELAYED, "198.51.100.99").text, "the login is that of one address"


def test_mail_for_our_own_domains_never_has_the_text(site: Site) -> None:
    assert attempt(site.postfix, LOCAL).code == 250
    refused = attempt(site.postfix, REFUSED_LOCAL)
    assert refused.code == 554
    assert refused.text.startswith("5.7.1 <nobody: Relay access denied@")
    assert refused.text.endswith(">: Recipient address rejected: Access denied")


def test_the_log_of_postfix_says_what_it_said_without_the_text(site: Site) -> None:
    attempt(site.postfix, RELAYED)
    assert wait_until(lambda: f"554 {STOCK}; from=<alice@example.com> to=<{RELAYED}>" in site.postfix.log_text())
    assert OURS not in site.postfix.log_text()


def test_while_redis_is_away_the_refusal_is_a_temporary_one_without_the_text(site: Site) -> None:
    site.redis.stop()
    assert wait_until(lambda: attempt(site.postfix, RELAYED).code == 450)
    assert OURS not in attempt(site.postfix, RELAYED).text
    assert attempt(site.postfix, LOCAL).code == 250
    site.redis.start()
    assert wait_until(lambda: attempt(site.postfix, RELAYED).code == 554)
    assert OURS in attempt(site.postfix, RELAYED).text


def test_while_the_service_is_down_the_refusal_is_a_temporary_one_without_the_text(site: Site) -> None:
    site.service.stop()
    deferred = attempt(site.postfix, RELAYED)
    assert deferred.code == 450
    assert OURS not in deferred.text
    assert attempt(site.postfix, LOCAL).code == 250


def test_as_a_file_for_an_older_postfix_it_does_the_same(tmp_path: Path) -> None:
    need("postfix")
    found = re.search(r"\{\n +\{ (.*) \} \}\n", shipped("postfix-examples/main.cf.refusal").read_text())
    assert found
    table = tmp_path / "refusal"
    table.write_text(found[1].replace("$$", "$") + "\n")
    lines = f"smtpd_relay_restrictions = reject_unauth_destination\nsmtpd_reject_footer_maps = regexp:{table}\n"
    with PrivatePostfix(tmp_path, fragment=lines) as postfix:
        assert attempt(postfix, RELAYED).text == f"{STOCK}; {OURS}"


def test_the_plain_footer_would_be_in_every_refusal(tmp_path: Path) -> None:
    need("postfix")
    lines = f"smtpd_reject_footer = \\c; {OURS}\n{OWN_REFUSAL}"
    with PrivatePostfix(tmp_path, fragment=inet_example(free_port()) + lines) as postfix:
        deferred, refused = attempt(postfix, RELAYED), attempt(postfix, REFUSED_LOCAL)
        assert (deferred.code, refused.code) == (450, 554)
        assert OURS in deferred.text
        assert OURS in refused.text


# What postfix-examples/README.md says under "The text of a refusal". In each row: what stands before
# reject_unauth_destination, further lines, the reply to a relay attempt after DUNNO and while the service is down.
FOOTER = "smtpd_reject_footer_maps = "
STATIC = "check_recipient_access static:"


@pytest.mark.parametrize(
    ("restriction", "lines", "refused", "deferred"),
    [
        ("", f"{FOOTER}regexp:/no/such/file", 554, 450),
        ("", f"{FOOTER}hash:/no/such/file", 554, 450),
        ("", f"{FOOTER}nosuchtype:/file", 554, 450),
        ("", f"{FOOTER}regexp:{{{{/^5(/ \\c; {OURS}}}}}", 554, 450),
        ("", f"{FOOTER}static:{{}}", 554, 450),
        ("", f"{FOOTER}static:OK", 554, 450),
        (f"{STATIC}{{REJECT {OURS}}},", "", 554, 450),
        (f"{STATIC}{{REJCT {OURS}}},", "", 451, 451),
        (f"{STATIC}{{}},", "", 451, 451),
        ("check_recipient_access regexp:/no/such/file,", "", 451, 451),
        (f"{STATIC}587,", "", 250, 250),
    ],
)
def test_a_fault_in_the_table_has_the_replies_that_the_readme_gives(
    tmp_path: Path, restriction: str, lines: str, refused: int, deferred: int
) -> None:
    need("postfix")
    port = free_port()
    example = inet_example(port)
    assert "    reject_unauth_destination" in example
    example = example.replace("    reject_unauth_destination", f"    {restriction} reject_unauth_destination")
    with PrivatePostfix(tmp_path, fragment=f"{example}{lines}\n{OWN_REFUSAL}") as postfix:
        assert attempt(postfix, RELAYED).code == deferred
        assert attempt(postfix, LOCAL).code == 250
        with answering(DUNNO, listener=Listener(host="127.0.0.1", port=port)):
            assert attempt(postfix, RELAYED).code == refused
            assert attempt(postfix, LOCAL).code == 250
            assert attempt(postfix, REFUSED_LOCAL).code == 554
