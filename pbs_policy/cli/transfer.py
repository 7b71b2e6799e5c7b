"""`pbs-policy export` and `import`: the login table as JSON lines."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, BinaryIO

import click

from pbs_policy.address import ClientAddresses, Target
from pbs_policy.cli.audit import audit
from pbs_policy.cli.output import Output, Progress, counted
from pbs_policy.cli.session import Session, say
from pbs_policy.log import printable
from pbs_policy.store.bulk import pieces
from pbs_policy.table.importing import BATCH, Import
from pbs_policy.table.transfer import Item, export_lines, parse_lines, read_lines
from pbs_policy.trust import Untrusted, opened

MOST_FAULTS = 20
"""Faults of a file that are shown."""


@click.command("export")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True), default="-")
@click.pass_obj
def export_table(session: Session, file: str) -> None:
    """Write every login, permit and deny to FILE as JSON lines, with the time when it expires. For `import`.

    Without FILE, to standard output. A FILE that is there is replaced once the new one is complete. What has no end,
    or is of an address that may not relay, is left out, and counted on standard error.

    \b
    Example:
      pbs-policy export /var/backups/pbs-policy.jsonl
      pbs-policy export | ssh mail2.example.com pbs-policy import
    """
    settings, table = session.open_table()
    left_out: Counter[str] = Counter()
    with _replacing(file) as stream:
        with Output(stream=stream) as output:
            for line in export_lines(table, settings.addresses, left_out, output.progress.add):
                output.write_text(line)
    for what, count in left_out.items():
        say(f"left out: {count} {what}")


@click.command("import")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True), default="-")
@click.option("--replace", is_flag=True, help="Overwrite also what lasts longer than the file's.")
@click.option("--dry-run", is_flag=True, help="Write nothing; say what would be written.")
@click.pass_obj
def import_table(session: Session, file: str, replace: bool, dry_run: bool) -> int:
    """Write the logins, permits and denies of FILE, as `export` made it, into the login table.

    Without FILE, from standard input. Every line is checked before anything is written: of a file with faults nothing
    is, they are shown by line, and the exit status is 65. What has ended meanwhile is passed over; so are logins and
    permits of addresses that may never relay here, which are named. What the table has already and lasts longer
    stays, so an import may be repeated. Files of earlier versions are read as well.

    \b
    Example:
      pbs-policy import --dry-run /var/backups/pbs-policy.jsonl
      pbs-policy import /var/backups/pbs-policy.jsonl
    """
    settings, table = session.open_table()
    with _seekable(file) as stream:
        name = "standard input" if file == "-" else file
        if _show_faults(stream, name, settings.addresses, table.now()):
            return os.EX_DATAERR
        stream.seek(0)
        progress = Progress("lines")
        with_domain = settings.sender_match == "domain"
        importing = Import(
            table, with_domain=with_domain, replaces=replace, only_looks=dry_run, skipped=_Skipped().tell
        )
        for items in pieces(_items(stream, name, settings.addresses, table.now()), BATCH):
            importing.add(items)
            progress.add(len(items))
        progress.clear()
    written = _summary(importing.counts, dry_run)
    if not dry_run:
        with audit(settings) as tell:
            tell("import", file=name, result=written)
    click.echo(written)
    return os.EX_OK


class _Skipped:
    """Names what is not imported because it may never relay here, MOST_FAULTS of it; the summary counts it all."""

    def __init__(self) -> None:
        self._count = 0

    def tell(self, target: Target) -> None:
        self._count += 1
        if self._count <= MOST_FAULTS:
            say(f"skipped: {target.text} may never relay here: {target.excluded}")
        elif self._count == MOST_FAULTS + 1:
            say("and more such addresses")


def _show_faults(stream: IO[bytes], name: str, addresses: ClientAddresses, now: float) -> int:
    count = 0
    for number, found in parse_lines(read_lines(stream), addresses, now):
        if isinstance(found, ValueError):
            count += 1
            if count <= MOST_FAULTS:
                say(f"{printable(name)}:{number}: {printable(str(found))}")
    if count > MOST_FAULTS:
        say(f"{printable(name)}: and {count - MOST_FAULTS} more such lines")
    if count:
        say("nothing was written")
    return count


def _items(stream: IO[bytes], name: str, addresses: ClientAddresses, now: float) -> Iterator[Item]:
    for number, found in parse_lines(read_lines(stream), addresses, now):
        if isinstance(found, ValueError):
            raise OSError(f"{name}:{number}: changed while it was read: {found}")
        yield found


def _summary(counts: Counter[str], dry_run: bool) -> str:
    names = {"logins": ("login",), "permits": ("permit",), "denies": ("deny", "denies")}
    written = ", ".join(counted(counts[what], *name) for what, name in names.items())
    text = f"{'would write' if dry_run else 'written'}: {written}"
    passed = {
        "ended": "had ended",
        "kept": "stay as they are in the table, where they last as long",
        "excluded": "of addresses that may never relay here",
    }
    return text + "".join(f"; {counts[each]} {what}" for each, what in passed.items() if counts[each])


@contextmanager
def _seekable(file: str) -> Iterator[IO[bytes]]:
    """The file, opened to be read twice: what is not one (a pipe) is copied into one first."""
    with Path(file).open("rb") if file != "-" else nullcontext(sys.stdin.buffer) as stream:
        if stream.seekable():
            yield stream
            return
        with TemporaryFile() as copy:
            shutil.copyfileobj(stream, copy)
            copy.seek(0)
            yield copy


def _replacing(file: str) -> AbstractContextManager[BinaryIO | None]:
    """A stream that becomes `file` when all is written; None for standard output. The file is its owner's alone to
    read: it says who has a mailbox here."""
    path = Path(file)
    if file == "-":
        return nullcontext()
    return _device(path) if path.exists() and not path.is_file() else _new_file(path)


@contextmanager
def _device(path: Path) -> Iterator[BinaryIO]:
    """A stream to what is there and is no file. Nobody else can have it be another thing."""
    with opened(path, os.O_PATH, for_root=True) as found:
        if stat.S_ISREG(found.status.st_mode):
            raise FileExistsError(errno.EEXIST, "has become a file in this moment", str(path))
        with os.fdopen(os.open(f"/proc/self/fd/{found.number}", os.O_WRONLY), "wb") as stream:
            yield stream


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """A stream to a new file that takes the place of the old one at the end, all in the folder that is there now,
    whatever somebody makes of its path meanwhile. Root goes by no link and below no folder of another user: it would
    write where only root can."""
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(opened(path.parent, os.O_RDONLY | os.O_DIRECTORY, for_root=True)).number
        except Untrusted as error:
            raise Untrusted(f"{path.parent}: {error}, or let the shell write: pbs-policy export > FILE") from None
        name = f".{path.name}.{secrets.token_hex(4)}"
        try:
            number = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=folder)
        except OSError as error:
            error.filename = str(path)
            raise
        try:
            with os.fdopen(number, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(number)
            os.replace(name, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)
            raise
