"""Relay attempts in Postfix' log: real lines, lines of every kind, and lines that an attacker wrote."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbs_policy.decision.rules import DEFER
from pbs_policy.postfix.query import serialise_request
from pbs_policy.postfix.smtpd_log import ACCEPTED, Attempt, SmtpdLog
from pbs_policy.shipped import shipped

LOGS = Path(__file__).parent / "logs"
HEADER = "Nov  3 20:11:16 mx postfix/smtpd[123]: "
DENIED = "554 5.7.1 <bob@example.net>: Relay access denied"
ENVELOPE = "; from=<alice@example.com> to=<bob@example.net> proto=ESMTP helo=<client.example.net>"
REFUSAL = f"NOQUEUE: reject: RCPT from unknown[192.0.2.7]: {DENIED}{ENVELOPE}"
REFUSED = Attempt(
    "192.0.2.7", "unknown", "client.example.net", "alice@example.com", "bob@example.net", DENIED, True
)  # fmt: skip


def read(*lines: str, log: SmtpdLog | None = None) -> list[Attempt]:
    """The attempts that these lines tell of."""
    log = log or SmtpdLog()
    return [attempt for line in lines for attempt in log.read(line)]


def message(
    client: str = "unknown[192.0.2.8]",
    sender: str = "alice@example.com",
    recipient: str = "bob@example.net",
    *,
    queue_id: str = "2980E20C1D3",
    where: str = "mx postfix",
) -> list[str]:
    """The lines of a relayed message, as far as its first recipient."""
    return [
        f"Nov 23 20:11:16 {where}/smtpd[1]: {queue_id}: client={client}",
        f"Nov 23 20:11:16 {where}/cleanup[2]: {queue_id}: message-id=<1@example.com>",
        f"Nov 23 20:11:16 {where}/qmgr[3]: {queue_id}: from=<{sender}>, size=324, nrcpt=1 (queue active)",
        f"Nov 23 20:11:16 {where}/smtp[4]: {queue_id}: to=<{recipient}>, relay=mx.example.net[203.0.113.1]:25,"
        " delay=1, delays=1/0/0/0, dsn=2.0.0, status=sent (250 ok)",
    ]


@pytest.mark.parametrize("version", ["3.7", "3.10"])
def test_what_a_real_postfix_logs_is_understood(version: str) -> None:
    log = SmtpdLog()
    seen = read(*(LOGS / f"postfix-{version}.log").read_text().splitlines(), log=log)
    assert log.unparseable == 0
    assert [
        (each.client_address, each.sender, each.recipient, each.reply[:3], each.about_relaying) for each in seen
    ] == [
        ("192.0.2.7", "alice@example.com", "bob@example.net", "554", True),
        ("2001:db8::7", "alice@example.com", "bob@example.net", "554", True),
        ("192.0.2.7", "", "bob@example.net", "554", True),
        ("unknown", "alice@example.com", "bob@example.net", "554", True),
        ("192.0.2.7", '"alice x; from=<y> to=<z>"@example.com', '"b o > b"@example.net', "554", True),
        ("192.0.2.7", "alice@example.com", "nobody@local.example", "554", False),
        ("192.0.2.8", "alice@example.com", "bob@example.net", "250", True),
        ("2001:db8::8", "alice@example.com", "bob@example.net", "250", True),
        ("192.0.2.8", "", "bob@example.net", "250", True),
        ("192.0.2.8", "alice@example.com", "later@example.net", "250", True),
        ("192.0.2.8", "alice@example.com", "forward@local.example", "250", False),
        ("192.0.2.9", "carol@example.com", "frank@example.net", "554", True),
        ("192.0.2.9", "carol@example.com", "bob@example.net", "250", True),
        ("192.0.2.9", "carol@example.com", "erin@example.net", "250", True),
    ]


@pytest.mark.parametrize("version", ["3.7", "3.10"])
def test_an_instance_of_another_name_with_ports_and_long_queue_ids_is_understood(version: str) -> None:
    log = SmtpdLog()
    seen = read(*(LOGS / f"postfix-{version}-instance.log").read_text().splitlines(), log=log)
    assert log.unparseable == 0
    assert [(each.client_address, each.reply[:3]) for each in seen] == [
        ("192.0.2.7", "554"), ("2001:db8::7", "554"), ("192.0.2.8", "250"), ("2001:db8::8", "250")
    ]  # fmt: skip


@pytest.mark.parametrize(
    "header",
    [
        "postfix/smtpd[123]: ",
        "Nov 23 20:11:16 mx postfix/smtpd[123]: ",
        "Nov  3 20:11:16 mx.example.com postfix/smtpd[123]: ",
        "2026-11-23T20:11:16Z mx postfix/smtpd[123]: ",
        "2026-11-23T20:11:16.123456+01:00 mx postfix/smtpd[123]: ",
        "2026-11-23T20:11:16-0500 mx postfix/smtpd[123]: ",
        "Nov 23 20:11:16 mx postfix-out/smtpd[123]: ",
        "Nov 23 20:11:16 mx postfix/submission/smtpd[123]: ",
        "Nov 23 20:11:16 mx mail.example.com/smtps/smtpd[123]: ",
        "Nov 23 20:11:16 mx mail.info postfix/smtpd[123]: ",
        "Nov 23 20:11:16 mx postfix/smtpd[123]: [ID 197553 mail.info] ",
        "Nov 23 20:11:16.123456 mx postfix/smtpd[123]: ",
        "Mon 2026-11-23 20:11:16 UTC mx postfix/smtpd[123]: ",
        "Mon 2026-11-23 20:11:16.123456 CET mx postfix/smtpd[123]: ",
        "2026-11-23 20:11:16,123 mx postfix/smtpd[123]: ",
        "1795880641.123456 mx postfix/smtpd[123]: ",
        "[12345.678901] mx postfix/smtpd[123]: ",
        "2026 Nov 23 20:11:16 mx postfix/smtpd[123]: ",
        "<22>Nov 23 20:11:16 mx postfix/smtpd[123]: ",
        "<22>1 2026-11-23T20:11:16.123456+00:00 mx postfix/smtpd 123 - - ",
        '<22>1 2026-11-23T20:11:16Z mx postfix/smtpd 123 - [meta sequenceId="1" x="a\\"b]"][o a="b"] \ufeff',
        "2026-11-23T20:11:16Z mx postfix/smtpd 123 - - ",
        "mailserver_1  | 2026-11-23T20:11:16.123456+00:00 mx postfix/smtpd[123]: ",
        "mailserver-1  | Nov 23 20:11:16 mx postfix/smtpd[123]: ",
        "2026-11-23T20:11:16.123456789Z Nov 23 20:11:16 mx postfix/smtpd[123]: ",
        "2026-11-23T20:11:16.123456789Z stdout F 2026-11-23T20:11:16Z mx postfix/smtpd[123]: ",
        "[pod/mail-0/postfix] Nov 23 20:11:16 mx postfix/smtpd[123]: ",
        "Nov 23 20:11:16 host docker[32360]: Nov 23 20:11:17 mx postfix/smtpd[123]: ",
        "2026-11-23T20:11:16+00:00 INFO    postfix/smtpd[123]: ",
        "Nov 23 20:11:16 2001:db8::1 postfix/smtpd[123]: ",
    ],
)
def test_a_line_is_understood_behind_each_header(header: str) -> None:
    log = SmtpdLog()
    assert read(header + REFUSAL, log=log) == [REFUSED]
    assert read(header + REFUSAL.replace("NOQUEUE", "message repeated 2 times: [ NOQUEUE") + "]", log=log) == [
        REFUSED
    ]
    assert (log.lines, log.unparseable) == (2, 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"log": f"{HEADER}{REFUSAL}\n", "stream": "stdout", "time": "2026-11-23T20:11:16Z"},
        {"log": f"{HEADER}{REFUSAL}\r\n"},
        {"message": f"{HEADER}{REFUSAL}"},
        {"MESSAGE": REFUSAL, "SYSLOG_IDENTIFIER": "postfix/smtpd", "_PID": "123", "_HOSTNAME": "mx"},
        {"MESSAGE": REFUSAL, "SYSLOG_IDENTIFIER": "postfix/smtpd", "SYSLOG_PID": "123"},
    ],
)
def test_a_line_is_understood_inside_json(fields: dict[str, str]) -> None:
    assert read(json.dumps(fields)) == [REFUSED]
    escaped = json.dumps(fields).replace("alice", "\\ud800\\u00fc")
    (attempt,) = read(escaped)
    serialise_request({"sender": attempt.sender})


@pytest.mark.parametrize(
    "line",
    [
        '{"log": 1}', '{"log": "x"', "{}", "{" * 100_000, '{"a":' * 100_000, '{"a":' + "9" * 5_000 + "}",
        '{"MESSAGE": [1, 2], "SYSLOG_IDENTIFIER": "postfix/smtpd"}', '{"MESSAGE": "x", "SYSLOG_IDENTIFIER": {}}',
    ],
    ids=lambda line: line[:20],
)  # fmt: skip
def test_json_about_something_else_is_no_attempt(line: str) -> None:
    assert read(line) == []


@pytest.mark.parametrize(
    "line",
    [
        f"Nov 23 20:11:16 mx dovecot: imap-login: Login: user=<{HEADER}{REFUSAL}>",
        f"Nov 23 20:11:16 mx dovecot[1]: {HEADER.partition('mx ')[2]}{REFUSAL}",
        f"Nov 23 20:11:16 mx dovecot: x {HEADER.partition('mx ')[2]}{REFUSAL}",
        f"Nov 23 20:11:16 mx postfix/cleanup[1]: 4AbC1: message-id=<{HEADER}{REFUSAL}>",
        f"Nov 23 20:11:16 mx postfix/cleanup[1]: {HEADER}{REFUSAL}",
        f"<22>1 2026-11-23T20:11:16Z mx dovecot 12 - - {HEADER}{REFUSAL}",
        f"<22>1 2026-11-23T20:11:16Z mx dovecot 12 - - x {HEADER.partition('mx ')[2]}{REFUSAL}",
        json.dumps({"log": f"Nov 23 20:11:16 mx dovecot: {HEADER}{REFUSAL}"}),
        json.dumps({"MESSAGE": f"x {HEADER}{REFUSAL}", "SYSLOG_IDENTIFIER": "dovecot", "_PID": "1"}),
        json.dumps({"MESSAGE": REFUSAL, "SYSLOG_IDENTIFIER": "x postfix/smtpd[1]: ", "_PID": "1"}),
    ],
)
def test_a_line_of_another_program_that_quotes_one_of_smtpd_is_no_attempt(line: str) -> None:
    assert read(line) == []


@pytest.mark.parametrize("line", ["x " + HEADER + REFUSAL, "? postfix/smtpd 12 " + REFUSAL, REFUSAL])
def test_a_line_that_looks_like_smtpd_and_is_not_read_is_counted(line: str) -> None:
    log = SmtpdLog()
    assert read(line, log=log) == []
    assert (log.lines, log.unparseable) == (0, 1)


@pytest.mark.parametrize(
    ("reply", "about_relaying"),
    [
        (DENIED, True),
        ("454 4.7.1 <bob@example.net>: Relay access denied", True),
        ("450 4.3.0 <b@x.org>: Recipient address rejected: relay permission cannot be checked now, try again", True),
        ("550 5.1.1 <b@x.org>: Recipient address rejected: User unknown in local recipient table", False),
        ("554 5.7.1 <x: Relay access denied@x.org>: Sender address rejected: Access denied", False),
        ("554 5.7.1 Service unavailable; Client host [192.0.2.7] blocked using dnsbl.example.org", False),
    ],
)
def test_a_refusal_says_whether_it_was_about_relaying(reply: str, about_relaying: bool) -> None:
    (attempt,) = read(HEADER + REFUSAL.replace(DENIED, reply))
    assert (attempt.reply, attempt.about_relaying) == (reply, about_relaying)


def test_temporary_refusals_are_known_by_the_words_of_the_examples_and_of_the_service() -> None:
    said = re.findall(r"DEFER_IF_REJECT 4.3.0 ([^}]*) \}", shipped("postfix-examples/main.cf.inet").read_text())
    for text in [*said, DEFER.removeprefix("DEFER_IF_REJECT 4.3.0 ")]:
        reply = f"450 4.3.0 <b@x.org>: Recipient address rejected: {text}"
        assert read(HEADER + REFUSAL.replace(DENIED, reply))[0].about_relaying
    assert said


@pytest.mark.parametrize(
    ("client", "address"),
    [
        ("unknown[192.0.2.8]", "192.0.2.8"),
        ("a.example.com[2001:db8::8]", "2001:db8::8"),
        ("a.example.com[2001:db8::8]:4711", "2001:db8::8"),
        ("unknown[unknown]", "unknown"),
    ],
)
def test_the_client_address_is_what_stands_in_brackets(client: str, address: str) -> None:
    (accepted,) = read(*message(client))
    (refused,) = read(HEADER + REFUSAL.replace("unknown[192.0.2.7]", client))
    assert accepted.client_address == refused.client_address == address
    assert accepted.client_name == refused.client_name == client.partition("[")[0]
    assert accepted.reply == ACCEPTED


def test_each_recipient_of_a_message_counts_once_however_often_it_is_tried() -> None:
    lines = message()
    second = [line.replace("bob@", "erin@") for line in lines[3:]]
    assert [each.recipient for each in read(*lines, *second, *lines[2:], *second)] == [
        "bob@example.net", "erin@example.net"
    ]  # fmt: skip


def test_a_queue_id_that_comes_again_is_another_message() -> None:
    removed = "Nov 23 20:11:17 mx postfix/qmgr[3]: 2980E20C1D3: removed"
    other = message("unknown[192.0.2.9]", "carol@example.com")
    for lines in ([*message(), removed, *other], [*message(), *other]):
        assert [(each.client_address, each.sender) for each in read(*lines)] == [
            ("192.0.2.8", "alice@example.com"), ("192.0.2.9", "carol@example.com")
        ]  # fmt: skip
    assert read(*message(), removed, message()[3]) == read(*message())


def test_of_a_message_that_is_removed_nothing_is_kept() -> None:
    log = SmtpdLog()
    read(*message(), "Nov 23 20:11:17 mx postfix/qmgr[3]: 2980E20C1D3: removed", log=log)
    assert (log._messages, log._size, log.forgotten) == ({}, 0, 0)


@pytest.mark.parametrize("where", ["mx2 postfix", "mx postfix-out"])
def test_hosts_and_instances_keep_their_queue_ids_apart(where: str) -> None:
    one, two = message("a[192.0.2.1]", "a@example.com"), message("b[192.0.2.2]", "b@example.com", where=where)
    mixed = [line for pair in zip(one, two, strict=True) for line in pair]
    assert [(each.client_address, each.sender) for each in read(*mixed)] == [
        ("192.0.2.1", "a@example.com"), ("192.0.2.2", "b@example.com")
    ]  # fmt: skip


@pytest.mark.parametrize("missing", [0, 2])
def test_a_message_whose_beginning_is_not_in_the_log_is_left_out(missing: int) -> None:
    lines = message()
    del lines[missing]
    assert read(*lines) == []


def test_a_client_with_smtp_auth_is_counted_and_left_out() -> None:
    log = SmtpdLog()
    client = "unknown[192.0.2.8], sasl_method=PLAIN, sasl_username=alice@example.com"
    assert read(*message(client), log=log) == []
    assert (log.authenticated, log.unparseable) == (1, 0)


@pytest.mark.parametrize("file", sorted(LOGS.glob("filter-*.log")), ids=lambda file: file.stem)
def test_what_goes_to_a_filter_is_judged_where_it_comes_back(file: Path) -> None:
    """Two clients: one may relay, the other sends to our own domain and to an alias that leads elsewhere."""
    log = SmtpdLog()
    seen = read(*file.read_text().splitlines(), log=log)
    assert (log.unparseable, log.forgotten, log._messages) == (0, 0, {})
    assert [
        (each.client_address, each.sender, each.recipient, each.reply[:3], each.about_relaying) for each in seen
    ] == [
        ("198.51.100.11", "alice@example.com", "bob@example.net", "250", True),
        ("198.51.100.12", "carol@example.org", "eve@example.net", "554", False),
        ("198.51.100.12", "carol@example.org", "forward@local.example", "250", False),
    ]


@pytest.mark.parametrize("file", sorted(LOGS.glob("filter-*.log")), ids=lambda file: file.stem)
def test_behind_a_filter_a_client_with_smtp_auth_is_left_out(file: Path) -> None:
    log = SmtpdLog()
    client = ": client=unknown[198.51.100.11]"
    text = file.read_text().replace(client + "\n", client + ", sasl_method=PLAIN, sasl_username=alice\n")
    assert {each.client_address for each in read(*text.splitlines(), log=log)} == {"198.51.100.12"}
    assert (log.authenticated, log.unparseable) == (2, 0)


@pytest.mark.parametrize("file", sorted(LOGS.glob("filter-*.log")), ids=lambda file: file.stem)
@given(order=st.randoms())
@settings(max_examples=30)
def test_a_log_of_a_filter_in_any_order_or_cut_names_no_wrong_client(file: Path, order: random.Random) -> None:
    """Daemons write at the same time, and a log begins and ends anywhere."""
    lines = file.read_text().splitlines()
    for _ in range(order.randrange(20)):
        at = order.randrange(len(lines) - 1)
        lines[at : at + 2] = lines[at : at + 2][::-1]
    whole = {each[:5] for each in read(*file.read_text().splitlines())}
    cut = lines[order.randrange(len(lines)) :]
    # What goes to a filter that does not say the first queue id looks like what is relayed, until it answers.
    to_filter = (
        {
            ("198.51.100.11", "unknown", "", "alice@example.com", "user@local.example"),
            ("198.51.100.12", "unknown", "", "carol@example.org", "user@local.example"),  # in one order of 2,000
        }
        if "plain" in file.name
        else set()
    )
    assert {each[:5] for each in read(*cut)} <= whole | to_filter


@pytest.mark.parametrize(
    "client",
    [
        "localhost[127.0.0.1]",
        "localhost[::1]",
        "localhost[127.0.0.1], orig_client=unknown[192.0.2.8]",
        "localhost[127.0.0.1], orig_queue_id=1CE6B20C311, orig_client=unknown[192.0.2.8]",
        "filter[192.0.2.20], orig_queue_id=1CE6B20C311, orig_client=unknown[192.0.2.8]",
    ],
)
def test_what_comes_from_this_host_or_back_from_a_filter_and_belongs_to_nothing_is_left_out(client: str) -> None:
    log = SmtpdLog()
    assert read(*message(client), log=log) == []
    assert log.unparseable == 0


def test_a_stranger_cannot_say_which_message_came_back() -> None:
    theirs, own = (
        message("unknown[192.0.2.8]"),
        message("localhost[127.0.0.1]", "root@local.example", queue_id="4AbC1"),
    )
    theirs[3] = theirs[3].replace("(250 ok)", "(250 2.0.0 Ok: queued as 4AbC1)")
    assert [(each.client_address, each.sender) for each in read(*own[:3], *theirs, own[3])] == [
        ("192.0.2.8", "alice@example.com")
    ]


def test_a_queue_id_that_a_filter_names_is_of_the_same_client_or_nobodys() -> None:
    other = message("unknown[192.0.2.9]", "carol@example.com", queue_id="1CE6B20C311")
    back = message("localhost[127.0.0.1], orig_queue_id=1CE6B20C311, orig_client=unknown[192.0.2.8]")
    assert [each.client_address for each in read(*other[:3], *back)] == []


def test_another_instance_may_be_what_a_filter_gives_its_mail_to() -> None:
    first = message(where="mx postfix-in", queue_id="4AbC1")
    first[3] = (
        first[3]
        .replace("mx.example.net[203.0.113.1]", "127.0.0.1[127.0.0.1]")
        .replace("(250 ok)", "(250 queued as 4AbC2)")
    )
    second = message("localhost[127.0.0.1]", where="mx postfix-out", queue_id="4AbC2")
    assert [each.client_address for each in read(*first[:3], *second[:3], first[3], second[3])] == ["192.0.2.8"]


@pytest.mark.parametrize("program", ["local[4]", "lmtp[4]", "virtual[4]", "relay/smtp[4]", "error[4]"])
def test_what_was_not_sent_on_by_the_smtp_service_was_for_a_domain_of_our_own(program: str) -> None:
    lines = message()
    assert read(*lines[:3], lines[3].replace("smtp[4]", program)) == []


def test_a_recipient_that_was_rewritten_is_named_as_the_client_named_it() -> None:
    lines = message(recipient="bob@example.net>, orig_to=<forward@example.com")
    assert [(each.recipient, each.about_relaying) for each in read(*lines)] == [("forward@example.com", False)]


@pytest.mark.parametrize(
    "line",
    [
        REFUSAL.replace("<client.example.net>", "<x; from=<c@example.com> to=<d@example.org> proto=ESMTP helo=<y>"),
        REFUSAL.replace("<bob@example.net>:", "<b; from=<c@example.com> to=<d@example.org> proto=x@example.net>:"),
        REFUSAL.replace(ENVELOPE, ""),
        REFUSAL.replace("192.0.2.7]", "192.0.2.7"),
        REFUSAL.replace("554 ", "254 "),
        REFUSAL.replace("to=<bob@", 'to=<"bob@'),
        REFUSAL.replace("alice", "al\rice"),
        REFUSAL.replace("alice", "al\0ice"),
        "2980E20C1D3: client=unknown",
    ],
)
def test_a_line_that_is_cut_or_can_be_read_in_two_ways_is_counted_and_left_out(line: str) -> None:
    log = SmtpdLog()
    assert read(HEADER + line, log=log) == []
    assert log.unparseable == 1


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Nov 23 20:11:16 mx dovecot: pop3-login: Login: user=<alice>",
        "Nov 23 20:11:16 mx postfix/postscreen[1]: NOQUEUE: reject: RCPT from [192.0.2.7]:4711: 450 4.3.2 later",
        HEADER + "connect from unknown[192.0.2.7]",
        HEADER + REFUSAL.replace("reject: RCPT", "reject: MAIL"),
        HEADER + REFUSAL.replace("reject: RCPT", "reject_warning: RCPT"),
    ],
)
def test_a_line_about_something_else_is_no_attempt_and_no_fault(line: str) -> None:
    log = SmtpdLog()
    assert read(line, log=log) == []
    assert log.unparseable == 0


def test_no_more_is_kept_than_there_is_room_for() -> None:
    log = SmtpdLog(remembered=10)
    for number in range(100):
        assert read(*message(queue_id=f"{number:08X}"), log=log)
    assert len(log._messages) == 5
    assert log.forgotten == 95
    for number in range(100):
        read(message(queue_id="FFFFFFFF")[0 if number == 0 else 3].replace("bob", f"bob{number}"), log=log)
    assert log._size <= 10


ANY_LINE = st.binary(max_size=300).map(lambda data: data.decode("utf-8", "surrogateescape"))
REAL_LINES = [line for file in sorted(LOGS.glob("*.log")) for line in file.read_text().splitlines()]


@st.composite
def damaged_lines(draw: st.DrawFn) -> str:
    """A real line with a piece of it replaced by something else."""
    line = draw(st.sampled_from(REAL_LINES))
    start = draw(st.integers(0, len(line)))
    return line[:start] + draw(ANY_LINE) + line[draw(st.integers(start, len(line))) :]


@given(st.lists(st.one_of(ANY_LINE, damaged_lines(), st.sampled_from(REAL_LINES)), max_size=40), st.integers(0, 5))
def test_no_line_raises_and_what_comes_out_can_be_asked(lines: list[str], remembered: int) -> None:
    log = SmtpdLog(remembered=remembered)
    for attempt in read(*lines, log=log):
        serialise_request({"sender": attempt.sender, "recipient": attempt.recipient, "helo_name": attempt.helo_name})
        serialise_request({"client_address": attempt.client_address, "client_name": attempt.client_name})
    assert log._size == sum(each.size for each in log._messages.values()) <= remembered


PRINTABLE = st.text(st.characters(min_codepoint=32, exclude_characters="\x7f", exclude_categories=["Cs", "Cc"]))
HOSTILE = st.lists(
    st.sampled_from(["; from=<", "> to=<", "> proto=ESMTP helo=<", ">", "<", '"', "\\", " ", "[203.0.113.1]", "x@y"])
).map("".join)
ATOM = st.text("abc.+-_=09", min_size=1)
QUOTED = st.one_of(PRINTABLE, HOSTILE).map(lambda text: '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"')


@given(st.one_of(PRINTABLE, HOSTILE), st.one_of(PRINTABLE, HOSTILE), st.one_of(PRINTABLE, HOSTILE))
def test_a_peers_text_never_names_another_client(sender: str, recipient: str, helo: str) -> None:
    line = (
        f"{HEADER}NOQUEUE: reject: RCPT from unknown[192.0.2.7]: 554 5.7.1 <{recipient}>: Relay access denied; "
        f"from=<{sender}> to=<{recipient}> proto=ESMTP helo=<{helo}>"
    )
    assert {each.client_address for each in read(line)} <= {"192.0.2.7"}


@given(st.one_of(ATOM, QUOTED), st.one_of(ATOM, QUOTED))
def test_addresses_come_out_as_they_were_logged(sender: str, recipient: str) -> None:
    (accepted,) = read(*message(sender=sender, recipient=recipient))
    assert (accepted.sender, accepted.recipient) == (sender, recipient)
    head = f"{HEADER}NOQUEUE: reject: RCPT from a[192.0.2.7]: {DENIED}"
    refused = read(f"{head}; from=<{sender}> to=<{recipient}> proto=ESMTP")
    assert refused or "; from=<" in sender + recipient, "only what can be read in two ways may be left out"
    assert {(each.sender, each.recipient) for each in refused} <= {(sender, recipient)}
