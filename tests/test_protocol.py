"""The policy delegation protocol: real requests, any cut of the bytes, every limit, and what is refused."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pbs_policy.postfix.protocol import (
    MAX_LINE_SIZE,
    MAX_REQUEST_SIZE,
    ProtocolError,
    Request,
    RequestParser,
    as_request,
    first,
    only,
    serialise_reply,
)
from tests.conftest import CAPTURES
from tests.service import pieces, request

REQUESTS = sorted((CAPTURES / "policy").iterdir())
CHUNK_SIZES = (1, 7, 16, 8192)
TYPE = b"request=smtpd_access_policy\n"

Outcome = list[Request | str]


def outcomes(chunks: Iterable[bytes]) -> Outcome:
    """The requests that come out of `chunks` in turn, and last what was wrong, or that bytes are left waiting.

    Which of the two size limits is named may depend on the cut: a piece can pass the one before the other.
    """
    parser = RequestParser()
    found: Outcome = []
    try:
        for chunk in chunks:
            one = parser.next_request(chunk)
            while one is not None:
                found.append(one)
                one = parser.next_request()
    except ProtocolError as error:
        return [*found, "over a size limit" if " bytes" in str(error) else str(error)]
    return [*found, "bytes left"] if parser.waiting else found


def by_lines(data: bytes) -> Outcome:
    """The same by the line path alone: a lone byte is never a whole request."""
    return outcomes(pieces(data, 1))


class ShortWay(RequestParser):
    """A parser that takes only what is one sound request in one piece."""

    def _next_by_lines(self) -> Request | None:
        return None


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """`data` cut at `places`, taken modulo its length; a cut made twice gives an empty piece."""
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def sound(size: int, attributes: int = 20) -> bytes:
    """A sound request of exactly `size` bytes in `attributes` lines, each of them within the line limit."""
    lines = [TYPE, *(b"a%02d=\n" % number for number in range(attributes - 1))]
    missing = size - sum(map(len, lines)) - 1
    for number in range(1, attributes):
        filling = min(missing, MAX_LINE_SIZE - len(lines[number]))
        lines[number] = lines[number][:-1] + b"x" * filling + b"\n"
        missing -= filling
    data = b"".join(lines) + b"\n"
    assert len(data) == size
    return data


# --- what Postfix sends


@pytest.mark.parametrize("size", CHUNK_SIZES)
@pytest.mark.parametrize("file", REQUESTS, ids=lambda file: file.name)
def test_a_captured_request_parses_the_same_in_pieces_of_any_size(file: Path, size: int) -> None:
    data = file.read_bytes()
    assert outcomes(pieces(data, size)) == [as_request(data)]


@pytest.mark.parametrize("file", REQUESTS, ids=lambda file: file.name)
def test_every_attribute_of_a_captured_request_is_found_with_its_value(file: Path) -> None:
    data = file.read_bytes()
    lines = data.decode().split("\n")[:-2]
    expected = [(line[: line.index("=")], line[line.index("=") + 1 :]) for line in lines]
    (one,) = outcomes([data])
    assert isinstance(one, Request)
    assert len(expected) == (31 if "3.10" in file.name else 29)
    assert expected[0] == ("request", "smtpd_access_policy")  # which the parser has seen, and nobody asks for
    for name, value in expected[1:]:
        assert first(one, name.encode()) == only(one, name.encode()) == value.encode()


@pytest.mark.parametrize("file", REQUESTS, ids=lambda file: file.name)
def test_a_captured_request_takes_the_short_way(file: Path) -> None:
    """Otherwise the hot path would be code that no real request reaches."""
    assert ShortWay().next_request(file.read_bytes()) is not None


@pytest.mark.parametrize("size", CHUNK_SIZES)
def test_several_requests_in_one_segment_come_out_one_by_one(size: int) -> None:
    requests = [file.read_bytes() for file in REQUESTS[:9]]
    assert outcomes(pieces(b"".join(requests), size)) == [as_request(each) for each in requests]


def test_a_request_is_there_with_its_last_byte_and_not_before() -> None:
    data = request("192.0.2.7")
    parser = RequestParser()
    for at in range(len(data)):
        assert parser.next_request() is None
        assert bool(parser.waiting) == (at > 0)
        parser.receive(data[at : at + 1])
    assert parser.next_request() == as_request(data)
    assert not parser.waiting


def test_bytes_of_the_next_request_wait_for_their_end() -> None:
    one, other = request("192.0.2.7"), request("192.0.2.8")
    parser = RequestParser()
    parser.receive(one + other[:30])
    assert parser.next_request() == as_request(one)
    assert parser.next_request() is None
    assert parser.waiting
    parser.receive(other[30:] + one)
    assert parser.next_request() == as_request(other)
    assert parser.waiting
    assert parser.next_request() == as_request(one)
    assert parser.next_request() is None


# --- attributes


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        (b"sender=prvs=12ab=alice@example.com", b"sender", b"prvs=12ab=alice@example.com"),
        (b"sender=", b"sender", b""),
        (b"helo_name=\xff\xfe", b"helo_name", b"\xff\xfe"),
        (b"sender=a\rb", b"sender", b"a\rb"),
        (b"=value of an empty name", b"", b"value of an empty name"),
        (b"sender= alice", b"sender", b" alice"),
        (b"ccert_subject=\xd0\xb0", b"ccert_subject", "\u0430".encode()),
    ],
)
def test_an_odd_value_is_handed_on_byte_for_byte(line: bytes, name: bytes, value: bytes) -> None:
    (one,) = outcomes([TYPE + line + b"\n\n"])
    assert isinstance(one, Request)
    assert first(one, name) == only(one, name) == value
    assert by_lines(TYPE + line + b"\n\n") == [one]


def test_the_request_type_may_stand_anywhere_and_unknown_attributes_are_ignored() -> None:
    (one,) = outcomes([b"sender=a@example.com\nfrom_the_future=1\n" + TYPE + b"client_address=192.0.2.7\n\n"])
    assert isinstance(one, Request)
    assert only(one, b"client_address") == b"192.0.2.7"


def test_a_missing_attribute_is_empty() -> None:
    one = as_request(request("192.0.2.7"))
    assert first(one, b"sasl_username") == only(one, b"sasl_username") == b""


def test_a_name_is_never_found_inside_another_name_or_a_value() -> None:
    one = as_request(b"reverse_sender=x\nhelo_name=sender=y\n\n")
    assert only(one, b"sender") == b""
    assert only(one, b"ender") == b""


def test_an_attribute_that_stands_twice_is_no_ground_for_a_decision() -> None:
    """Two client addresses: to choose one of them would let the peer choose which is looked at by whom."""
    (one,) = outcomes([TYPE + b"client_address=192.0.2.7\nclient_address=192.0.2.7\n\n"])
    assert isinstance(one, Request)
    with pytest.raises(ProtocolError, match=r"^attribute client_address stands twice in one request$"):
        only(one, b"client_address")
    assert first(one, b"client_address") == b"192.0.2.7"


# --- what is refused


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"\n", "an empty request"),
        (b"\n\n", "an empty request"),
        (b"\r\n", "a line that ends with CR LF, expected LF alone"),
        (b"sender\n", "a line without '='"),
        (b"GET / HTTP/1.0\n", "a line without '='"),
        (b"sender=a\n \n" + TYPE, "a line without '='"),
        (b"GET / HTTP/1.1\r\n\r\n", "a line that ends with CR LF, expected LF alone"),
        (b"EHLO mail.example.com\r\n", "a line that ends with CR LF, expected LF alone"),
        (TYPE[:-1] + b"\r\n\r\n", "a line that ends with CR LF, expected LF alone"),
        (TYPE + b"sender=a\r\n\n", "a line that ends with CR LF, expected LF alone"),
        (TYPE + b"sender=a\n\r\n", "a line that ends with CR LF, expected LF alone"),
        (b"sender=a\n\n", "a request without request=smtpd_access_policy"),
        (b"request=junk\n", "a request type other than smtpd_access_policy"),
        (b"request=\n", "a request type other than smtpd_access_policy"),
        (b"request=smtpd_access_policy \n", "a request type other than smtpd_access_policy"),
        (b"request=SMTPD_ACCESS_POLICY\n", "a request type other than smtpd_access_policy"),
        (b"Request=smtpd_access_policy\n\n", "a request without request=smtpd_access_policy"),
        (b"sender=a\nrequest=smtpd_access_policy2\n\n", "a request type other than smtpd_access_policy"),
    ],
)
def test_what_is_not_this_protocol_is_named(data: bytes, fault: str) -> None:
    assert outcomes([data]) == by_lines(data) == [fault]


def test_a_stray_newline_after_a_request_does_not_take_that_request_away() -> None:
    data = request("192.0.2.7")
    assert outcomes([data + b"\n"]) == by_lines(data + b"\n") == [as_request(data), "an empty request"]


def test_each_request_must_name_its_type_anew() -> None:
    data = TYPE + b"sender=a\n\n"
    expected = [as_request(data), "a request without request=smtpd_access_policy"]
    assert outcomes([data + b"sender=b\n\n"]) == by_lines(data + b"sender=b\n\n") == expected


# --- limits: exactly at each, and one over


@pytest.mark.parametrize("size", [7, 8192, MAX_REQUEST_SIZE])
def test_a_line_of_the_longest_size_passes_and_one_byte_more_does_not(size: int) -> None:
    fitting = TYPE + b"x=" + b"a" * (MAX_LINE_SIZE - 3) + b"\n\n"
    assert outcomes(pieces(fitting, size)) == [as_request(fitting)]
    assert outcomes(pieces(fitting.replace(b"x=", b"x=a"), size)) == ["over a size limit"]


@pytest.mark.parametrize(
    ("fitting", "fault"),
    [
        (b"x=" + b"a" * (MAX_LINE_SIZE - 3), f"a line of more than {MAX_LINE_SIZE} bytes"),
        (sound(MAX_REQUEST_SIZE)[:-1], f"a request of more than {MAX_REQUEST_SIZE} bytes"),
    ],
    ids=["line", "request"],
)
def test_what_is_over_a_limit_is_refused_before_its_end_comes(fitting: bytes, fault: str) -> None:
    parser = RequestParser()
    parser.receive(fitting)
    assert parser.next_request() is None
    parser.receive(b"x")
    with pytest.raises(ProtocolError, match=f"^{fault}$"):
        parser.next_request()


@pytest.mark.parametrize("size", [7, 8192, 2 * MAX_REQUEST_SIZE])
@pytest.mark.parametrize("before", [b"", sound(160)], ids=["alone", "after another"])
def test_a_request_of_the_largest_size_passes_and_one_byte_more_does_not(size: int, before: bytes) -> None:
    begun = [as_request(before)] if before else []
    fitting = sound(MAX_REQUEST_SIZE)
    assert outcomes(pieces(before + fitting, size)) == [*begun, as_request(fitting)]
    assert outcomes(pieces(before + sound(MAX_REQUEST_SIZE + 1), size)) == [*begun, "over a size limit"]


@pytest.mark.parametrize("size", [1, 7, 8192])
@pytest.mark.parametrize("line", [b"sender", b" ", b"x" * 100])
def test_behind_the_type_a_line_without_an_equals_sign_is_an_unknown_attribute(line: bytes, size: int) -> None:
    data = TYPE + line + b"\nclient_address=192.0.2.7\n" + line + b"\n\n"
    assert outcomes(pieces(data, size)) == [as_request(data)]
    assert (only(as_request(data), b"client_address"), only(as_request(data), b"sender")) == (b"192.0.2.7", b"")


# --- any cut of any bytes

_names = st.sampled_from([b"sender", b"client_address", b"helo_name", b"", b"x", b"\xff"])
_values = st.one_of(
    st.binary(max_size=12).map(lambda value: value.replace(b"\n", b"=")),
    st.sampled_from([b"", b"=", b"192.0.2.7", b"prvs=1=a@example.com", "\u00e9".encode(), b"\xc3", b"a\rb"]),
)
_attributes = st.builds(lambda name, value: name + b"=" + value.rstrip(b"\r") + b"\n", _names, _values)


def _assembled(attributes: list[bytes], place: int) -> bytes:
    lines = list(attributes)
    lines.insert(place % (len(lines) + 1), TYPE)
    return b"".join(lines) + b"\n"


_sound_requests = st.builds(_assembled, st.lists(_attributes, max_size=6), st.integers(0, 6))
_small = st.one_of(
    _sound_requests,
    _attributes,
    st.sampled_from(
        [b"\n", b"\r\n", b"\r", b"=", b"=\n", b"no sign\n", TYPE, b"request=junk\n", TYPE[:-1] + b"\r\n", b"\0", b"a"]
    ),
    st.sampled_from([b"a=\n" * 200, b"a\n" * 200]),
    st.binary(max_size=20),
)
_large = st.sampled_from(
    [
        *(b"a=" + b"b" * size for size in (MAX_LINE_SIZE - 3, MAX_LINE_SIZE - 2, MAX_LINE_SIZE)),
        *(sound(size) for size in (MAX_REQUEST_SIZE - 1, MAX_REQUEST_SIZE, MAX_REQUEST_SIZE + 1)),
    ]
)
_small_streams = st.lists(_small, max_size=6).map(b"".join)
_streams = st.one_of(
    _small_streams,
    st.lists(st.one_of(_small, _large), max_size=5).map(b"".join),
    st.lists(_sound_requests, min_size=1, max_size=4).map(b"".join),
)
_cuts = st.lists(st.integers(0, 200_000), max_size=8)


@given(_streams, _cuts)
@example(b"", [])
@example(TYPE + b"\n", [0, 0, 28])
def test_any_split_gives_the_same_requests_and_the_same_error(data: bytes, places: list[int]) -> None:
    assert outcomes(cut(data, places)) == outcomes([data])


@given(_small_streams)
def test_byte_by_byte_gives_the_same_requests_and_the_same_error(data: bytes) -> None:
    assert by_lines(data) == outcomes([data])


@given(st.lists(_sound_requests, max_size=5), _cuts)
def test_every_sound_request_comes_out_whole(requests: list[bytes], places: list[int]) -> None:
    assert outcomes(cut(b"".join(requests), places)) == [as_request(each) for each in requests]


_doubtful = st.lists(
    st.sampled_from([b"a", b"=", b"\n", b"\r", b"\n\n", b"a=b\n", b"=\n", b"\r\n", b"request=junk\n", TYPE]),
    max_size=9,
).map(lambda parts: TYPE + b"".join(parts))


@given(st.one_of(_doubtful, _small_streams, _doubtful.map(lambda data: data + b"\n\n")))
def test_the_short_way_takes_only_what_the_lines_say_is_one_request(data: bytes) -> None:
    if ShortWay().next_request(data) is not None:
        assert by_lines(data) == [as_request(data)]


@given(st.binary(max_size=300), _cuts)
def test_bytes_of_any_kind_raise_nothing_but_a_protocol_error(data: bytes, places: list[int]) -> None:
    outcomes(cut(data, places))


@given(st.lists(_attributes, max_size=6), _names)
def test_what_is_read_of_a_request_never_leaves_its_line(attributes: list[bytes], name: bytes) -> None:
    one = as_request(b"".join(attributes) + b"\n")
    values = [line.split(b"=", 1)[1][:-1] for line in attributes if line.split(b"=", 1)[0] == name]
    assert first(one, name) == (values[0] if values else b"")
    if len(values) < 2:
        assert only(one, name) == first(one, name)
    else:
        with pytest.raises(ProtocolError):
            only(one, name)


# --- replies


@pytest.mark.parametrize(
    ("action", "reply"),
    [
        ("OK", b"action=OK\n\n"),
        ("DUNNO", b"action=DUNNO\n\n"),
        ("DEFER_IF_REJECT", b"action=DEFER_IF_REJECT\n\n"),
        ("DEFER_IF_REJECT 4.3.0 try again", b"action=DEFER_IF_REJECT 4.3.0 try again\n\n"),
    ],
)
def test_each_of_the_three_actions_can_be_sent(action: str, reply: bytes) -> None:
    assert serialise_reply(action) == reply


@pytest.mark.parametrize(
    "action",
    [
        "", " ", "\n", "ok", "Ok", "OK ", " OK", "OK\n", "OK\r", "OK 2.0.0 welcome", "DUNNO\n", "DUNNO x", "REJECT",
        "PERMIT", "permit_mynetworks", "DEFER", "DEFER_IF_PERMIT", "DEFER_IF_PERMIT 4.3.0 no", "DEFER_IF_REJECT ",
        "DEFER_IF_REJECT  4.3.0", "DEFER_IF_REJECT 4.3.0 a\naction=OK", "DEFER_IF_REJECT 4.3.0 a\n", "action=OK",
        "DEFER_IF_REJECT 4.3.0 \u00e9", "DEFER_IF_REJECT 4.3.0\ttab", "DEFER_IF_REJECT4.3.0", "OK\0",
    ],
)  # fmt: skip
def test_any_other_action_cannot_be_sent(action: str) -> None:
    """Postfix permits on an empty action, and on words that it takes for a restriction of its own."""
    with pytest.raises(ValueError, match=r"^not an action that may be sent: "):
        serialise_reply(action)


@given(
    st.one_of(st.text(), st.text(max_size=30).map("DEFER_IF_REJECT ".__add__), st.text(max_size=5).map("OK".__add__))
)
def test_a_reply_is_one_known_action_or_is_refused(action: str) -> None:
    try:
        reply = serialise_reply(action)
    except ValueError:
        return
    assert reply.startswith((b"action=OK", b"action=DUNNO", b"action=DEFER_IF_REJECT"))
    assert reply.endswith(b"\n\n")
    text = reply[len(b"action=") : -2]
    assert text
    assert not set(text) & set(b"\r\n\0")
    assert text.decode("ascii") == action
