"""Reports as Dovecot makes them, and what posts them."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

ALICE: dict[str, Any] = {
    "user": "alice@example.com", "remote": "192.0.2.7", "protocol": "imap", "mech": "PLAIN", "master_user": "",
    "proxied": "no", "nologin": "no",
    "success": True, "policy_reject": False, "tls": False,
}  # fmt: skip
"""What Dovecot 2.3 posts when alice has logged in."""


def report(**changed: Any) -> bytes:
    """The body of a report: that of ALICE, changed; None leaves an attribute out."""
    return json.dumps({name: value for name, value in (ALICE | changed).items() if value is not None}).encode()


def post(
    url: str, body: bytes = b"", query: str = "?command=report", method: str = "POST", **headers: str
) -> tuple[int, bytes]:
    """Status and body of the answer."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)
    try:
        named = {"Content-Type": "application/json"}
        named |= {name.replace("_", "-"): text for name, text in headers.items()}
        connection.request(method, "/" + query, body, named)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
