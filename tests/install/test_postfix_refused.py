"""What `pbs-policy install-postfix` does not understand is refused, with the line and what to do by hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import need
from tests.install.support import INET_CHECK, MASTER_CF, set_main_cf, snapshot, write
from tests.install.support import install_postfix_in as install

LISTED = "smtpd_relay_restrictions = permit_mynetworks, permit_sasl_authenticated, {}reject_unauth_destination\n"


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        (LISTED.format("") + LISTED.format(""), 9, "set more than once (lines 8, 9)"),
        ("smtpd_relay_restrictions =\n", 8, "it is empty"),
        ("compatibility_level = 0\n", None, "it is empty"),
        ("smtpd_restriction_classes = ours\nours = permit\n" + LISTED.format("ours, "), 10, "restriction class"),
        (LISTED.format("$more, ") + "more = permit_mynetworks\n", 8, "another parameter"),
        (LISTED.format("permit_sasl, "), 8, "no restriction that is known here"),
        ("smtpd_relay_restrictions = permit_mynetworks, reject\n", 8, "there is no reject_unauth_destination"),
        (
            LISTED.format("permit_auth_destination, check_policy_service 127.0.0.1:10040, "),
            8,
            "inet: is missing before",
        ),
        (LISTED.format(f"{INET_CHECK}, "), 8, "in it, but without permit_auth_destination"),
        (
            LISTED.format("").rstrip() + ", permit_auth_destination, check_policy_service inet:localhost:10040\n",
            8,
            "our check_policy_service stands in it, but reject_unauth_destination stands before",
        ),
        (
            LISTED.format("") + f"smtpd_recipient_restrictions = {INET_CHECK}\n",
            9,
            "our check_policy_service stands in smtpd_recipient_restrictions",
        ),
        (
            LISTED.format("") + "smtpd_restriction_classes = x\nx = check_policy_service inet:localhost:10040\n",
            10,
            "our check_policy_service stands in x",
        ),
        (
            LISTED.format("") + "smtpd_recipient_restrictions = permit_mynetworks, reject_unauth_destination\n",
            9,
            "reject_unauth_destination in smtpd_recipient_restrictions refuses a relay attempt even when",
        ),
        (LISTED.format("") + "smtpd_client_restrictions = permit_mynetworks reject\n", 9, "reject in smtpd_client"),
    ],
)
def test_what_is_not_understood_is_refused_with_its_line_and_what_to_do(
    root: Path, text: str, line: int | None, why: str
) -> None:
    set_main_cf(root, text)
    before = snapshot(root)
    for options in ((), ("--apply",)):
        refused = install(root, *options)
        assert refused.status == os.EX_CONFIG, refused.output
        assert why in refused.output
        assert f"{root}/etc/postfix/main.cf:{line}: " in refused.output or line is None, refused.output
        assert "By hand: " in refused.output
    assert snapshot(root) == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            MASTER_CF.replace("smtpd\n", "smtpd\n  -o smtpd_relay_restrictions=reject\n"),
            "{root}/etc/postfix/master.cf:2: smtp/inet has smtpd_relay_restrictions of its own",
        ),
        ("smtp inet too few\n", "postconf does not accept {root}/etc/postfix"),
    ],
    ids=["a list of its own", "refused by Postfix"],
)
def test_a_master_cf_with_which_it_would_not_do_is_not_touched(root: Path, text: str, said: str) -> None:
    write(root, "/etc/postfix/master.cf", text)
    before = snapshot(root)
    refused = install(root, "--apply")
    assert refused.status == os.EX_CONFIG
    assert said.format(root=root) in refused.output
    assert snapshot(root) == before


def test_where_there_is_no_postfix_the_error_says_where_it_was_looked_for(tmp_path: Path) -> None:
    need("postfix")
    refused = install(tmp_path)
    assert refused.status == os.EX_CONFIG
    assert f"{tmp_path}/etc/postfix/main.cf: there is no such file" in refused.output
