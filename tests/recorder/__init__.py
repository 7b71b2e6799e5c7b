"""`pbs-policy record`, its parts and the whole."""

from __future__ import annotations

from pbs_policy.demo.service import PrivateService


class PrivateRecorder(PrivateService):
    """The recorder as a process of a test's own, with a settings file of its own."""

    daemon = "record"
