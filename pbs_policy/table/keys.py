"""The names of the keys in Redis: the only module that knows them. Behind the prefix (`key_prefix`, default `pbs:`):

    login:<client_address>             the last login from this address
    login:<client_address>,<user>      the last login of this user from it
    login:<client_address>,@<domain>   the last login from it of any user of this domain; the post-login script
                                       writes it where its settings say sender_match = domain, which alone reads it
    permit:<client_address|network>    given by an administrator
    deny:<client_address|network|all>  a reason; outranks logins and permits until it ends
    deny-user:<user>                   the same for one user, at every address
    auto-deny:<client_address>         the same for an address, written by the service (auto_deny)
    networks:permit, networks:deny,    the prefix lengths in use among the networks of permits and denies, and among
    networks:auto-deny                 all IPv6 addresses that are denied
    users:deny                         there while any user is denied: nobody whose name is uncertain relays then
    cap:<counted>, over:<counted>      whom a cap has let through, and whom it has refused (`caps`)
    use:<YYYYMMDD>                     one day's sums for the report (`usage`)
    stats:<YYYYMMDDHHMM>               one minute's numbers, service:<host>:<pid> one process' (`stats`)
    watching                           while somebody watches; events is the channel they listen to (`events`)

Users and domains are folded to lower case in key names, ASCII only. Every key has an end; of a login or permit
without one nothing is honoured, a deny without one holds. Logins, permits, denies and what they are found by are
strings: a key of another type is as if it were not there. The values are described in `records`.
"""

from __future__ import annotations

import time

NO_END = -1
"""What Redis' PTTL says of a key that would stay for ever."""

GONE = -2
"""What Redis' PTTL says of a key that is not there."""

EVERYBODY = "all"
"""In place of an address: a deny of all relaying."""


class Keys:
    """The names of the keys, as bytes, under one prefix."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix.encode()
        self.login_prefix = self.prefix + b"login:"
        self.permit_prefix = self.prefix + b"permit:"
        self.deny_prefix = self.prefix + b"deny:"
        self.deny_everybody = self.deny_prefix + EVERYBODY.encode()
        self.deny_user_prefix = self.prefix + b"deny-user:"
        self.auto_deny_prefix = self.prefix + b"auto-deny:"
        self.permit_networks = self.prefix + b"networks:permit"
        self.deny_networks = self.prefix + b"networks:deny"
        self.auto_deny_networks = self.prefix + b"networks:auto-deny"
        self.user_denies = self.prefix + b"users:deny"
        self.denying = (
            self.deny_prefix, self.deny_user_prefix, self.auto_deny_prefix, self.deny_networks,
            self.auto_deny_networks, self.user_denies,
        )  # fmt: skip
        self.stats_prefix = self.prefix + b"stats:"
        self.service_prefix = self.prefix + b"service:"
        self.watching = self.prefix + b"watching"
        self.events = self.prefix + b"events"  # a channel
        self.probe = self.prefix + b"probe"  # never written; reading it shows that Redis answers

    def login(self, client_address: str, name: bytes = b"") -> bytes:
        """The login key of an address, or of a user or `@domain` (`name`, from `users.names_of_user`) behind it."""
        key = self.login_prefix + client_address.encode()
        return key + b"," + name if name else key

    def relay(self, client_address: str) -> list[bytes]:
        """What is asked first at each relay attempt: the address' permit, and its login."""
        address = client_address.encode()
        return [self.permit_prefix + address, self.login_prefix + address]

    def against(self, client_address: str) -> list[bytes]:
        """What denies whoever is behind an address: the three keys that say what else there is, then the denies."""
        address = client_address.encode()
        return [
            self.deny_networks, self.auto_deny_networks, self.user_denies, self.deny_everybody,
            self.deny_prefix + address, self.auto_deny_prefix + address,
        ]  # fmt: skip

    def permit(self, target: str) -> bytes:
        return self.permit_prefix + target.encode()

    def deny(self, target: str) -> bytes:
        return self.deny_prefix + target.encode()

    def deny_user(self, user: bytes) -> bytes:
        """The key of a deny of a user, folded and completed (`users.complete_user`)."""
        return self.deny_user_prefix + user

    def auto_deny(self, client_address: str) -> bytes:
        """The key of the service's own deny of an address, beside which an administrator's may stand."""
        return self.auto_deny_prefix + client_address.encode()

    def use(self, day: str) -> bytes:
        """The key of one UTC day's sums for the report, `day` as YYYYMMDD."""
        return self.prefix + b"use:" + day.encode()

    def stats(self, minute: int) -> bytes:
        """The key of a minute, by its number since 1970."""
        return self.stats_prefix + time.strftime("%Y%m%d%H%M", time.gmtime(minute * 60)).encode()

    def service(self, name: str) -> bytes:
        """The key of a process of the service (`stats.process_name`)."""
        return self.service_prefix + name.encode()

    def counted(self, what: bytes) -> tuple[bytes, bytes]:
        """Whom a cap on `what` has let through, and whom it has refused."""
        return self.prefix + b"cap:" + what, self.prefix + b"over:" + what
