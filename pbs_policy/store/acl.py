"""What an ACL user of Redis lacks, from the words in which Redis (6.2 to 8) and Valkey refuse it."""

from __future__ import annotations

import re

_match_command = re.compile(r".*\bNOPERM .*'([A-Za-z|-]+)' command").match
_match_thing = re.compile(r".*\bNOPERM .*\b(key|channel)s?\b").match


def missing_right(said: str, prefix: str) -> str:
    """The rule of ACL SETUSER that is missing, such as `+pttl` or `~pbs:*`; "" where `said` is no such refusal."""
    if command := _match_command(said):
        return f"+{command[1].lower()}"
    if thing := _match_thing(said):
        return f"~{prefix}*" if thing[1] == "key" else f"&{prefix}events"
    return ""
