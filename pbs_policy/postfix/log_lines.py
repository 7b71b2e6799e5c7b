"""One line of a log, whatever wrote it down: which host and instance of Postfix logged what. Pure.

Before Postfix's own words stands a header: of syslog (RFC 3164 and RFC 5424), of journalctl in each of its formats,
of a container's log (`docker logs`, `docker compose logs`, kubectl, json-file), of one syslog inside another. A
header has only what is listed here, so that a line of another program which quotes one of Postfix's is not taken for
it.
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

_CLOCK = r"\d\d:\d\d:\d\d(?:[.,]\d+)?"
_DAY = r"(?:[A-Z][a-z]{2} )?"
_ZONE = r"(?: ?(?:Z|[A-Z]{3,5}|[+-]\d\d:?\d\d))?"
_TIME = (
    rf"(?:{_DAY}(?:\d{{4}} )?[A-Z][a-z]{{2}} [ \d]\d (?:\d{{4}} )?{_CLOCK}(?: \d{{4}})?"
    rf"|{_DAY}\d{{4}}-\d\d-\d\d[T ]{_CLOCK}{_ZONE}|\d{{9,10}}(?:\.\d+)?|\[ *\d+\.\d+(?: <[ \d.]+>)?\])"
)
_LEVEL = r"(?:[a-z\d]+\.[a-z]+|(?:INFO|NOTICE|WARN|WARNING|ERROR|DEBUG|stdout F|stderr F))"
_HOST = r"[\w.:@/-]*[\w@/-]"
_TAG = r"(?P<instance>[\w.-]+)/(?P<service>(?:[\w.-]+/)*)(?P<program>[\w-]+)"
_CONTAINER = r"(?:(?P<container>[\w.-]+) +\| |\[[\w./ -]+\] )? *"
_UNIT = rf"(?:<\d{{1,3}}>)?(?:(?:{_TIME}|{_LEVEL}) +){{0,4}}"

_SYSLOG = re.compile(
    rf"{_CONTAINER}(?:{_UNIT}(?:{_HOST} +)?(?:docker/)?[\w.@-]+\[\d+\]: +(?={_TIME})){{0,2}}?"
    rf"{_UNIT}(?:(?P<host>{_HOST}) +)?(?:{_LEVEL} +)?{_TAG}\[(?P<pid>\d+)\]: (?:\[ID \d+ [\w.]+\] )?(?P<text>.*)"
)
_RFC_5424 = re.compile(
    rf"{_CONTAINER}(?:<\d{{1,3}}>\d )?{_TIME} (?P<host>{_HOST}) {_TAG} (?P<pid>\d+) \S+ "
    r'(?:-|(?:\[[^\s\]"]+(?: [^\s="]+="(?:[^"\\]|\\.)*+")*+\])++) (?:\ufeff)?(?P<text>.*)'
)
_REPEATED = re.compile(r"message repeated \d+ times: \[ ?(.*)\]")
_MAY_BE = re.compile(r"/[\w-]+(?:\[\d+\]: | \d+ )")
_LOOKS = re.compile(r"smtpd\[\d+\]: |/smtpd \d+ |NOQUEUE: reject: RCPT from ")


class Line(NamedTuple):
    """What one program of Postfix logged. `host` is "" where the log does not say; `service` ends with a slash."""

    host: str
    instance: str
    service: str
    program: str
    pid: str
    text: str


def read_line(line: str) -> Line | None:
    """The line, without its end, or None where it is not one of Postfix's or cannot be understood."""
    if line.startswith("{"):
        line = _from_json(line)
    found = _MAY_BE.search(line) and (_SYSLOG.fullmatch(line) or _RFC_5424.fullmatch(line))
    if not found:
        return None
    repeated = _REPEATED.fullmatch(found["text"])
    host = found["host"] or found["container"] or ""
    text = repeated[1] if repeated else found["text"]
    return Line(host, found["instance"], found["service"], found["program"], found["pid"], text)


def looks_like_smtpd(line: str) -> bool:
    """Whether a line that was not read may be one of smtpd's all the same."""
    return _LOOKS.search(line) is not None


def _from_json(line: str) -> str:
    """The line inside a container's JSON object, or one made of journald's."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(fields, dict):
        return ""
    text = next((fields[name] for name in ("log", "message", "MESSAGE") if isinstance(fields.get(name), str)), "")
    if "SYSLOG_IDENTIFIER" in fields:
        pid = fields.get("SYSLOG_PID") or fields.get("_PID")
        text = f"{fields.get('_HOSTNAME') or '-'} {fields['SYSLOG_IDENTIFIER']}[{pid}]: {text}"
    # JSON can spell half a character, which is no text that can be sent.
    return (
        text.removesuffix("\n").removesuffix("\r").encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")
    )
