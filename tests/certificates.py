"""Certificates of the tests' own, for Redis, Sentinel and their clients."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key, in PEM."""

    certificate: Path
    key: Path


class Authority:
    """A certificate authority of the test's own."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        own = self._paths(name)
        # Python 3.13 asks an authority for it, and what it issues for the key identifiers (VERIFY_X509_STRICT).
        purpose = ("-addext", "keyUsage = critical, keyCertSign, cRLSign")
        self._openssl("req", "-x509", *self._request(own, name), "-days", "2", *purpose)
        self._own = own

    @property
    def certificate(self) -> Path:
        """What those who trust this authority are given."""
        return self._own.certificate

    def certify(self, name: str, subject_alternative: str) -> Certificate:
        """A certificate of this authority for `subject_alternative`, such as `DNS:localhost`."""
        issued = self._paths(name)
        request, extensions = issued.certificate.with_suffix(".csr"), issued.certificate.with_suffix(".ext")
        extensions.write_text(
            f"subjectAltName = {subject_alternative}\nbasicConstraints = critical, CA:false\n"
            "subjectKeyIdentifier = hash\nauthorityKeyIdentifier = keyid\n"
        )
        self._openssl("req", *self._request(issued, name)[:-2], "-out", request)
        self._openssl(
            *("x509", "-req", "-in", request, "-days", "2", "-extfile", extensions, "-out", issued.certificate),
            *("-CA", self._own.certificate, "-CAkey", self._own.key, "-set_serial", str(time.monotonic_ns())),
        )
        return issued

    def _paths(self, name: str) -> Certificate:
        return Certificate(self._directory / f"{name}.pem", self._directory / f"{name}.key")

    @staticmethod
    def _request(to: Certificate, name: str) -> tuple[str | Path, ...]:
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        return (*curve, "-keyout", to.key, "-subj", f"/CN={name}", "-out", to.certificate)

    @staticmethod
    def _openssl(*arguments: str | Path) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@dataclass(frozen=True)
class Certificates:
    """All that the tests of TLS present, or trust."""

    authority: Path
    server: Certificate
    other_host: Certificate
    stranger: Certificate
    client: Certificate
    client_in_one_file: Path
