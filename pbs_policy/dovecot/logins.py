"""What Dovecot runs at a POP3 or IMAP login: post-login services, their scripts, and ours among them.

`executable = imap SOCKET` has each login ask the service that listens at SOCKET, and that service's
`executable = script-login SCRIPT ARGUMENT... SCRIPT ARGUMENT...` runs one script after the other: each is given all
words behind it, and goes on to the next by executing them. A script that does not go on refuses the login.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from pbs_policy.dovecot.doveconf import DovecotConfig

SCRIPT = "pbs-postlogin"


@dataclass(frozen=True)
class Hook:
    """How one protocol's logins run the script: the post-login service, the script and the words given to it, the
    user that runs it ("" for root), where that is written, and what `executable` says before and after. `groups` are
    all that Dovecot gives it: its own ("" for the user's), and `extra_groups`, but none that the user has beside."""

    protocol: str
    service: str
    script: str
    words: tuple[str, ...]
    user: str
    place: str
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    groups: tuple[str, ...] = ("",)

    @property
    def settings_file(self) -> str:
        """The file after -c, or ""."""
        return self.words[self.words.index("-c") + 1] if "-c" in self.words[:-1] else ""

    @property
    def recorded_service(self) -> str:
        """What the login table will call the service: the last word that belongs to no option."""
        words = list(self.words)
        if "-c" in words[:-1]:
            at = words.index("-c")
            del words[at : at + 2]
        return words[-1] if words else ""

    @property
    def others(self) -> tuple[str, ...]:
        """The site's own scripts of this chain with their arguments, in their order."""
        return (*_without_script_login(self.before), *self.after)

    @property
    def right_executable(self) -> str:
        """The chain as it should be: the site's own scripts, then ours, which names the protocol."""
        option = ("-c", self.settings_file) if self.settings_file else ()
        return chain((*self.before, *self.after), self.script, *option, self.protocol)


def chain(others: Sequence[str], *ours: str) -> str:
    """An `executable` that runs the scripts of another one, then ours: whoever comes last has the last word, and a
    login that is refused after it was recorded would permit all the same."""
    return " ".join(("script-login", *_without_script_login(others), *ours))


def find_hooks(config: DovecotConfig) -> list[Hook]:
    """The protocols whose post-login service runs our script."""
    return [hook for protocol in config.protocols() if (hook := find_hook(config, protocol))]


def find_hook(config: DovecotConfig, protocol: str) -> Hook | None:
    """How this protocol's logins run our script, if they do."""
    for socket in sockets(config, protocol):
        service = service_behind(config, socket)
        words = executable(config, service).split()
        found = find_script(words)
        if found:
            at, end = found
            place = config.place((f"service {service}",), "executable")
            own, user = tuple(words[at + 1 : end]), _account(config, service, "user")
            extra = config.value((f"service {service}",), "extra_groups").replace(",", " ").split()
            groups = (_account(config, service, "group"), *extra)
            return Hook(protocol, service, words[at], own, user, place, tuple(words[:at]), tuple(words[end:]), groups)
    return None


def find_script(words: Sequence[str]) -> tuple[int, int] | None:
    """Where in the words of an `executable` our script stands, and where its own words end."""
    at = next((at for at, word in enumerate(words) if PurePosixPath(word).name == SCRIPT), None)
    if at is None:
        return None
    end = at + 1
    while end < len(words) and "/" not in words[end]:  # as the script tells its words from the next program
        end += 2 if words[end] == "-c" else 1
    return at, end


def without_script(words: Sequence[str]) -> tuple[str, ...]:
    """The site's own scripts of a chain with their arguments, without ours and `script-login`."""
    left = list(words)
    while found := find_script(left):
        del left[slice(*found)]
    return _without_script_login(left)


def executable(config: DovecotConfig, service: str) -> str:
    """What a service runs; of `pop3` and `imap` also where that is the default."""
    return config.value((f"service {service}",), "executable") or service


def sockets(config: DovecotConfig, protocol: str) -> list[str]:
    """The post-login sockets that a protocol's service asks, one after the other."""
    return [word for word in executable(config, protocol).split()[1:] if not word.startswith("-")]


def service_behind(config: DovecotConfig, socket: str) -> str:
    """The service that listens at a socket: usually of the same name."""
    return next(
        (each for each in config.services() if config.has_block((f"service {each}", f"unix_listener {socket}"))),
        socket,
    )


def _without_script_login(words: Sequence[str]) -> tuple[str, ...]:
    return tuple(words[1:] if words and PurePosixPath(words[0]).name == "script-login" else words)


def _account(config: DovecotConfig, service: str, name: str) -> str:
    """The `user` or `group` of a service, "" where it has its default."""
    said = config.value((f"service {service}",), name)
    internal = f"default_internal_{name}"
    if said in (f"${internal}", f"$SET:{internal}"):  # as 2.3 and 2.4 write it
        return config.value((), internal) or "dovecot"
    return said
