"""Relay attempts in Postfix' log: real lines, lines of every kind, and lines that an attacker wrote."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
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
    return [attempt for line in lines if (attempt := log.read(line))]


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
    ],
)
def test_a_line_is_understood_behind_each_header(header: str) -> None:
    assert read(header + REFUSAL) == [REFUSED]


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


def test_a_message_that_comes_back_from_a_content_filter_is_left_out() -> None:
    client = "localhost[127.0.0.1], orig_queue_id=1CE6B20C311, orig_client=unknown[192.0.2.8]"
    assert read(*message(client)) == []


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
        "x " + HEADER + REFUSAL,
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
    assert log._size == sum(1 + len(each.recipients) for each in log._messages.values()) <= remembered


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
