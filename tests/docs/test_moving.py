"""docs/howto/moving-from.md: the old lists on a real Postfix, what they become, and what install-postfix says."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pbs_policy.demo.postfix import PrivatePostfix, attempt_relay
from pbs_policy.programs import find_program
from tests.conftest import need
from tests.install.support import POSTFIX, run
from tests.pages import TOP, snippets

BEFORE, AFTER, _ = snippets(TOP / "docs" / "howto" / "moving-from.md")
LISTED, STRANGER = "192.0.2.7", "192.0.2.8"


def in_place(text: str, table: Path) -> str:
    return text.replace("/var/lib/pop-before-smtp/hosts", str(table))


@pytest.mark.parametrize("text", [BEFORE.text, AFTER.text], ids=["before", "after"])
def test_what_the_old_list_becomes_means_the_same_to_postfix(text: str, tmp_path: Path) -> None:
    need("postfix")
    with PrivatePostfix(tmp_path, fragment="") as empty:
        table = empty.place / "hosts"
        table.write_text(f"{LISTED} ok\n")
        subprocess.run([find_program("postmap") or "postmap", f"hash:{table}"], check=True)
        table.with_suffix(".db").chmod(0o644)
        # The old list did without the relay restrictions, which came later.
        old = "smtpd_relay_restrictions =\n" if text == BEFORE.text else ""
        with PrivatePostfix(tmp_path / "moving", fragment=old + in_place(text, table)) as postfix:

            def reply(client: str, recipient: str) -> int:
                return attempt_relay(postfix.port, client, "alice@example.com", recipient).code

            assert reply(LISTED, "bob@example.net") == 250
            assert reply(STRANGER, "bob@example.net") == 554
            assert reply(STRANGER, "carol@local.example") == 250
            table.with_suffix(".db").unlink()
            # Another client: another smtpd, which opens the table anew.
            gone = attempt_relay(postfix.port, "192.0.2.9", "alice@example.com", "bob@example.net")
            assert gone.code == 451
            assert "Server configuration error" in gone.text


def test_install_postfix_says_of_the_old_list_what_the_page_says(tmp_path: Path) -> None:
    need("postfix")
    for name in ("main.cf", "master.cf"):
        (tmp_path / name).write_text((Path("/etc/postfix") / name).read_text())
    main_cf = tmp_path / "main.cf"
    sound = "".join(line for line in main_cf.read_text().splitlines(keepends=True) if not line.startswith("smtpd_re"))
    options = ("--postfix-config", str(tmp_path), "--record-dir", str(tmp_path / "record"))
    main_cf.write_text(sound + BEFORE.text)
    refused = run(POSTFIX, *options)
    assert refused.status == 78
    assert "reject_unauth_destination in smtpd_recipient_restrictions" in refused.output
    main_cf.write_text(sound + AFTER.text)
    shown = run(POSTFIX, *options)
    assert shown.status == 0, shown.output
    assert "/var/lib/pop-before-smtp/hosts, permit_auth_destination, check_policy_service" in shown.output
