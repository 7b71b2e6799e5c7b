"""`pbs-policy record` as a process of a test's own."""

from __future__ import annotations

from pbs_policy.demo.service import PrivateService


class PrivateRecorder(PrivateService):
    """The recorder, with a settings file of its own."""

    def command(self) -> list[str]:
        """The command line, of the interpreter that runs us."""
        return ["record" if word == "serve" else word for word in super().command()]
