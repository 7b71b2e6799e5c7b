"""Whatever stands in Redis, is published on its channel, or is handed to `pbs-policy import`: a record, permit, list
of prefix lengths, message or line is read, or is none, without an exception (import: ValueError, with a reason). What
is read is written, and read again as the same.
"""

from __future__ import annotations

import contextlib
import json

from pbs_policy.address import ClientAddresses, parse_network
from pbs_policy.log import printable
from pbs_policy.table import records, transfer
from pbs_policy.table.networks import parse_lengths, serialise_lengths
from pbs_policy.table.permits import refuse_permit
from pbs_policy.table.records import Permit, Record
from pbs_policy.watch.state import State

WORDS = (
    b"1795453232", b" imap ", b"alice@example.com", b'{"given_at": 1795453232', b'"user": "', b'"senders": ["',
    b'"]', b'"recipient_domains": ["example.net"]', b'"cap": "20/1h"', b'"note": "', b"}", b", ", b"4/24 6/48",
    b"\\udcff", b"\\ud800", b'{"kind": "login"', b'"client_address": "192.0.2.7"', b'"service": "imap"',
    b'"since": "2026-11-23T17:00:32Z"', b'"expires_at": "2026-11-23T17:02:12Z"', b'"by": "auto_deny"',
    b'"login_at": 1795453232', b'"ends_at": 1795453332', b'"kind": "permit"', b'"target": "', b"192.0.2.0/24",
    b"2001:db8::/64", b'"kind": "deny"', b'"kind": "deny-user"', b'"reason": "', b'"all"',
    b'{"host": "mx1", "pid": 1, "batch": 1', b'"counts": {"', b"\n", b'"time": 1', b'"action": "OK"', b"NaN",
    b"1e999", b"-1", b"[[[[", b"null", b"\xff\xfe", b"\0",
)  # fmt: skip

_NOW = 1_795_453_232
_ADDRESSES = ClientAddresses(64, (parse_network("198.51.100.0/24"),))


def run(data: bytes) -> None:
    """The same bytes are read as each of these."""
    _read_record(data)
    _read_permit(data)
    lengths = parse_lengths(data)
    assert parse_lengths(serialise_lengths(lengths)) == lengths
    with contextlib.suppress(ValueError):
        _read_item(transfer.parse_line(data, _ADDRESSES, _NOW), data)
    state = State("pbs:", 0.0)
    state.hear(data, 1.0, _NOW)
    for event in state.events:
        assert event.line().isprintable()


def _read_record(data: bytes) -> None:
    record, user = records.parse_record(data), records.user_of_record(data)
    assert (record is None) == (user is None)
    if record is not None and user is not None:
        assert record.user.encode("utf-8", "surrogateescape") == user
        assert printable(record.user_text).isprintable()
        record.user_text.encode()
        assert records.parse_record(records.serialise_record(record)) == _with_service(record)


def _with_service(record: Record) -> Record:
    """What becomes of a user without a service."""
    return record._replace(service="unknown") if record.user and not record.service else record


def _read_permit(data: bytes) -> None:
    permit = records.parse_permit(data)
    if permit is not None:
        assert records.parse_permit(records.serialise_permit(permit)) == permit
        for text in (permit.user, permit.note, *permit.senders, *permit.recipient_domains):
            text.encode("utf-8", "surrogateescape")
        json.dumps(records.permit_fields(permit))
    elif records.parse_record(data) is not None:
        raise AssertionError("a record is a permit without conditions")


def _read_item(item: transfer.Item, data: bytes) -> None:
    assert 0 <= item.ends_at < _NOW + 10**9
    if isinstance(item.what, Permit):
        assert item.target is not None
        if not item.target.excluded:
            refuse_permit(item.target)
        assert records.parse_permit(records.serialise_permit(item.what)) == item.what
    elif isinstance(item.what, Record):
        assert item.target is not None
        assert item.target.length is None
        assert records.parse_record(records.serialise_record(item.what)) == _with_service(item.what)
    else:
        item.what.encode("utf-8", "surrogateescape")
        item.denied_user.encode("utf-8", "surrogateescape")
    if item.target is None:
        assert item.denied_user or b"all" in data
    elif not item.target.excluded:
        # A deny is taken as it is written, whatever ipv6_prefix is.
        known = ClientAddresses() if isinstance(item.what, str) else _ADDRESSES
        assert known.parse_target(item.target.text)._replace(host=item.target.host) == item.target
