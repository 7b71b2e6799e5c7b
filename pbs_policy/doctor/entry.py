"""An entry of master.cf as the checks of Postfix ask about it: parameters, lists, and where ours is in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pbs_policy.host import Host
from pbs_policy.postfix.configuration import MasterService, PostfixConfig
from pbs_policy.postfix.listener import Listener
from pbs_policy.postfix.restrictions import Restriction, find_refusal


class SmtpdEntry(NamedTuple):
    """`service` is the entry, None for main.cf alone; `listeners` are where the policy service listens."""

    config: PostfixConfig
    service: MasterService | None
    listeners: tuple[Listener, ...]
    host: Host

    @property
    def relay(self) -> str:
        """The name of the list that decides who may relay: of which `place` and the others speak without a name."""
        return self.config.relay_list(self.service)

    def value(self, name: str) -> str:
        """The effective value of a parameter."""
        return self.config.value(name, self.service)

    def place(self, name: str = "") -> str:
        """Where it is set."""
        return self.config.place(name or self.relay, self.service)

    def restrictions(self, name: str = "") -> list[Restriction]:
        """A list, with classes resolved."""
        return self.config.restrictions(name or self.relay, self.service)

    def before_refusal(self, name: str = "") -> list[Restriction]:
        """What of a list is reached by a client that may not relay."""
        restrictions = self.restrictions(name)
        return restrictions[: find_refusal(restrictions)]

    def ours(self, name: str = "") -> list[int]:
        """Where in a list the service is asked."""
        return self.config.find_ours(name or self.relay, self.service, self.listeners)

    def reached(self, name: str) -> Iterator[Restriction]:
        """What of a list is reached by a client that the service permits."""
        return self.config.reached(name, self.service, self.listeners)

    def sets(self, name: str) -> bool:
        """Whether the entry sets a parameter itself."""
        return self.service is not None and name in self.service.overrides
