"""A file that the service goes by and reads anew when it has changed: `sender_maps`, `denies`.

The one way in which such a file is opened, judged, read and kept: what was read last holds until a whole file without
a fault takes its place. What stands in it is for the parser of each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

from pbs_policy.trust import opened

T = TypeVar("T")

LONGEST_FILE = 1 << 26  # bytes: 10^6 lines, and a bound on what a wrong path can cost
SETTLING_SECONDS = 2.0  # a file changed less than this ago may change again and keep its time stamps
_MOST_FAULTS = 20  # shown of one file


class FileFault(ValueError):
    """A file is not usable. `faults` are `FILE:LINE: what is wrong, what was expected`, one or several."""

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = list(faults)
        super().__init__("\n".join(self.faults))


class ChangingFile(Generic[T]):
    """What `parse` makes of the content of `file`, once `reload_if_changed` was called."""

    def __init__(self, file: Path, parse: Callable[[bytes, str], T], content: T) -> None:
        """`parse` is given the content and the file's name; `content` stands for a file that was not read yet."""
        self.file = file
        self.content = content
        self._parse = parse
        self._seen: tuple[int, ...] | None = None
        self._judged: tuple[int, int] | str | None = None  # the content judged last, or why there was none

    def reload_if_changed(self) -> bool:
        """Read the file anew if its time stamps or inode changed; whether it has other content now.

        Raises FileFault, also where everybody can change the file (`trust`), once for the same fault, and keeps what
        was read before. It blocks, and may run in another thread: readers see all of the old content, or of the new.
        """
        try:
            with opened(self.file) as file:
                status = file.status
                seen = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
                if seen == self._seen:
                    return False
                data = file.read(LONGEST_FILE)
        except OSError as error:
            self._seen = None
            if self._judged == error.strerror:
                return False
            self._judged = error.strerror
            raise FileFault([f"{self.file}: {error.strerror}"]) from error
        self._seen = seen if time.time() - status.st_ctime > SETTLING_SECONDS else None
        content = (len(data), hash(data))
        if content == self._judged:
            return False
        self._judged = content
        self.content = self._parse(data, str(self.file))
        return True


def raise_faults(file: str, faults: list[str]) -> None:
    """Raise FileFault where there are `faults`: the first of them, and how many more there are."""
    if faults:
        more = [f"{file}: {len(faults) - _MOST_FAULTS} faults more"] if len(faults) > _MOST_FAULTS else []
        raise FileFault(faults[:_MOST_FAULTS] + more)
