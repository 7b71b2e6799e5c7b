"""The settings: the file's grammar, which source wins, and that every fault is named at once with its place."""

from __future__ import annotations

import contextlib
from dataclasses import fields
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pbs_policy.address import ClientAddresses
from pbs_policy.cap import Cap
from pbs_policy.decision.rules import Rules
from pbs_policy.decision.sender import SenderRules
from pbs_policy.postfix.listener import Listener
from pbs_policy.postfix.main_cf import logical_lines
from pbs_policy.settings import Settings, defaults, load, meaning, sources
from pbs_policy.settings.sources import SettingsError, Value
from pbs_policy.store import redis_url
from pbs_policy.store.redis_url import RedisUrl, TlsFiles

BAD_SETTINGS = sorted((Path(__file__).parent / "bad_settings").glob("*.conf"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A settings file that is empty yet."""
    path = tmp_path / "pbs-policy.conf"
    path.touch()
    return path


def faults_of(file: Path | None, environment: dict[str, str] | None = None, *overrides: str) -> list[str]:
    with pytest.raises(SettingsError) as refused:
        load(file, environment, overrides)
    return [fault.replace(str(file), "FILE") for fault in refused.value.faults]


# --- every setting


SETTINGS: dict[str, tuple[Any, str, Any]] = {
    "listen": (
        (Listener(host="127.0.0.1", port=10040),), "inet:127.0.0.1:10041, unix:/run/p.sock\n  inet:[::1]:10040",
        (Listener("127.0.0.1", 10041), Listener(path="/run/p.sock"), Listener("::1", 10040)),
    ),
    "unix_socket_mode": (0o660, "0666", 0o666),
    "unix_socket_group": ("", "postfix", "postfix"),
    "redis_url": (
        RedisUrl((("127.0.0.1", 6379),)), "rediss+sentinel://sentinel.example.com/mail",
        RedisUrl((("sentinel.example.com", 26379),), tls=True, master="mail"),
    ),
    "redis_user": ("", "pbs", "pbs"),
    "redis_password_file": ("", "/etc/pbs-policy/password", "/etc/pbs-policy/password"),
    "sentinel_user": ("", "pbs-sentinel", "pbs-sentinel"),
    "sentinel_password_file": ("", "/etc/pbs-policy/sentinel-password", "/etc/pbs-policy/sentinel-password"),
    "redis_tls_ca_file": ("", "/etc/pbs-policy/ca.pem", "/etc/pbs-policy/ca.pem"),
    "redis_tls_cert_file": ("", "/etc/pbs-policy/cert.pem", "/etc/pbs-policy/cert.pem"),
    "redis_tls_key_file": ("", "/etc/pbs-policy/key.pem", "/etc/pbs-policy/key.pem"),
    "key_prefix": ("pbs:", "mail:", "mail:"),
    "ttl": (1800, "8h", 28_800),
    "ipv6_prefix": (128, "64", 64),
    "never_record": (
        (), "192.0.2.0/24,\n\t2001:db8::/32 198.51.100.7",
        (ip_network("192.0.2.0/24"), ip_network("2001:db8::/32"), ip_network("198.51.100.7/32")),
    ),
    "record_master_logins": (False, "yes", True),
    "services": (frozenset(), "pop3, imap", frozenset({"pop3", "imap"})),
    "sender_match": ("off", "domain", "domain"),
    "user_domain": ("", "Example.com", "Example.com"),
    "login_domains": (frozenset(), "Example.com, example.net", frozenset({"example.com", "example.net"})),
    "sender_maps": ("", "/etc/pbs-policy/senders", "/etc/pbs-policy/senders"),
    "recipient_delimiter": ("", "+-", "+-"),
    "batv": ("off", "fold", "fold"),
    "null_sender": ("refuse", "permit", "permit"),
    "require_tls": (False, "yes", True),
    "max_recipients_per_address": (None, "200/1h", Cap(200, 3600)),
    "max_recipients_per_user": (None, "500/1d", Cap(500, 86_400)),
    "denies": ("", "/etc/pbs-policy/denies", "/etc/pbs-policy/denies"),
    "auto_deny": (0, "2h", 7_200),
    "on_unavailable": ("defer", "dunno", "dunno"),
    "observe_only": (False, "yes", True),
    "usage_kept": (30 * 86_400, "7d", 7 * 86_400),
    "log_decisions": ("permitted", "all", "all"),
    "log_to": ("stderr", "syslog:/run/log", "syslog:/run/log"),
    "log_format": ("text", "json", "json"),
    "log_logins": (False, "yes", True),
    "metrics_listen": (
        (), "inet:127.0.0.1:10042 unix:/run/m.sock",
        (Listener("127.0.0.1", 10042), Listener(path="/run/m.sock")),
    ),
    "reports_listen": (
        (), "inet:127.0.0.1:10041 inet:[::1]:10041",
        (Listener("127.0.0.1", 10041), Listener("::1", 10041)),
    ),
    "reports_check_passwords": (False, "yes", True),
    "record_proxied_logins": (False, "yes", True),
    "reports_secret_file": ("", "/etc/pbs-policy/reports_secret", "/etc/pbs-policy/reports_secret"),
    "renew_sessions": (60, "30s", 30),
    "dovecot_config": ("", "/srv/dovecot/dovecot.conf", "/srv/dovecot/dovecot.conf"),
    "recorder_metrics_listen": ((), "inet:127.0.0.1:10043", (Listener("127.0.0.1", 10043),)),
}  # fmt: skip
"""Of each setting: its default, another text, and the value which that is."""


def test_the_defaults_are_those_of_the_manual(file: Path) -> None:
    loaded, values = load(file)
    assert loaded == Settings(**{name: default for name, (default, _, _) in SETTINGS.items()})
    assert list(values) == list(SETTINGS)
    assert values == defaults()
    assert {value.place for value in values.values()} == {"default"}
    assert loaded.rules == Rules()
    assert loaded.addresses == ClientAddresses()
    assert loaded.redis_password() == ""


@pytest.mark.parametrize("name", [each.name for each in fields(Settings)])
def test_every_setting_has_a_sentence_that_says_what_it_means(name: str) -> None:
    assert meaning(name).endswith(".")
    assert len(meaning(name)) > 20


def test_every_setting_can_be_set(file: Path) -> None:
    file.write_text("".join(f"{name} = {text}\n" for name, (_, text, _) in SETTINGS.items()))
    loaded, _ = load(file)
    assert loaded == Settings(**{name: value for name, (_, _, value) in SETTINGS.items()})
    assert loaded.rules == Rules(
        SenderRules("domain", "Example.com", "+-", "permit", "fold"),
        frozenset({"pop3", "imap"}),
        login_domains=frozenset({b"example.com", b"example.net"}),
        require_tls=True,
        address_cap=Cap(200, 3600),
        user_cap=Cap(500, 86_400),
        auto_deny=7_200,
        on_unavailable="dunno",
        observe_only=True,
    )
    assert loaded.addresses == ClientAddresses(64, loaded.never_record)
    names = ("ca.pem", "cert.pem", "key.pem")
    assert loaded.redis_tls == TlsFiles(*(f"/etc/pbs-policy/{name}" for name in names))


# --- the file


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (b"", []),
        (b"\n \n\t\n", []),
        (b"# a = 1\n  # b = 2\n", []),
        (b"a = 1", [(1, b"a = 1")]),
        (b"a = 1\n", [(1, b"a = 1")]),
        (b"a = 1\n  2\n\t3\n", [(1, b"a = 1 2 3")]),
        (b"a =\n  1\n", [(1, b"a = 1")]),
        (b"a = 1\n\n  2\n# no\n   # no\n  3\nb = 4\n", [(1, b"a = 1 2 3"), (7, b"b = 4")]),
        (b"a = 1\r\n  2\r\n\r\nb = 3\r\n", [(1, b"a = 1 2"), (4, b"b = 3")]),
        (b"  a = 1\n", [(1, b"  a = 1")]),
        (b"# c\n\n  a = 1\n  2", [(3, b"  a = 1 2")]),
        (b"a = 1 # 2\n", [(1, b"a = 1 # 2")]),
        (b"a = 1\n  2 # 3\n", [(1, b"a = 1 2 # 3")]),
        (b"a = \xff\n", [(1, b"a = \xff")]),
    ],
)
def test_lines_are_those_of_main_cf(text: bytes, lines: list[tuple[int, bytes]]) -> None:
    assert list(logical_lines(text)) == lines


@pytest.mark.parametrize(
    ("text", "prefix"),
    [
        (b"key_prefix=a:", "a:"),
        (b"key_prefix = a:\n", "a:"),
        (b"\tkey_prefix\t=\ta:\t\n", "a:"),
        (b"key_prefix =\n# which?\n\n a:\n", "a:"),
        (b"key_prefix = a=b\n", "a=b"),
        (b"key_prefix = a:\r\n", "a:"),
        (b"key_prefix = #a:\n", "#a:"),
    ],
)
def test_a_value_is_what_stands_behind_the_first_equals_sign(file: Path, text: bytes, prefix: str) -> None:
    file.write_bytes(text)
    loaded, _ = load(file)
    assert loaded.key_prefix == prefix


def test_the_place_of_a_value_is_the_line_its_name_stands_in(file: Path) -> None:
    file.write_text("# two lines\n\nkey_prefix =\n\n  a:\nttl = 1h\n")
    _, values = load(file)
    assert values["key_prefix"] == Value("a:", f"{file}:3")
    assert values["ttl"] == Value("1h", f"{file}:6")


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    assert faults_of(tmp_path / "absent") == ["FILE: No such file or directory"]
    assert faults_of(tmp_path) == ["FILE: Is a directory"]


def test_the_default_file_may_be_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "DEFAULT_FILE", tmp_path / "absent")
    assert load()[1] == defaults()
    (tmp_path / "absent").write_text("ttl = 2h\n")
    assert load()[0].ttl == 7200


# --- which source wins


def test_the_file_yields_to_the_environment_and_that_to_the_command_line(file: Path) -> None:
    file.write_text("ttl = 1h\nkey_prefix = file:\nredis_password_file = /file\n")
    environment = {"PBS_TTL": "2h", "PBS_KEY_PREFIX": " environment: "}
    loaded, values = load(file, environment, ["ttl=3h", " sender_match = domain "])
    assert (loaded.ttl, values["ttl"].place) == (10_800, "--set")
    assert (loaded.key_prefix, values["key_prefix"].place) == ("environment:", "PBS_KEY_PREFIX")
    assert (loaded.redis_password_file, values["redis_password_file"].place) == ("/file", f"{file}:3")
    assert (loaded.sender_match, values["sender_match"].place) == ("domain", "--set")
    assert (loaded.ipv6_prefix, values["ipv6_prefix"].place) == (128, "default")


def test_of_two_overrides_the_last_one_counts_as_on_any_command_line(file: Path) -> None:
    assert load(file, {}, ["ttl=1h", "ttl=2h"])[0].ttl == 7200


def test_an_override_can_empty_a_value(file: Path) -> None:
    file.write_text("redis_user = pbs\n")
    assert load(file, {}, ["redis_user="])[0].redis_user == ""
    assert load(file, {"PBS_REDIS_USER": ""})[0].redis_user == ""


def test_a_variable_of_another_program_is_no_fault_and_a_near_miss_is(file: Path) -> None:
    others = {
        "PBS_REQUIRE_DAEMONS": "1",
        "PBS_JOBID": "1",
        "PBS_O_PATH": "/bin",
        "pbs_ttl": "x",
        "TTL": "x",
        "PBS_": "",
    }
    assert load(file, others)[1] == defaults()
    assert faults_of(file, {"PBS_KEY_PREFX": "a:"}) == ["PBS_KEY_PREFX: unknown setting (did you mean key_prefix?)"]



def test_a_removed_setting_is_told_with_its_place_and_is_no_fault(file: Path) -> None:
    file.write_text("ttl = 8h\nworkers = 2\n")
    told: list[str] = []
    settings, values = load(file, {"PBS_WORKERS": "3"}, ["workers=4"], told.append)
    assert settings.ttl == 8 * 3600
    assert "workers" not in values
    what = "workers: one process serves; several hosts are several services on one Redis"
    places = f"{file}:2", "PBS_WORKERS", "--set"
    assert told == [f"a removed setting is ignored: {place}: {what}" for place in places]


# --- faults


@pytest.mark.parametrize("file", BAD_SETTINGS, ids=lambda file: file.stem)
def test_a_bad_file_is_refused_with_what_its_first_lines_expect(file: Path) -> None:
    """Each begins with `# expected:LINE: FAULT`, for every fault, in any order."""
    expected = [
        line.removeprefix(b"# expected").strip().decode()
        for line in file.read_bytes().split(b"\n")
        if line.startswith(b"# expected")
    ]
    assert expected
    assert sorted(faults_of(file)) == sorted(f"FILE{fault}" for fault in expected)


def test_the_faults_of_every_source_come_at_once(file: Path) -> None:
    file.write_text("tttl = 1\nttl = soon\non_unavailable = ok\n")
    faults = faults_of(
        file, {"PBS_IPV6_PREFIX": "32", "PBS_LISTN": ""}, "sender_mach=off", "ttl", "=x", "redis_url=x"
    )
    assert sorted(faults) == [
        "--set ttl: expected name=value",
        f"--set: redis_url = x: expected {redis_url.EXPECTED}",
        "--set: unknown setting ''",
        "--set: unknown setting 'sender_mach' (did you mean sender_match?)",
        "FILE:1: unknown setting 'tttl' (did you mean ttl?)",
        "FILE:2: ttl = soon: expected a time from 1s to 1830d such as 90s, 30m, 8h, 90d",
        "FILE:3: on_unavailable = ok: expected defer or dunno",
        "PBS_IPV6_PREFIX: ipv6_prefix = 32: expected a number of bits from 48 to 128",
        "PBS_LISTN: unknown setting (did you mean listen?)",
    ]


# --- settings that would silently not hold, and those that do nothing


def test_a_user_with_a_password_from_the_service_manager_is_no_fault(file: Path, tmp_path: Path) -> None:
    file.write_text("redis_user = pbs\n")
    environment = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert len(faults_of(file, environment)) == 1
    (tmp_path / "redis_password").write_text("secret\n")
    assert load(file, environment)[0].redis_user == "pbs"


@pytest.mark.parametrize("scheme", ["rediss", "valkeys", "rediss+sentinel", "valkeys+cluster"])
def test_files_for_tls_hold_with_every_url_that_has_it(file: Path, scheme: str) -> None:
    file.write_text("redis_tls_ca_file = /ca.pem\nredis_tls_cert_file = /cert.pem\nkey_prefix = {pbs}:\n")
    path = "/mail" if "sentinel" in scheme else ""
    assert load(file, {}, [f"redis_url={scheme}://redis.example.com{path}"])[0].redis_tls.ca == "/ca.pem"
    plain = scheme.replace("ss", "s").replace("keys", "key")
    assert len(faults_of(file, {}, f"redis_url={plain}://redis.example.com{path}")) == 2


def test_the_place_of_a_setting_that_would_not_hold_is_where_it_was_said(file: Path) -> None:
    assert [fault.partition(":")[0] for fault in faults_of(file, {"PBS_REDIS_USER": "pbs"})] == ["PBS_REDIS_USER"]
    assert [fault.partition(":")[0] for fault in faults_of(file, {}, "redis_tls_ca_file=/ca.pem")] == ["--set"]


def test_a_setting_without_effect_that_harms_nothing_is_told(file: Path) -> None:
    file.write_text(
        "sentinel_user = s\nsentinel_password_file = /p\nsender_maps = /m\nnull_sender = permit\n"
        "sender_match = domain\n"
    )
    told: list[str] = []
    load(file, {}, ["sender_match=off"], told.append)
    assert told == [
        f"{file}:1: sentinel_user has no effect: redis_url names no Sentinels",
        f"{file}:2: sentinel_password_file has no effect: redis_url names no Sentinels",
        f"{file}:3: sender_maps has no effect with sender_match = off: any sender may relay",
        f"{file}:4: null_sender has no effect with sender_match = off: any sender may relay",
    ]
    told.clear()
    load(file, {}, ["redis_url=redis+sentinel://sentinel.example.com/mail"], told.append)
    assert told == []


def test_what_only_looks_like_a_setting_may_continue_a_line(file: Path) -> None:
    file.write_text("key_prefix =\n  colour=red:\nnever_record =\n  192.0.2.0/24\n# ttl = 1h\n  198.51.100.0/24\n")
    loaded, _ = load(file)
    assert (loaded.key_prefix, len(loaded.never_record)) == ("colour=red:", 2)


# --- bounds of single settings


@pytest.mark.parametrize(("name", "good", "bad"), [
    ("ipv6_prefix", ["48", "128", "064"], ["47", "129", "", "-1", "64.0", "\u0666\u0664", "6" * 5000]),
    ("unix_socket_mode", ["0660", "660", "777", "0000"], ["", "66", "0o660", "1777", "888", "00660"]),
    ("key_prefix", ["p", "!", "x" * 64], ["", "x" * 65, "a b", "\u00e9", "a\tb"]),
    ("never_record", ["", ",", " , ", "192.0.2.0/24,,2001:db8::/32"], ["x", "192.0.2.0/24;", "192.0.2.1/24"]),
    ("redis_password_file", ["", "/p", "/a=b"], ["p", "~/p", "/a b"]),
    ("unix_socket_group", ["", "postfix"], ["a b", "a\tb"]),
    ("observe_only", ["yes", "no"], ["", "Yes", "1", "on"]),
])  # fmt: skip
def test_a_settings_values_at_their_bounds(file: Path, name: str, good: list[str], bad: list[str]) -> None:
    for text in good:
        load(file, {}, [f"{name}={text}"])
    for text in bad:
        assert len(faults_of(file, {}, f"{name}={text}")) == 1


# --- the password


@pytest.mark.parametrize(
    ("content", "password"),
    [
        (b"secret", "secret"),
        (b"secret\n", "secret"),
        (b"secret\r\n", "secret"),
        (b"secret\nand a note\n", "secret"),
        (b" se cret \n", " se cret "),
        ("s\u00e9cret\n".encode(), "s\u00e9cret"),
        ("a\u2028b\x0cc\x1cd\x85e\n".encode(), "a\u2028b\x0cc\x1cd\x85e"),
    ],
)
def test_the_password_is_the_files_first_line(file: Path, tmp_path: Path, content: bytes, password: str) -> None:
    """A line ends with a newline, and with nothing else: the post-login script reads it so."""
    (tmp_path / "password").write_bytes(content)
    loaded, _ = load(file, {}, [f"redis_password_file={tmp_path / 'password'}"])
    assert loaded.redis_password() == password


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\nsecret\n", b"\r\n", b"\xff\n"])
def test_a_password_file_that_cannot_be_used_is_a_fault_of_the_settings(
    file: Path, tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "password").write_bytes(content)
    loaded, _ = load(file, {}, [f"redis_password_file={tmp_path / 'password'}"])
    with pytest.raises(SettingsError, match=r"^redis_password_file: .") as refused:
        loaded.redis_password()
    assert "secret" not in str(refused.value)


# --- anything at all

_lines = st.one_of(
    st.sampled_from([name.encode() + b" = " + value.text.encode() for name, value in defaults().items()]),
    st.sampled_from(
        [b"ttl = 8h", b"ttl=", b"ttl", b" 8h", b"\t", b"#", b" # c", b"=", b"\r", b"x = \xff", b"\0", b"\xc2\xa0"]
    ),
    st.binary(max_size=12),
)
_files = st.one_of(st.lists(_lines, max_size=8).map(b"\n".join), st.binary(max_size=200))


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_files)
@example(b"redis_password_file = /\0")
@example(b"listen = unix:/\0")
def test_any_bytes_as_a_file_are_settings_or_a_settings_error(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    with contextlib.suppress(SettingsError):
        loaded, values = load(file)
        assert list(values) == list(defaults())
        with contextlib.suppress(SettingsError):
            loaded.redis_password()


@given(
    st.lists(st.text(max_size=20), max_size=4), st.dictionaries(st.text(max_size=9).map("PBS_".__add__), st.text())
)
def test_any_overrides_and_variables_are_settings_or_a_settings_error(
    overrides: list[str], environment: dict[str, str]
) -> None:
    with contextlib.suppress(SettingsError):
        load(Path("/dev/null"), environment, overrides)


@pytest.mark.parametrize("line", ["Authorization:", "Authorization: ", " "])
def test_a_secret_for_reports_that_is_empty_is_none(tmp_path: Path, line: str) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{line}\n")
    settings = load(Path("/dev/null"), {}, [f"reports_secret_file={file}"])[0]
    with pytest.raises(SettingsError, match="expected a secret in the first line"):
        settings.reports_secret()
