"""The check of what Postfix makes of a sender after the service was asked: a denied user's name, perhaps.

The service is told the sender as the client gave it. What turns it into another one later may not be known to it.
"""

from __future__ import annotations

from collections.abc import Iterable

from pbs_policy.decision.denies import Denies
from pbs_policy.doctor.finding import Finding, good, warning
from pbs_policy.postfix.configuration import PostfixConfig
from pbs_policy.table.listing import Deny

CHECK = "postfix.rewriting"
_REWRITING = ("masquerade_domains", "canonical_maps", "sender_canonical_maps", "smtp_generic_maps")


def check_rewriting(config: PostfixConfig, denies: Iterable[Deny], file: Denies | None) -> Finding:
    """Whether senders are rewritten while a user is denied, in Redis (`denies`) or in the file."""
    name = next((each for each in _REWRITING if config.value(each)), "")
    if not name:
        return good(CHECK, "Postfix makes no other sender of one that the service was asked about")
    if not (file is not None and file.has_users) and not any(each.kind == "user" for each in denies):
        return good(CHECK, f"{name} rewrites senders, and no user is denied", config.place(name))
    seen = f"{name} rewrites senders after the service was asked: mail may leave in the name of a denied user"
    mend = f"deny the names, too, of which {name} makes a denied user's"
    return warning(CHECK, seen, config.place(name), mend)
