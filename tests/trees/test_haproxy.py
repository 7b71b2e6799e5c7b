"""docs/howto/haproxy.md on a booted Debian: its own snippets, a real HAProxy on a third host (the one that is
installed here, and the tree's), both PROXY versions.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from pbs_policy.demo.daemons import wait_until
from tests.pages import TOP, snippets
from tests.tree_programs import command, names
from tests.trees.faults import install
from tests.trees.host import CLIENT, MAIL, OTHER, PASSWORD, PROXY, USER, MailHost

pytestmark = [pytest.mark.tree, pytest.mark.timeout(600)]
SETTINGS, BALANCER, DOVECOT, POSTFIX, FIREWALL = snippets(TOP / "docs" / "howto" / "haproxy.md")


def here(text: str) -> str:
    """The page's addresses in ours."""
    return text.replace("10.0.0.5", PROXY).replace("10.0.0.1:", f"{MAIL}:")


@pytest.fixture(scope="module")
def proxied(host: MailHost) -> MailHost:
    """The mail host as the page leaves it, with never_record but without a firewall."""
    install(host)
    (host.root / "etc/pbs-policy/pbs-policy.conf").write_text(here(SETTINGS.text))
    (host.root / "etc/dovecot/conf.d/50-haproxy.conf").write_text(here(DOVECOT.text))
    with (host.root / "etc/postfix/master.cf").open("a") as file:
        file.write(POSTFIX.text)
    done = host.run("systemctl restart pbs-policy dovecot postfix")
    assert done.returncode == 0, done.stdout

    def listen() -> bool:
        shown = host.run("ss -ltn").stdout
        return all(f":{port} " in shown for port in (10025, 10993, 10995, 10040))

    assert wait_until(listen, seconds=20)
    return host


@pytest.fixture(params=names("haproxy"))
def haproxy(request: pytest.FixtureRequest) -> list[str]:
    """How HAProxy is run, in the foreground, before the name of its file."""
    return [*command(request.param, ["haproxy"]), "-db", "-f"]


@pytest.fixture(params=["send-proxy-v2", "send-proxy"])
def balancer(request: pytest.FixtureRequest, haproxy: list[str], proxied: MailHost) -> Iterator[MailHost]:
    file = proxied.place / "haproxy.cfg"
    file.write_text(here(BALANCER.text).replace("send-proxy-v2", request.param))
    proxied.run("redis-cli flushall")
    with subprocess.Popen(proxied.in_space(PROXY, *haproxy, str(file))) as running:
        try:
            assert wait_until(lambda: "220 " in send(proxied, CLIENT), seconds=20)
            yield proxied
        finally:
            running.kill()


def send(host: MailHost, client: str, server: str = PROXY) -> str:
    words = f"swaks --server {server} --from {USER} --to bob@example.net --timeout 10"
    return host.elsewhere(words, client=client).stdout


def login(host: MailHost, client: str, protocol: str = "imaps") -> int:
    return host.elsewhere(
        f"curl -s -m 10 --insecure --user {USER}:{PASSWORD} {protocol}://{PROXY}/", client=client
    ).returncode


@pytest.mark.parametrize("protocol", ["imaps", "pop3s"])
def test_a_login_through_haproxy_permits_its_client_and_nobody_else_who_comes_that_way(
    balancer: MailHost, protocol: str
) -> None:
    balancer.run("redis-cli flushall")
    assert "Relay access denied" in send(balancer, CLIENT)
    assert login(balancer, CLIENT, protocol) == 0
    listed = balancer.run("pbs-policy list").stdout
    assert CLIENT in listed, balancer.run("journalctl -n 20").stdout
    assert PROXY not in listed
    assert "250 2.0.0 Ok: queued" in send(balancer, CLIENT)
    assert "Relay access denied" in send(balancer, OTHER)


def test_without_the_proxy_protocol_at_dovecot_nobody_is_permitted(balancer: MailHost, haproxy: list[str]) -> None:
    plain = balancer.place / "plain.cfg"
    plain.write_text(f"""
defaults
    mode tcp
    timeout connect 5s
    timeout client 1m
    timeout server 1m
listen imaps
    bind :1993
    server mail {MAIL}:993
""")
    balancer.run("redis-cli flushall")
    words = f"curl -sS -m 10 --insecure --user {USER}:{PASSWORD} imaps://{PROXY}:1993/"
    with subprocess.Popen(balancer.in_space(PROXY, *haproxy, str(plain))) as running:
        try:
            assert wait_until(lambda: "LIST" in balancer.elsewhere(words).stdout, seconds=20)
        finally:
            running.kill()
    assert balancer.run("pbs-policy list").stdout == ""
    assert "Relay access denied" in send(balancer, CLIENT)


def test_the_firewall_leaves_the_proxys_ports_to_the_proxy(balancer: MailHost) -> None:
    words = f"curl -s -m 2 telnet://{MAIL}:10025 </dev/null"
    assert balancer.elsewhere(words).returncode != 7
    rules = balancer.place / "rules.nft"
    rules.write_text(here(FIREWALL.text))
    try:
        subprocess.run(balancer.in_space(MAIL, "nft", "-f", str(rules)), check=True)
        assert balancer.elsewhere(words).returncode == 28, "a time-out: the packets are dropped"
        assert "220 " in send(balancer, CLIENT)
    finally:
        subprocess.run(balancer.in_space(MAIL, "nft", "flush", "ruleset"), check=True)
