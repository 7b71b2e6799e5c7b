"""Checks of Postfix beside the relay attempt itself: submission, and what refuses our clients."""

from __future__ import annotations

from collections.abc import Iterator

from pbs_policy.doctor.finding import Finding, good, warning, wrong
from pbs_policy.postfix.configuration import MasterService, PostfixConfig
from pbs_policy.postfix.listener import Listener
from pbs_policy.postfix.restrictions import CHECK, LISTS, REFUSING, RELAY, find_refusal, is_balanced

_LOGIN_MISMATCH = ("reject_sender_login_mismatch", "reject_unauthenticated_sender_login_mismatch")
_AT_CONNECT = ("smtpd_client_restrictions", "smtpd_helo_restrictions", "smtpd_sender_restrictions")


def check_lists(
    config: PostfixConfig, service: MasterService | None, listeners: tuple[Listener, ...]
) -> Iterator[Finding]:
    """Every check of an entry of master.cf that does not depend on how the service is asked."""
    yield from _check_other_lists(config, service, listeners)
    yield from _check_later_refusal(config, service, listeners)
    yield from _check_submission(config, listeners)
    yield from _check_delay_reject(config, service)
    yield from _check_login_mismatch(config, service)


def _check_other_lists(
    config: PostfixConfig, service: MasterService | None, listeners: tuple[Listener, ...]
) -> Iterator[Finding]:
    relay = config.relay_list(service)
    if not config.find_ours(relay, service, listeners):
        return  # then where else it is asked is the fault itself: postfix.relay_restrictions
    others = [name for name in LISTS if name != relay and config.find_ours(name, service, listeners)]
    for name in others:
        seen = f"the policy service is asked in {name}, too, where its OK skips every check that stands after it"
        yield warning("postfix.other_lists", seen, config.place(name, service),
                      f"take {CHECK} out of {name}")  # fmt: skip
    if not others:
        yield good("postfix.other_lists", "no other list of restrictions asks the service")


def _check_later_refusal(
    config: PostfixConfig, service: MasterService | None, listeners: tuple[Listener, ...]
) -> Iterator[Finding]:
    """An OK in the relay restrictions ends that list alone: what another one refuses stays refused."""
    relay = config.relay_list(service)
    unread = not is_balanced(config.value(relay, service))
    has_refusal = unread or find_refusal(config.restrictions(relay, service)) is not None
    for name in LISTS:
        if name in (relay, "smtpd_etrn_restrictions"):
            continue
        restrictions = config.restrictions(name, service)
        end = find_refusal(restrictions)
        if end is None or any(at < end for at in config.find_ours(name, service, listeners)):
            continue
        refusal = restrictions[end].name
        seen = f"{refusal} in {name} refuses the clients that {relay} has permitted"
        mend = f"take {refusal} out of {name}: {relay} does its work"
        if not has_refusal:
            mend = f"first put {REFUSING[0]} at the end of {relay}, then take {refusal} out of {name}"
        yield wrong("postfix.later_refusal", seen, config.place(name, service), mend)
        return
    yield good("postfix.later_refusal", "no other list refuses what the service permits")


def _check_submission(config: PostfixConfig, listeners: tuple[Listener, ...]) -> Iterator[Finding]:
    asking = [
        each
        for each in config.services
        if each.is_submission and not each.is_closed and config.find_ours(config.relay_list(each), each, listeners)
    ]
    for each in asking:
        seen = f"the entry {each.name} of master.cf asks the service: clients there should authenticate"
        mend = f"-o {RELAY}=permit_sasl_authenticated,reject below the entry {each.name}"
        place = config.place(RELAY, each) if RELAY in each.overrides else each.place
        yield warning("postfix.submission", seen, place, mend)
    if not asking:
        yield good("postfix.submission", "no submission service asks the policy service")


def _check_delay_reject(config: PostfixConfig, service: MasterService | None) -> Iterator[Finding]:
    place = config.place("smtpd_delay_reject", service)
    lists = [name for name in _AT_CONNECT if config.restrictions(name, service)]
    if config.value("smtpd_delay_reject", service) == "no" and lists:
        seen = f"smtpd_delay_reject = no: {', '.join(lists)} refuse a client before RCPT, where the service is asked"
        yield warning("postfix.delay_reject", seen, place, "smtpd_delay_reject = yes")
    else:
        yield good("postfix.delay_reject", "nothing is refused before the service can be asked", place)


def _check_login_mismatch(config: PostfixConfig, service: MasterService | None) -> Iterator[Finding]:
    """Such a restriction does something only with SMTP AUTH switched on here, and with logins for senders."""
    works = config.value("smtpd_sasl_auth_enable", service) == "yes" and config.value(
        "smtpd_sender_login_maps", service
    )
    for name in LISTS if works else ():
        restrictions = config.restrictions(name, service)
        found = next((each.name for each in restrictions if each.name in _LOGIN_MISMATCH and not each.is_warned), "")
        if found:
            seen = f"{found} in {name} refuses a client that has not authenticated and sends as one of your users"
            mend = f"put reject_authenticated_sender_login_mismatch in place of {found} in {name}"
            yield warning("postfix.login_mismatch", seen, config.place(name, service), mend)
            return
    yield good("postfix.login_mismatch", "a client may send as one of your users without SMTP AUTH")
