"""Doctor's check of a proxy in front of both, beyond `broken/` and `sound/`: what it cannot know, and XCLIENT."""

from __future__ import annotations

import pytest

from pbs_policy.doctor.finding import AS_ROOT, Finding
from pbs_policy.doctor.proxy import check_proxy
from pbs_policy.doctor.trusted import check_listeners, check_xclient
from pbs_policy.dovecot.doveconf import ConfigLine, DovecotConfig
from pbs_policy.host import Host, ProgramOutput
from pbs_policy.postfix.configuration import MasterService, PostfixConfig

PLAIN = MasterService("smtp", "inet", False, {}, "master.cf:2")
PROXIED = MasterService("10025", "inet", False, {"smtpd_upstream_proxy_protocol": "haproxy"}, "master.cf:3")
SUBMISSION = MasterService("submission", "inet", False, {"smtpd_upstream_proxy_protocol": "haproxy"}, "master.cf:4")


def postfix(*services: MasterService, xclient: str = "") -> PostfixConfig:
    return PostfixConfig("main.cf", {"smtpd_authorized_xclient_hosts": xclient}, {}, services)


def dovecot(trusted: str = "", unread: tuple[str, ...] = (), listener: str = "") -> DovecotConfig:
    lines = [ConfigLine((), "haproxy_trusted_networks", trusted, "dovecot.conf:1")] if trusted else []
    if listener:
        lines.append(ConfigLine((f"service {listener}", "inet_listener x"), "haproxy", "yes", "dovecot.conf:2"))
    return DovecotConfig("dovecot.conf", tuple(lines), tuple(lines), unread)


def found(there: PostfixConfig, here: DovecotConfig) -> Finding:
    (finding,) = check_proxy(there, here)
    return finding


@pytest.mark.parametrize(
    ("xclient", "level"),
    [("", "warning"), ("127.0.0.0/8, [::1]", "warning"), ("10.0.0.6", "warning"), ("127.0.0.1 10.0.0.5", "good"),
     ("10.0.0.0/24", "good"), ("[2001:db8::5]", "good"), ("proxy.example.com", "good"),
     ("cidr:/etc/postfix/proxies", "good")],
)  # fmt: skip
def test_a_proxy_that_may_use_xclient_needs_no_proxy_protocol(xclient: str, level: str) -> None:
    assert found(postfix(PLAIN, xclient=xclient), dovecot("10.0.0.5 2001:db8::/64")).level == level


@pytest.mark.parametrize(
    ("there", "here", "level"),
    [
        (postfix(PLAIN), dovecot(listener="pop3-login"), "warning"),
        (postfix(PLAIN), dovecot(listener="managesieve-login"), "good"),
        (postfix(PLAIN, SUBMISSION), dovecot(), "good"),
        (postfix(PLAIN, SUBMISSION), dovecot("10.0.0.5"), "warning"),
        (postfix(PLAIN, PROXIED), dovecot("10.0.0.5"), "good"),
    ],
)
def test_only_ports_for_relay_attempts_and_for_logins_that_are_recorded_count(
    there: PostfixConfig, here: DovecotConfig, level: str
) -> None:
    assert found(there, here).level == level


def test_what_stands_in_a_file_that_we_may_not_read_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    finding = found(postfix(PROXIED), dovecot(unread=("/etc/dovecot/conf.d/50-haproxy.conf",)))
    assert (finding.level, finding.mend) == ("unknown", AS_ROOT)
    assert "50-haproxy.conf" in finding.seen


def test_where_somebody_may_say_xclient_it_is_not_said_that_nobody_tells_postfix() -> None:
    finding = found(postfix(PLAIN, xclient="192.168.203.0/24"), dovecot())
    assert finding.level == "good"
    assert finding.seen == (
        "whoever is in smtpd_authorized_xclient_hosts (192.168.203.0/24) may tell Postfix the clients' addresses"
    )
    assert found(postfix(PLAIN), dovecot()).seen == "no proxy tells Postfix or Dovecot the clients' addresses"


class Tables(Host):
    """A postmap that finds everything in static:, opens no hash:, and finds nothing in others."""

    def run(self, program: str, *arguments: str) -> ProgramOutput:
        assert program == "postmap"
        kind = arguments[-1].partition(":")[0]
        failed = "postmap: fatal: open database" if kind == "hash" else ""
        return ProgramOutput("", failed, int(kind != "static"))


@pytest.mark.parametrize(
    ("level", "lists"),
    [
        ("good", ["", "127.0.0.0/8 [::1]/128", "10.0.0.5, [2001:db8::5]", "10.0.0.0/28", "proxy.example.com",
                  "inline:{10.0.0.5=x}"]),
        ("warning", ["10.0.0.0/27", "!10.0.0.1 10.0.0.0/24", "2001:db8::/64", ".example.com"]),
        ("wrong", ["10.0.0.0/24 0.0.0.0/0", "[::]/0", "static:all"]),
        ("unknown", ["hash:/etc/postfix/proxies", "/etc/postfix/proxies"]),
    ],
)  # fmt: skip
def test_xclient_is_for_proxies_and_not_for_networks(level: str, lists: list[str]) -> None:
    said = [finding.level for each in lists for finding in check_xclient(postfix(PLAIN, xclient=each), Tables())]
    assert said == [level] * len(lists)


@pytest.mark.parametrize(
    ("level", "names"),
    [
        ("warning", ["10025", "0.0.0.0:10025", "[::]:10025", "8.8.8.8:10025", "mail.example.com:10025"]),
        ("good", ["127.0.0.1:10025", "localhost:10025", "10.0.0.1:10025", "[fd00::1]:10025", "submission"]),
    ],
)
def test_a_port_for_the_proxy_protocol_is_safe_inside_alone(level: str, names: list[str]) -> None:
    for name in names:
        entry = MasterService(name, "inet", False, {"smtpd_upstream_proxy_protocol": "haproxy"}, "master.cf:3")
        (finding,) = check_listeners(postfix(PLAIN, entry))
        assert finding.level == level, name
    inside = PostfixConfig("main.cf", {"inet_interfaces": "loopback-only"}, {}, (PROXIED,))
    assert [each.level for each in check_listeners(inside)] == ["good"]
