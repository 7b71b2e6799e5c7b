"""However the bytes off a connection are cut into pieces, the same requests come out, and after them the same
`ProtocolError` or none. Nothing else is raised, and a request holds what its lines say.
"""

from __future__ import annotations

from pbs_policy.postfix import protocol
from pbs_policy.postfix.protocol import MAX_REQUEST_SIZE, ProtocolError, Request, RequestParser
from tests.fuzz.targets import Supply

WORDS = (
    b"request=smtpd_access_policy\n", b"client_address=", b"sender=", b"recipient=", b"\n\n", b"\r\n", b"request=",
    b"192.0.2.7\n", b"protocol_state=RCPT\n", b"=\n", b"\xfe",
)  # fmt: skip

_LONG = b"x" * 4_094  # three of them are more than a line may hold, nine more than a request may


def run(data: bytes) -> None:
    """The first bytes say how the others are cut; 0xFE stands for a long piece of text."""
    supply = Supply(data)
    sizes = [1 + supply.number(64) for _ in range(supply.number(8))]
    stream = supply.rest().replace(b"\xfe", _LONG)
    whole, fault = _parse([stream])
    cuts, at = [], 0
    for size in sizes:
        cuts.append(stream[at : at + size])
        at += size
    cuts.append(stream[at:])
    assert (whole, fault) == _parse(cuts), cuts
    lines = stream.split(b"\n")
    for request in whole:
        taken = lines[: lines.index(b"")]
        del lines[: len(taken) + 1]
        _check(request, taken)


def _parse(pieces: list[bytes]) -> tuple[list[Request], str]:
    parser = RequestParser()
    requests: list[Request] = []
    try:
        for piece in pieces:
            request = parser.next_request(piece)
            while request is not None:
                requests.append(request)
                request = parser.next_request()
    except ProtocolError as error:
        return requests, str(error)
    return requests, ""


def _check(request: Request, lines: list[bytes]) -> None:
    assert sum(len(line) + 1 for line in lines) < MAX_REQUEST_SIZE
    assert b"request=smtpd_access_policy" in lines
    for name in (b"client_address", b"sender", b"recipient", b"x"):
        said = [line[len(name) + 1 :] for line in lines if line.startswith(name + b"=")]
        assert protocol.first(request, name) == (said or [b""])[0]
        try:
            assert protocol.only(request, name) == (said or [b""])[0]
        except ProtocolError:
            assert len(said) > 1
        else:
            assert len(said) < 2
