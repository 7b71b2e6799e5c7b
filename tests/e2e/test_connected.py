"""Users who stay connected to a real Dovecot, 2.3 and 2.4, go on relaying through Postfix, and not for long after.
The right to ask who is connected is the shipped configuration's, and doveadm runs as a user who has no other.
"""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import pytest

from pbs_policy.demo.conversation import Conversation
from pbs_policy.demo.daemons import wait_until
from pbs_policy.demo.dovecot import PASSWORD, USER, dovecot_version
from pbs_policy.demo.real import Site, installation
from pbs_policy.programs import find_program
from pbs_policy.shipped import shipped
from pbs_policy.store.redis_url import RedisUrl
from tests.conftest import need
from tests.recorder import PrivateRecorder
from tests.stores import connect
from tests.tree_programs import TREE, dovecot

TTL = 6
INTERVAL = TTL / 3
SLACK = 5
"""Seconds, on a busy machine."""

NOBODY = "65534:65534"
ADDRESS, OFFICE = "192.0.2.7", "198.51.100.7"

_MASTERS = {
    (2, 3): "passdb {\n driver = static\n args = password=of-the-master\n master = yes\n}\n",
    (2, 4): "passdb masters {\n driver = static\n static_password = of-the-master\n master = yes\n}\n",
}


@dataclass
class Connected:
    """An installation with a recorder, whose doveadm runs as nobody."""

    site: Site
    recorder: PrivateRecorder

    def relays(self, address: str = ADDRESS) -> bool:
        """Whether Postfix takes a message from there."""
        return self.site.attempt_relay(address).succeeded

    def login(self, address: str = ADDRESS) -> str:
        """What stands in Redis for an address, "" for nothing."""
        with connect(RedisUrl.parse(self.site.redis.url)) as redis:
            value = redis.get(f"pbs:login:{address}")
        return value.decode() if isinstance(value, bytes) else ""

    @contextmanager
    def idling(self, address: str, user: str = USER, password: str = PASSWORD) -> Iterator[None]:
        """A mail program that is connected by IMAP and idles; it logs out in the end."""
        with Conversation("127.0.0.1", self.site.dovecot.imap_port) as client:
            client.read_line()
            for line, answer in [
                (f'a ID ("x-originating-ip" "{address}")', "a OK"), (f'b LOGIN "{user}" "{password}"', "b OK"),
                ("c IDLE", "+ "),
            ]:  # fmt: skip
                client.send(line)
                while not client.read_line().startswith(answer):
                    pass
            yield
            client.send("DONE")
            client.send("d LOGOUT")
            while not client.read_line().startswith("d OK"):
                pass


@pytest.fixture(params=["installed", pytest.param("of the tree", marks=pytest.mark.tree)])
def connected(request: pytest.FixtureRequest) -> Iterator[Connected]:
    need("redis", "postfix", "dovecot")
    is_trees = request.param == "of the tree"
    if is_trees and not TREE:
        pytest.skip("no Debian tree with Dovecot 2.4 given: PBS_TREE=DIR, made as tests/trees/README.md says")
    program = dovecot() if is_trees else []
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pbs-")))
        sessions = shipped("dovecot-hooks/sessions.conf").read_text()
        assert sessions.count("group = pbs-policy") == 1
        config = sessions.replace("group = pbs-policy", "group = nogroup")
        secret = directory / "secret.conf.ext"  # as the configuration for reports has one, which root alone may read
        secret.write_text("auth_policy_server_api_header = Authorization: of root alone\n")
        secret.chmod(0o600)
        config += f"!include_try {secret}\n"
        config += "auth_master_user_separator = *\n" + _MASTERS[dovecot_version(program)]
        site = stack.enter_context(
            installation(directory, dovecot_program=program, dovecot_config=config, ttl=f"{TTL}s")
        )
        settings = {
            "redis_url": site.redis.url, "ttl": f"{TTL}s", "dovecot_config": str(site.dovecot.place / "dovecot.conf"),
        }  # fmt: skip
        recorder = PrivateRecorder(directory, settings, name="recorder")
        ours = _doveadm_as_nobody(directory, is_trees)
        recorder.environment = dict(os.environ, PATH=f"{ours}:{os.environ['PATH']}")
        yield Connected(site, stack.enter_context(recorder))


def _doveadm_as_nobody(directory: Path, is_trees: bool) -> Path:
    """A folder with a doveadm that gives up all rights but those of the group in the configuration."""
    uid, gid = NOBODY.split(":")
    command = dovecot("/usr/bin/doveadm", user=NOBODY) if is_trees else [
        "setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", find_program("doveadm") or "doveadm",
    ]  # fmt: skip
    folder = directory / "bin"
    folder.mkdir()
    script = folder / "doveadm"
    script.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    script.chmod(0o755)
    return folder


def test_a_session_is_renewed_and_a_master_users_is_not(connected: Connected) -> None:
    with connected.idling(ADDRESS), connected.idling(OFFICE, f"{USER}*master", "of-the-master"):
        assert wait_until(lambda: connected.login().endswith(f" imap-session {USER}"))
        assert connected.recorder.log_text().count("info: sessions are renewed: ") == 1
        assert "error" not in connected.recorder.log_text()
        assert not connected.login(OFFICE)


@pytest.mark.long
def test_a_mail_program_that_idles_relays_as_long_as_it_is_connected_and_no_longer(connected: Connected) -> None:
    with connected.idling(ADDRESS):
        until = monotonic() + 3 * TTL
        while monotonic() < until:
            assert connected.relays()
        connected.site.redis.stop()
        connected.site.redis.start()
        empty_since = monotonic()
        assert wait_until(connected.relays, seconds=INTERVAL + SLACK)
        assert monotonic() - empty_since < INTERVAL + SLACK
        assert connected.login().endswith(f" imap-session {USER}")
    assert wait_until(lambda: not connected.relays(), seconds=TTL + INTERVAL + SLACK)
    assert not connected.login()
