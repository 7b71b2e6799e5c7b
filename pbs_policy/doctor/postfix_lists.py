"""Checks of Postfix beside the relay attempt itself: submission, what refuses our clients, and rewritten senders."""

from __future__ import annotations

from collections.abc import Iterator

from pbs_policy.doctor.entry import SmtpdEntry
from pbs_policy.doctor.finding import Finding, check, good, warning, wrong
from pbs_policy.postfix.configuration import PostfixConfig
from pbs_policy.postfix.restrictions import CHECK, LISTS, REFUSING, RELAY, find_refusal, is_balanced
from pbs_policy.settings import Settings
from pbs_policy.table.login_table import LoginTable

_LOGIN_MISMATCH = ("reject_sender_login_mismatch", "reject_unauthenticated_sender_login_mismatch")
_AT_CONNECT = ("smtpd_client_restrictions", "smtpd_helo_restrictions", "smtpd_sender_restrictions")
_REWRITING = ("masquerade_domains", "canonical_maps", "sender_canonical_maps", "smtp_generic_maps")


def check_lists(entry: SmtpdEntry) -> Iterator[Finding]:
    """Every check of an entry of master.cf that does not depend on how the service is asked."""
    if entry.ours():  # else where it is asked is the fault itself: postfix.relay_restrictions
        yield from _check_other_lists(entry)
    yield from _check_later_refusal(entry)
    yield from _check_submission(entry)
    yield from _check_delay_reject(entry)
    yield from _check_login_mismatch(entry)


@check("postfix.other_lists", "no other list of restrictions asks the service")
def _check_other_lists(entry: SmtpdEntry) -> Iterator[Finding]:
    for name in LISTS:
        if name != entry.relay and entry.ours(name):
            seen = f"the policy service is asked in {name}, too, where its OK skips every check that stands after it"
            yield warning(seen, entry.place(name), f"take {CHECK} out of {name}")


@check("postfix.later_refusal", "no other list refuses what the service permits")
def _check_later_refusal(entry: SmtpdEntry) -> Iterator[Finding]:
    """An OK in the relay restrictions ends that list alone: what another one refuses stays refused."""
    relay = entry.relay
    has_refusal = not is_balanced(entry.value(relay)) or find_refusal(entry.restrictions()) is not None
    for name in LISTS[:-1]:  # at ETRN nobody relays
        restrictions = entry.restrictions(name)
        end = find_refusal(restrictions)
        if name == relay or end is None or any(at < end for at in entry.ours(name)):
            continue
        refusal = restrictions[end].name
        mend = f"take {refusal} out of {name}: {relay} does its work"
        if not has_refusal:
            mend = f"first put {REFUSING[0]} at the end of {relay}, then take {refusal} out of {name}"
        yield wrong(f"{refusal} in {name} refuses the clients that {relay} has permitted", entry.place(name), mend)
        return


@check("postfix.submission", "no submission service asks the policy service")
def _check_submission(entry: SmtpdEntry) -> Iterator[Finding]:
    for service in entry.config.services:
        each = entry._replace(service=service)
        if service.is_submission and not service.is_closed and each.ours():
            seen = f"the entry {service.name} of master.cf asks the service: clients there should authenticate"
            place = each.place(RELAY) if each.sets(RELAY) else service.place
            yield warning(seen, place, f"-o {RELAY}=permit_sasl_authenticated,reject below the entry {service.name}")


@check("postfix.delay_reject", "nothing is refused before the service can be asked")
def _check_delay_reject(entry: SmtpdEntry) -> Iterator[Finding]:
    name = "smtpd_delay_reject"
    lists = [each for each in _AT_CONNECT if entry.restrictions(each)]
    if entry.value(name) == "no" and lists:
        seen = f"{name} = no: {', '.join(lists)} refuse a client before RCPT, where the service is asked"
        yield warning(seen, entry.place(name), f"{name} = yes")


@check("postfix.login_mismatch", "a client may send as one of your users without SMTP AUTH")
def _check_login_mismatch(entry: SmtpdEntry) -> Iterator[Finding]:
    """Such a restriction does something only with SMTP AUTH switched on here, and with logins for senders."""
    if entry.value("smtpd_sasl_auth_enable") != "yes" or not entry.value("smtpd_sender_login_maps"):
        return
    for name in LISTS:
        for each in entry.restrictions(name):
            if each.name in _LOGIN_MISMATCH and not each.is_warned:
                seen = f"{each.name} in {name} refuses a client that has not authenticated and sends as one of your"
                mend = f"put reject_authenticated_sender_login_mismatch in place of {each.name} in {name}"
                yield warning(f"{seen} users", entry.place(name), mend)
                return


@check("postfix.rewriting")
def check_rewriting(config: PostfixConfig, settings: Settings, table: LoginTable) -> Finding:
    """Whether Postfix makes a denied user's name of a sender after the service was asked, which is told the sender as
    the client gave it."""
    name = next((each for each in _REWRITING if config.value(each)), "")
    if not name:
        return good("Postfix makes no other sender of one that the service was asked about")
    file = settings.load_denies()
    if not (file is not None and file.has_users) and not any(each.kind == "user" for each in table.denies()):
        return good(f"{name} rewrites senders, and no user is denied", config.place(name))
    seen = f"{name} rewrites senders after the service was asked: mail may leave in the name of a denied user"
    return warning(seen, config.place(name), f"deny the names, too, of which {name} makes a denied user's")
