"""A cap as people write it: `200/1h`, recipients per time. (How they are counted: `decision/caps`.)"""

from __future__ import annotations

import re
from typing import NamedTuple

from pbs_policy.duration import parse_duration, write_duration

EXPECTED = "recipients per time such as 200/1h"


class Cap(NamedTuple):
    """At most `limit` recipients in `period` seconds."""

    limit: int
    period: int

    @classmethod
    def parse(cls, text: str) -> Cap:
        """The cap that `200/1h` writes. Raises ValueError."""
        match = re.fullmatch(r"([0-9]{1,7})/(\S+)", text)
        if match is None or int(match[1]) == 0:
            raise ValueError(f"expected {EXPECTED}")
        return cls(int(match[1]), parse_duration(match[2]))

    def __str__(self) -> str:
        return f"{self.limit}/{write_duration(self.period)}"
