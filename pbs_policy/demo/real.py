"""The demonstration through the real daemons: a private Postfix, Dovecot and Redis, and the example files themselves.

The example files are loaded as they are but for four words in them that name this machine's places: the script's
path, the user it runs as, the service's address, and Redis'.
"""

from __future__ import annotations

import compileall
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pbs_policy.demo import story
from pbs_policy.demo.daemons import DaemonError, PrivateRedis
from pbs_policy.demo.dovecot import PrivateDovecot, imap_login, pop3_login
from pbs_policy.demo.ports import free_port
from pbs_policy.demo.postfix import PrivatePostfix, attempt_relay
from pbs_policy.demo.service import PrivateService
from pbs_policy.demo.story import Say, Seen
from pbs_policy.postfix.listener import Listener
from pbs_policy.programs import missing
from pbs_policy.shipped import shipped
from pbs_policy.trust import temporary_folder

SCRIPT = "/usr/local/lib/pbs-policy/pbs-postlogin"
"""Where the example for Dovecot has the script."""

SCRIPT_USER = "nobody"
"""Who runs the script in the demonstration; the example has a user of its own, `pbs-policy`."""

MESSAGE = "Subject: a relayed message\n\nIt was permitted because of a login."


def run(say: Say) -> bool:
    """Tell the story through Postfix and Dovecot. Raises DaemonError where one is missing or does not start."""
    lack = missing("redis", "postfix", "dovecot")
    if lack:
        raise DaemonError(lack)
    with temporary_folder() as directory, installation(directory) as site:
        say(f"A private Redis:    {site.redis.url}")
        say(f"the policy service: {' '.join(map(str, site.service.listeners))}")
        say(f"Postfix:            port {site.postfix.port}, with {site.postfix_example}")
        say(f"Dovecot:            POP3 port {site.dovecot.pop3_port}, IMAP port {site.dovecot.imap_port}")
        return story.tell(site, say)


@dataclass
class Site:
    """A complete private installation, and the world of the story."""

    redis: PrivateRedis
    postfix: PrivatePostfix
    dovecot: PrivateDovecot
    service: PrivateService
    postfix_example: str

    def attempt_relay(self, client_address: str) -> Seen:
        """One message from USER to another domain, through Postfix to the end."""
        port = self.postfix.port
        attempt = attempt_relay(port, client_address, story.USER, "bob@example.net", message=MESSAGE)
        return Seen(attempt.code == 250, _as_said(attempt.transcript, "Postfix"))

    def log_in(self, client_address: str) -> Seen:
        """One login of USER, by POP3 from IPv4 and by IMAP from IPv6."""
        if ":" in client_address:
            attempt = imap_login(self.dovecot.imap_port, client_address)
        else:
            attempt = pop3_login(self.dovecot.pop3_port, client_address)
        return Seen(attempt.succeeded, _as_said(attempt.transcript, "Dovecot"))


@contextmanager
def installation(
    directory: Path,
    service_class: type[PrivateService] = PrivateService,
    /,
    *,
    postfix_example: str = "main.cf.inet",
    chroot: bool = False,
    dovecot_program: Sequence[str] = (),
    dovecot_config: str = "",
    **settings: str,
) -> Iterator[Site]:
    """Redis, the service, Postfix and Dovecot, put together by the example files, for as long as the context lasts.

    `settings` are further lines of the settings file, and `dovecot_config` of Dovecot's. Raises DaemonError where one
    of them does not start.
    """
    directory.chmod(0o755)  # Dovecot runs the script as SCRIPT_USER, who has to get at it and its settings
    script = directory / "pbs-postlogin"
    for name in ("pbs-postlogin", "pbs_postlogin.py"):
        shutil.copy(shipped(f"dovecot-hooks/{name}"), directory)
    compileall.compile_dir(directory, quiet=1)  # as its installer does: who runs it may not write there
    listener = Listener(host="127.0.0.1", port=free_port())
    example = shipped(f"postfix-examples/{postfix_example}").read_text()
    if postfix_example == "main.cf.inet":
        example = _fill_in(example, {"inet:127.0.0.1:10040": str(listener)})
    with ExitStack() as stack:
        redis = stack.enter_context(PrivateRedis(directory / "redis", port=None))
        postfix = stack.enter_context(PrivatePostfix(directory / "postfix", fragment=example, chroot=chroot))
        if postfix_example == "main.cf.unix":
            listener = _inside_queue_directory(postfix)
        lines = {"redis_url": redis.url, "ttl": f"{story.TTL}s", "listen": str(listener), **settings}
        service = stack.enter_context(service_class(directory, lines))
        hook = _fill_in(
            shipped("dovecot-hooks/pbs-policy.conf").read_text(),
            {f"{SCRIPT} ": f"{script} -c {service.settings_file} ", "user = pbs-policy": f"user = {SCRIPT_USER}"},
        )
        dovecot = stack.enter_context(PrivateDovecot(
            directory / "dovecot", hook_config=hook + dovecot_config, program=dovecot_program
        ))  # fmt: skip
        yield Site(redis, postfix, dovecot, service, postfix_example)


def _inside_queue_directory(postfix: PrivatePostfix) -> Listener:
    """The place that main.cf.unix names, made as the comment in it says."""
    folder = postfix.queue_directory / "pbs-policy"
    folder.mkdir()
    shutil.chown(folder, group="postfix")
    folder.chmod(0o2750)
    return Listener(path=str(folder / "policy"))


def _fill_in(example: str, places: dict[str, str]) -> str:
    for theirs, ours in places.items():
        if theirs not in example:
            raise ValueError(f"the example no longer says {theirs!r}")
        example = example.replace(theirs, ours)
    return example


def _as_said(transcript: list[str], server: str) -> list[str]:
    """The transcript with names for C and S, without the lines that list what a server can do."""
    told = [line for line in transcript if not line.startswith("S: 250-") and "CAPABILITY" not in line]
    return [line.replace("S: ", f"{server}: ", 1).replace("C: ", "client: ", 1) for line in told]
