"""What doctor and the installer read in a list of restrictions is what the real smtpd makes of it: whether it starts,
and whether a relay attempt asks the policy service, which always answers OK."""

from __future__ import annotations

from pathlib import Path

import pytest

from pbs_policy.demo.daemons import DaemonError
from pbs_policy.demo.postfix import PrivatePostfix
from pbs_policy.host import Host
from pbs_policy.postfix.configuration import read_postfix
from pbs_policy.postfix.listener import Listener
from pbs_policy.postfix.restrictions import RECIPIENT, RELAY, find_refusal, is_balanced, parse_policy_check
from tests.e2e.test_daemons import OK, needs_postfix, relay
from tests.install.support import age
from tests.stand_ins import answering

OURS = "check_policy_service { inet:127.0.0.1:PORT, timeout=2s }"
STARTS_AND_ASKS = {
    "in the recipient list": f"{RELAY} =\n{RECIPIENT} = {OURS}, reject_unauth_destination\n",
    "after a warning": f"{RELAY} = warn_if_reject reject, {OURS}, reject\n",
    "after a warned class": f"smtpd_restriction_classes = C\nC = reject\n{RELAY} = warn_if_reject C {OURS}, reject\n",
    "in capital letters": f"{RELAY} = {OURS.replace('check', 'Check')}, Reject_Unauth_Destination\n",
    "without braces": f"{RELAY} = check_policy_service inet:127.0.0.1:PORT, reject\n",
}
STARTS_AND_REFUSES = {
    "after a refusal in capital letters": f"{RELAY} = Reject_Unauth_Destination, {OURS}, reject\n",
    "after what a warning does not reach": f"{RELAY} = warn_if_reject permit_mynetworks reject, {OURS}, reject\n",
}
DOES_NOT_START = {
    "without inet:": f"{RELAY} = {OURS.replace('inet:', '')}, reject\n",
    "without inet: and braces": f"{RELAY} = check_policy_service 127.0.0.1:PORT, reject\n",
    "a brace too few": f"{RELAY} = {OURS.removesuffix('}')}, reject\n{RECIPIENT} = reject\n",
    "a mere warning at the end": f"{RELAY} = {OURS}, warn_if_reject reject\n",
}


@needs_postfix
@pytest.mark.parametrize("name", [*STARTS_AND_ASKS, *STARTS_AND_REFUSES, *DOES_NOT_START])
def test_smtpd_makes_of_a_list_what_is_read_in_it(name: str, tmp_path: Path) -> None:
    text = {**STARTS_AND_ASKS, **STARTS_AND_REFUSES, **DOES_NOT_START}[name]
    expected = 250 if name in STARTS_AND_ASKS else 554 if name in STARTS_AND_REFUSES else None
    with answering(OK) as policy:
        port = policy.listener.port
        (tmp_path / "main.cf").write_text(text.replace("PORT", str(port)))
        (tmp_path / "master.cf").touch()
        age(tmp_path / "main.cf")
        assert reply_to_come(tmp_path, port) == expected
        try:
            with PrivatePostfix(tmp_path, fragment=(tmp_path / "main.cf").read_text()) as postfix:
                assert relay(postfix) == expected
        except DaemonError:
            assert expected is None


def reply_to_come(folder: Path, port: int) -> int | None:
    """The reply to a relay attempt, as it is read from the configuration; None where smtpd does not start."""
    config = read_postfix(Host(), str(folder))
    name = config.relay_list()
    here = config.restrictions(name)
    if not is_balanced(config.value(name)):
        return None
    (asked,) = config.find_ours(name, None, [Listener("127.0.0.1", port)])
    if parse_policy_check(here[asked].argument).fault or find_refusal(here[asked + 1 :]) is None:
        return None
    return 250 if find_refusal(here[:asked]) is None else 554
