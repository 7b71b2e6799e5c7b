"""What the real smtpd says of a configuration, with nothing asked of the Postfix that runs.

`smtpd -S`, which `sendmail -bs` is, reads its parameters and lists of restrictions as at port 25, greets, and ends
with its input. Here it gets a queue directory of its own with a socket for its log: it finds no other daemon, and the
system's log gets no line. (`postfix check` says less of smtpd, and makes directories that are missing.)
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

from pbs_policy.host import Host, NotLookedAt
from pbs_policy.postfix.configuration import MasterService, PostfixConfig
from pbs_policy.trust import temporary_folder

_PROXIED = re.compile(r"\bproxy:(?=[a-z])")
_LONGEST_LINE = 4096


def why_smtpd_ends(host: Host, config: PostfixConfig, service: MasterService | None) -> str:
    """Why smtpd ends at once with the parameters of this entry of master.cf; "" where it serves. Raises
    NotLookedAt."""
    options = {name: value for name, value in config.values.items() if _is_proxied(name, value)}
    options |= service.overrides if service else {}
    try:
        with temporary_folder() as queue, _log_of(queue) as lines:
            # Its tables are opened by itself: the proxymap daemon is not in this queue directory.
            options = {name: _PROXIED.sub("", value) for name, value in options.items()}
            options |= {"queue_directory": str(queue), "maillog_file": "/dev/stdout", "maillog_file_prefixes": "/dev"}
            words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
            folder = Path(config.main_cf).parent
            smtpd = f"{config.value('daemon_directory')}/smtpd"
            log = f"POSTLOG_SERVICE={queue}/public/postlog"  # until it has read -o
            ended = host.run("env", f"MAIL_CONFIG={folder}", log, "POSTLOG_HOSTNAME=localhost", smtpd, "-S", *words)
    except OSError as error:
        raise NotLookedAt(f"smtpd cannot be tried: {error}") from None
    if not ended.status:
        return ""
    fatal = [line.partition("fatal: ")[2] for line in lines if "fatal: " in line]
    if not fatal and ended.status != 1:
        raise NotLookedAt(f"smtpd cannot be tried: {(ended.err.splitlines() or [f'status {ended.status}'])[-1]}")
    return fatal[-1] if fatal else "Postfix' log says why"


def is_running(host: Host, config: PostfixConfig) -> bool:
    """Whether the master of this configuration runs: whether it holds its lock. Raises NotLookedAt."""
    folder = Path(config.main_cf).parent
    tested = host.run("env", f"MAIL_CONFIG={folder}", f"{config.value('daemon_directory')}/master", "-t")
    if tested.status not in (0, 1):
        raise NotLookedAt(f"master -t: {(tested.err.splitlines() or [f'status {tested.status}'])[-1]}")
    return tested.status == 1


def _is_proxied(name: str, value: str) -> bool:
    return _PROXIED.search(value) is not None and name not in ("proxy_read_maps", "proxy_write_maps")


@contextmanager
def _log_of(queue: Path) -> Iterator[list[str]]:
    """The lines that a Postfix program with this queue directory logs, whole when the context has ended."""
    (queue / "public").mkdir()
    lines: list[str] = []

    def read() -> None:
        while line := log.recv(_LONGEST_LINE):
            lines.append(line.decode("utf-8", "replace").rstrip())

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(queue / "public" / "postlog"))
        reader = Thread(target=read, daemon=True)
        reader.start()
        try:
            yield lines
        finally:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
                last.sendto(b"", str(queue / "public" / "postlog"))
            reader.join()
