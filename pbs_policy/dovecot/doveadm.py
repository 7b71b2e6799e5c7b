"""doveadm as a process of its own: bounded in time and in what it prints, and killed where it hangs."""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Sequence
from contextlib import suppress

from pbs_policy.log import printable
from pbs_policy.programs import find_program

SECONDS = 10.0
"""For the whole answer; 300 sessions take it some 30 ms."""

LONGEST_ANSWER = 1 << 25
"""Bytes: 300,000 sessions."""

_LONGEST_COMPLAINT = 4_096  # bytes of what it says on standard error, the rest is dropped


class DoveadmFault(Exception):
    """doveadm gave no answer; the message says why, after its name."""


def is_installed() -> bool:
    """Whether there is a doveadm on this host."""
    return find_program("doveadm") is not None


async def ask_doveadm(arguments: Sequence[str]) -> bytes:
    """What doveadm prints. Raises DoveadmFault where it fails, hangs or does not stop printing.

    Where it succeeds, what it says on standard error does not count: without a right on Dovecot's socket for
    statistics, which it does not need, it complains of that each time.
    """
    program = find_program("doveadm")
    if program is None:
        raise DoveadmFault("is not installed here")
    try:
        process = await asyncio.create_subprocess_exec(
            program, *arguments, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, start_new_session=True,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
        )  # fmt: skip
    except OSError as error:
        raise DoveadmFault(f"cannot be run: {error.strerror}") from None
    try:
        async with asyncio.timeout(SECONDS):
            printed, said = await _read_both(process)
            status = await process.wait()
    except TimeoutError:
        raise DoveadmFault(f"did not end within {SECONDS:g} s") from None
    finally:
        # The group's id is not given away while a member lives, so this meets our own children or nobody.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await _drain(process)
    if status:
        lines = said.decode("utf-8", "replace").strip().splitlines() or ["it says nothing"]
        raise DoveadmFault(f"failed with status {status}: {printable(lines[-1])}")
    return printed


async def _read_both(process: asyncio.subprocess.Process) -> tuple[bytes, bytes]:
    complaint = asyncio.create_task(_read(process.stderr, _LONGEST_COMPLAINT, drops_the_rest=True))
    try:
        printed = await _read(process.stdout, LONGEST_ANSWER + 1, drops_the_rest=False)
        if len(printed) > LONGEST_ANSWER:
            raise DoveadmFault(f"prints more than {LONGEST_ANSWER} bytes")
        return printed, await complaint
    finally:
        complaint.cancel()
        await asyncio.gather(complaint, return_exceptions=True)


async def _drain(process: asyncio.subprocess.Process) -> None:
    """Have a process that was killed give its pipes back, which asyncio keeps until they are read to the end."""
    with suppress(TimeoutError):
        async with asyncio.timeout(1):
            for stream in (process.stdout, process.stderr):
                while stream is not None and await stream.read(65_536):
                    pass
    await process.wait()


async def _read(stream: asyncio.StreamReader | None, most: int, *, drops_the_rest: bool) -> bytes:
    """What comes, at most so many bytes. What comes after these is read and dropped, or not read."""
    pieces: list[bytes] = []
    left = most
    while stream is not None and (piece := await stream.read(65_536)):
        pieces.append(piece[:left])
        left -= len(pieces[-1])
        if not left and not drops_the_rest:
            break
    return b"".join(pieces)
