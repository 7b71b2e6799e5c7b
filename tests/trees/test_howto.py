"""The how-to pages that need more than one host or service, on a booted Debian: real logins, real relay attempts."""

from __future__ import annotations

import re

import pytest

from pbs_policy.demo.daemons import wait_until
from tests.pages import TOP, snippets
from tests.trees.faults import install
from tests.trees.host import CLIENT, MAIL, OTHER, PASSWORD, USER, MailHost

pytestmark = [pytest.mark.tree, pytest.mark.timeout(600)]
SETTINGS_FILE = "etc/pbs-policy/pbs-policy.conf"


@pytest.fixture(scope="module")
def installed(host: MailHost) -> MailHost:
    install(host)
    return host


@pytest.fixture
def mail_host(installed: MailHost) -> MailHost:
    """With nobody logged in, and nothing set."""
    configure(installed, "")
    installed.run("redis-cli flushall")
    return installed


def configure(host: MailHost, text: str) -> None:
    (host.root / SETTINGS_FILE).write_text(text)
    host.run("systemctl reset-failed; systemctl restart pbs-policy")
    assert wait_until(lambda: host.run("pbs-policy query client_address=192.0.2.99").returncode == 1, seconds=20)


def login(host: MailHost, client: str = CLIENT) -> None:
    done = host.elsewhere(f"curl -sS -m 10 --insecure --user {USER}:{PASSWORD} imaps://{MAIL}/", client=client)
    assert "LIST" in done.stdout, done.stdout


def send(host: MailHost, client: str = CLIENT) -> str:
    words = f"swaks --server {MAIL} --from {USER} --to bob@example.net --timeout 10"
    return host.elsewhere(words, client=client).stdout


def web_mail(before: str) -> str:
    """A program on the mail host that logs in by IMAP, after `before` (of its connection `c`)."""
    return f"""python3 - <<'END'
import imaplib, ssl
imaplib.Commands["ID"] = ("NONAUTH",)
c = imaplib.IMAP4_SSL("127.0.0.1", ssl_context=ssl._create_unverified_context())
{before}
print(c.login("{USER}", "{PASSWORD}"))
END"""


def answer(host: MailHost, port: int, client: str = CLIENT) -> str:
    return host.run(f"pbs-policy query --listener inet:127.0.0.1:{port} client_address={client}").stdout


def test_a_webmail_on_the_mail_host_permits_nobody(mail_host: MailHost) -> None:
    done = mail_host.run(web_mail(""))
    assert "OK" in done.stdout, done.stdout
    assert mail_host.run("pbs-policy list").stdout == ""


def test_a_webmail_on_another_host_permits_everybody_there_until_it_is_listed(mail_host: MailHost) -> None:
    login(mail_host, OTHER)
    assert "250 2.0.0 Ok: queued" in send(mail_host, OTHER)
    (listed,) = snippets(TOP / "docs" / "howto" / "webmail.md")
    mail_host.run("redis-cli flushall")
    configure(mail_host, listed.text.replace("192.0.2.80", OTHER))
    login(mail_host, OTHER)
    assert mail_host.run("pbs-policy list").stdout == ""
    assert "Relay access denied" in send(mail_host, OTHER)


def test_the_address_that_a_trusted_webmail_passes_on_is_recorded(mail_host: MailHost) -> None:
    (mail_host.root / "etc/dovecot/conf.d/50-trusted.conf").write_text("login_trusted_networks = 127.0.0.1\n")
    try:
        mail_host.run("systemctl restart dovecot")
        script = web_mail(f"""c._simple_command("ID", '("x-originating-ip" "{CLIENT}")')""")
        assert wait_until(lambda: "OK" in mail_host.run(script).stdout, seconds=20)
        assert CLIENT in mail_host.run("pbs-policy list").stdout
    finally:
        (mail_host.root / "etc/dovecot/conf.d/50-trusted.conf").unlink()
        mail_host.run("systemctl restart dovecot")


def test_two_services_at_one_redis_know_of_the_same_login_and_stats_lists_both(mail_host: MailHost) -> None:
    listening = "--set listen=inet:127.0.0.1:10041"
    mail_host.run(f"systemd-run --quiet --unit second -p User=pbs-policy /usr/local/bin/pbs-policy {listening} serve")
    try:
        assert wait_until(lambda: "DUNNO" in answer(mail_host, 10041), seconds=20), mail_host.run(
            "journalctl -n 20 -u second"
        ).stdout
        login(mail_host)
        assert "OK" in answer(mail_host, 10040)
        assert "OK" in answer(mail_host, 10041)

        def both() -> bool:
            shown = mail_host.run("pbs-policy stats").stdout.partition("ACTION")[0]
            return len(shown.splitlines()) >= 3  # a head, and a line for each service

        assert wait_until(both, seconds=20), mail_host.run("pbs-policy stats").stdout
        mail_host.run(f"pbs-policy revoke {CLIENT}")
        assert "DUNNO" in answer(mail_host, 10041)
    finally:
        mail_host.run("systemctl stop second")


def test_the_master_that_sentinel_names_is_followed_by_script_and_service(mail_host: MailHost) -> None:
    page = next(each for each in snippets(TOP / "docs" / "howto" / "several-servers.md") if "+sentinel" in each.text)
    (named,) = re.findall(r"^redis_url = redis\w*\+sentinel://([^/]+)/(\w+)", page.text, re.MULTILINE)
    _, name = named
    mail_host.run(
        f"mkdir -p /run/s; printf 'port 26379\\nsentinel monitor {name} 127.0.0.1 6379 1\\n' >/run/s/sentinel.conf; "
        "systemd-run --quiet --unit replica redis-server --port 6380 --save '' --replicaof 127.0.0.1 6379; "
        "systemd-run --quiet --unit sentinel redis-server /run/s/sentinel.conf --sentinel"
    )
    try:
        master = f"redis-cli -p 26379 sentinel master {name}"
        assert wait_until(lambda: "num-slaves\n1" in mail_host.run(master).stdout, seconds=60)
        configure(mail_host, f"redis_url = redis+sentinel://127.0.0.1:26379/{name}\n")
        login(mail_host)
        assert "250 2.0.0 Ok: queued" in send(mail_host)
        mail_host.run(f"redis-cli -p 26379 sentinel failover {name}")
        # Sentinel names it last: until then a login goes to the former master, and is lost with it.
        elected = f"redis-cli -p 26379 sentinel get-master-addr-by-name {name}"
        assert wait_until(lambda: "6380" in mail_host.run(elected).stdout, seconds=60)

        def relayed_again() -> bool:
            login(mail_host, OTHER)
            return "250 2.0.0 Ok: queued" in send(mail_host, OTHER)

        assert wait_until(relayed_again, seconds=60), mail_host.run("journalctl -n 30").stdout
        assert OTHER in mail_host.run("redis-cli -p 6380 keys '*'").stdout
    finally:
        mail_host.run("systemctl stop sentinel replica; redis-cli replicaof no one")


def test_the_service_runs_without_a_right_and_with_a_root_that_is_read_only(mail_host: MailHost) -> None:
    mail_host.run(
        "systemd-run --quiet --unit contained -p User=65534 -p ReadOnlyPaths=/ -p CapabilityBoundingSet= "
        "-p NoNewPrivileges=yes -p PrivateTmp=yes -E PBS_LISTEN=inet:0.0.0.0:10042 -E PBS_NEVER_RECORD=172.16.0.0/12 "
        "/usr/local/bin/pbs-policy serve"
    )
    try:
        assert wait_until(lambda: "DUNNO" in answer(mail_host, 10042), seconds=20), mail_host.run(
            "journalctl -n 20 -u contained"
        ).stdout
        login(mail_host)
        assert "OK" in answer(mail_host, 10042)
        # The script reads the file alone: what the environment told the service did not reach it, nor should it.
        mail_host.run("redis-cli set pbs:login:172.17.0.1 1 EX 60")
        assert "DUNNO" in answer(mail_host, 10042, "172.17.0.1")
    finally:
        mail_host.run("systemctl stop contained")


def test_leaving_for_smtp_auth_the_report_names_who_is_left_before_and_after_the_day(mail_host: MailHost) -> None:
    page = snippets(TOP / "docs" / "howto" / "smtp-auth.md")
    services, passwords = (next(each.text for each in page if each.kind == kind) for kind in ("master.cf", "dovecot"))
    the_day = next(each.text for each in page if each.kind == "settings")
    master_cf = mail_host.root / "etc/postfix/master.cf"
    before = master_cf.read_text()
    auth = mail_host.root / "etc/dovecot/conf.d/50-auth.conf"
    try:
        master_cf.write_text(before + services)
        auth.write_text(passwords)
        mail_host.run("systemctl restart dovecot postfix")

        def submitted(*options: str) -> str:
            words = f"curl -sS -m 10 --insecure --ssl-reqd --mail-from {USER} --mail-rcpt bob@example.net -T -"
            message = "Subject: x\r\n\r\nx\r\n"
            done = mail_host.elsewhere(f"{words} {' '.join(options)} smtp://{MAIL}:587/", typed=message)
            return "" if done.returncode == 0 else done.stdout

        def authenticated() -> bool:
            return submitted("--user", f"{USER}:{PASSWORD}") == ""

        assert wait_until(authenticated, seconds=30)
        assert "554" in submitted()
        assert "submission" in mail_host.run("pbs-policy doctor | grep 'good.*postfix.submission'").stdout
        assert USER not in mail_host.run("pbs-policy report --since 4w").stdout
        login(mail_host)
        assert "250 2.0.0 Ok: queued" in send(mail_host)
        assert wait_until(lambda: USER in mail_host.run("pbs-policy report --since 4w").stdout, seconds=20)
        (mail_host.root / SETTINGS_FILE).write_text(the_day)
        assert mail_host.run("systemctl reload pbs-policy").returncode == 0
        assert wait_until(lambda: "Relay access denied" in send(mail_host), seconds=20)
        assert "would_be=OK" in mail_host.run("journalctl -u pbs-policy -n 20").stdout
        assert authenticated()
    finally:
        master_cf.write_text(before)
        auth.unlink(missing_ok=True)
        mail_host.run("systemctl restart dovecot postfix")
