"""Settings of Postfix under which our check in its right place would not have its effect, or had another one."""

from __future__ import annotations

from dataclasses import dataclass

from pbs_policy.install.files import InstallError
from pbs_policy.install.postconf import PostfixConfiguration
from pbs_policy.install.restrictions import REFUSING, ListError, policy_server, split_words

CHECK = "check_policy_service"
RELAY = "smtpd_relay_restrictions"

# The other lists that a relay attempt passes: what refuses there refuses it, whatever ours has said.
_OTHER_LISTS = tuple(
    f"smtpd_{stage}_restrictions" for stage in ("client", "helo", "sender", "recipient", "data", "end_of_data")
)


@dataclass(frozen=True, slots=True)
class Server:
    """The policy service as Postfix names it: `inet:HOST:PORT`, or `unix:PATH` relative to `queue_directory`."""

    name: str
    queue_directory: str

    def is_named_by(self, argument: str) -> bool:
        """Whether this argument of check_policy_service means it."""
        return self._plain(policy_server(argument)) == self._plain(self.name)

    def _plain(self, name: str) -> str:
        for loopback in ("localhost", "[::1]"):
            name = name.replace(f"inet:{loopback}:", "inet:127.0.0.1:")
        return name.replace(f"unix:{self.queue_directory}/", "unix:")


def refuse_conflicts(configuration: PostfixConfiguration, server: Server) -> None:
    """Raise InstallError for the first setting of main.cf or master.cf that is in our way, with its file and line."""
    for name, value in configuration.set_in_main_cf().items():
        if name != RELAY:
            _refuse_conflict(configuration.place_of(name), name, value, server)
    for smtpd in configuration.smtpds():
        if smtpd.is_submission:
            continue
        for name, value in smtpd.overrides.items():
            where = configuration.place_in_master_cf(smtpd.name, name)
            if name == RELAY:
                raise InstallError(
                    f"{where}: {smtpd.name} has {RELAY} of its own, and does not look at those of main.cf. By hand: "
                    "remove that line, or put the check there"
                )
            _refuse_conflict(where, name, value, server)


def _refuse_conflict(where: str, name: str, value: str, server: Server) -> None:
    try:
        words = [word for word, _ in split_words(value)]
    except ListError:
        return  # no list at all: some other kind of value
    previous = ""
    for word in words:
        if previous.lower() == CHECK and server.is_named_by(word):
            raise InstallError(
                f"{where}: our {CHECK} stands in {name}, where its OK does not permit relaying. By hand: remove it"
            )
        refuses = word.lower() in (*REFUSING, "reject", "defer") and previous.lower() != "warn_if_reject"
        if refuses and name in _OTHER_LISTS:
            raise InstallError(
                f"{where}: {word} in {name} refuses a relay attempt even when {RELAY} has permitted it. By hand: "
                f"remove it there ({RELAY} has one that stays)"
            )
        previous = word


def submission_notes(configuration: PostfixConfiguration) -> list[str]:
    """What to look at where clients that authenticate come in: they inherit the check."""
    return [
        f"{configuration.place_in_master_cf(each.name, RELAY)}: {each.name} has no {RELAY} of its own, so a client "
        f"that may relay need not authenticate there. To have it so: -o {RELAY}=permit_sasl_authenticated,reject"
        for each in configuration.smtpds()
        if each.is_submission and RELAY not in each.overrides
    ]
