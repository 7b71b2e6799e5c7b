"""No line of a log raises an exception. What is found in it is an attempt without control characters, whose every
part stands in what was read; what is remembered stays within its bound, and what is counted as its size is its size.
"""

from __future__ import annotations

from pbs_policy.postfix.smtpd_log import ACCEPTED, SmtpdLog
from tests.fuzz.targets import Supply

WORDS = (
    b"\n", b"Jan  1 00:00:00 mx1 ", b"2026-01-01T00:00:00.000+00:00 mx1 ", b"postfix/smtpd[1]: ",
    b"postfix/qmgr[2]: ", b"postfix/smtp[3]: ", b"postfix/relay/smtp[3]: ", b"postfix/submission/smtpd[4]: ",
    b"NOQUEUE: ", b"4AbC1: ", b"reject: RCPT from unknown[192.0.2.7]: ",
    b"554 5.7.1 <b@example.net>: Relay access denied", b"; from=<", b"> to=<", b"> proto=ESMTP helo=<", b">",
    b"client=host[192.0.2.7]", b", sasl_username=alice", b", orig_client=x[192.0.2.8]",
    b"from=<a@example.com>, size=1", b"to=<b@example.net>, relay=", b"to=<b@example.net>, orig_to=<c>, delay=1",
    b"relay=127.0.0.1[127.0.0.1]:10024, status=sent (250 Ok: queued as 4AbC2)", b"client=localhost[127.0.0.1]",
    b", orig_queue_id=4AbC1, orig_client=host[192.0.2.7]", b"4AbC2: ", b"postfix/10025/smtpd[5]: ",
    b"proxy-accept: END-OF-MESSAGE: 250 2.0.0 Ok: queued as 4AbC2; from=<", b"NOQUEUE: client=host[192.0.2.7]",
    b'{"log":"', b"\\n\"}", b"<22>1 2026-01-01T00:00:00Z mx1 postfix/smtpd 1 - - ", b"mail-1  | ",
    b"removed", b'"a>b"@example.com', b'\\"', b"2001:db8::7", b": relay permission cannot be checked now", b"\x85",
    b"\xc2\xa0",
)  # fmt: skip


def run(data: bytes) -> None:
    """The bytes are lines; the first one says how much may be remembered."""
    supply = Supply(data)
    log = SmtpdLog(remembered=1 + supply.number(16))
    text = supply.rest().decode("utf-8", "surrogateescape")
    for line in text.split("\n"):
        attempts = log.read(line)
        assert log._size == sum(each.size for each in log._messages.values()) <= log.remembered
        for attempt in attempts:
            for part in attempt[:5]:
                assert part in text or "{" in text, "only JSON may spell it in another way"
                assert not any(ord(letter) < 32 or ord(letter) == 127 for letter in part)
            assert attempt.reply == ACCEPTED or attempt.reply in line or line.startswith("{")
