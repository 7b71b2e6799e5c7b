"""Shell completion: what a Tab suggests for addresses, users, settings and listeners, and `pbs-policy completion`.

Suggestions are read from Redis for that very Tab, within `SECONDS`; where Redis is away, or the settings are wrong,
there are none, and nothing is said.

Names in the login table come from whoever logs in, and what completion puts into a command line is run by the shell
at Return: only names are suggested that a shell reads as plain words (`_is_plain`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from threading import Thread
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pbs_policy.settings import Settings

VARIABLE = "_PBS_POLICY_COMPLETE"
"""The environment variable by which the shell's script asks for suggestions: click's, of the program's name."""

SECONDS = 0.2
"""For everything that is said to Redis: with Python's start a Tab takes 0.3."""

MOST = 200
"""Suggestions: more than that nobody reads."""

# What no shell takes for more than a word; the first letter none that begins an option, a comment, a home.
_is_plain = re.compile(r"[\w@:/][\w.+@:/%-]*").fullmatch

LOGINS = ("login", "permit")
DENIES = ("deny", "auto-deny")

Suggest = Callable[[click.Context, click.Parameter, str], list[str]]


def _suggesting(targets: tuple[str, ...], users: tuple[str, ...] = (), *, networks: bool = True) -> Suggest:
    """What suggests the addresses, with `networks` those too, and the users in keys of these kinds: sorted names that
    begin as it is typed, as far as they are found in time."""

    def names_in(key: str) -> Iterator[str]:
        kind, _, rest = key.partition(":")
        target, comma, user = rest.partition(",") if kind == "login" else (rest, "", rest)
        if kind in targets and target != "all" and (networks or "/" not in target):
            yield target
        if kind in users and user and not (comma and user.startswith("@")):
            yield user

    def suggest(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
        settings = _settings(context)
        if settings is None or (incomplete and not _is_plain(incomplete)):
            return []
        found: set[str] = set()
        # To import it may take as long as there is time to read.
        import pbs_policy.store.connect  # noqa: F401

        # A thread, because nothing else can leave a name server behind that does not answer.
        reader = Thread(target=_read, args=(settings, incomplete.lower(), names_in, found), daemon=True)
        reader.start()
        reader.join(SECONDS)
        # What was typed stays: keys have users in lower case.
        return sorted(incomplete + name[len(incomplete) :] for name in found.copy())[:MOST]

    return suggest


suggest_target = _suggesting(LOGINS)
suggest_address = _suggesting((*LOGINS, *DENIES), networks=False)
suggest_user = _suggesting((), ("login", "deny-user"))
suggest_who = _suggesting(LOGINS, ("login",))
suggest_denied = _suggesting(DENIES, ("deny-user",))


def suggest_setting(_context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Names of settings."""
    from pbs_policy.settings import defaults

    return [name for name in defaults() if name.startswith(incomplete)]


def suggest_override(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """`NAME=` of a setting; behind that its default, or yes and no, as examples of a value."""
    from pbs_policy.settings import defaults

    name, equals, _text = incomplete.partition("=")
    if not equals:
        return [f"{each}=" for each in suggest_setting(context, parameter, name)]
    default = defaults()[name].text if name in defaults() else ""
    values = ("yes", "no") if default in ("yes", "no") else (default,)
    return [whole for value in values if value and (whole := f"{name}={value}").startswith(incomplete)]


def suggest_listener(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """The listeners of the settings."""
    settings = _settings(context)
    listeners = map(str, settings.listen) if settings else ()
    return [name for name in listeners if name.startswith(incomplete)]


def _settings(context: click.Context) -> Settings | None:
    """The settings that the command line, as far as it is typed, would have; None where they are wrong."""
    from pbs_policy import settings
    from pbs_policy.settings.sources import SettingsError

    options = context.find_root().params
    try:
        return settings.load(options.get("file"), os.environ, options.get("overrides") or ())[0]
    except SettingsError:
        return None


def _read(settings: Settings, beginning: str, names_in: Callable[[str], Iterator[str]], found: set[str]) -> None:
    """Add to `found` what begins so, until there is enough, or all, or no time left, or Redis does not answer."""
    from pbs_policy.settings.sources import SettingsError
    from pbs_policy.store.bulk import BATCH, escape_glob, scan_command
    from pbs_policy.store.connect import connect_by
    from pbs_policy.store.errors import StoreUnavailable

    prefix = settings.key_prefix.encode()
    pattern = escape_glob(prefix) + b"*[:,]" + beginning.encode() + b"*"  # a plain word's letters mean themselves
    try:
        with connect_by(settings, within=SECONDS) as redis:
            cursor = b""
            while cursor != b"0" and len(found) < MOST:
                ((cursor, keys),) = redis.ask([scan_command(cursor or b"0", pattern, BATCH)])
                for key in keys:
                    names = names_in(key.removeprefix(prefix).decode("utf-8", "replace"))
                    found.update(name for name in names if name.startswith(beginning) and _is_plain(name))
    except (StoreUnavailable, SettingsError):
        return  # a Tab is no place for an error: the command itself will say it


# Bash cuts words also at ":", "=" and "@", which are inside of ours, and expects back only what follows the last cut.
# So it hands over the line up to the cursor, and takes off what stands before that cut; an "@" there belongs to what
# follows (readline's rl_special_prefixes).
_BASH = """\
%(complete_func)s() {
    local IFS=$'\\n' line="${COMP_LINE:0:COMP_POINT}" completion type value word cut
    word="${line##*[[:space:]]}"
    cut="${word%%"${word##*["$COMP_WORDBREAKS"]}"}" cut="${cut%%@}"
    COMPREPLY=()
    for completion in $(COMP_WORDS="$line" %(complete_var)s=bash_complete "$1"); do
        IFS=, read -r type value <<< "$completion"
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("${value#"$cut"}") ;;
        esac
    done
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace
    return 0
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


def _register_bash() -> None:
    """Have click complete for bash by our script in place of its own."""
    from click.shell_completion import BashComplete, add_completion_class, split_arg_string

    class WholeLine(BashComplete):
        """Completion of a line that bash has not cut into words."""

        source_template = _BASH

        def get_completion_args(self) -> tuple[list[str], str]:
            """The words before the one at the cursor, and the beginning of that."""
            line = os.environ["COMP_WORDS"]
            words = split_arg_string(line)[1:]
            if not words or line[-1].isspace():
                return words, ""
            return words[:-1], words[-1]

    add_completion_class(WholeLine)


if VARIABLE in os.environ:
    _register_bash()


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script by which bash, zsh or fish completes pbs-policy's commands, options, addresses and users.

    The shell sources it. Addresses and users come from Redis at that very moment; where it is away, there are none.

    \b
    Example:
      source <(pbs-policy completion bash)
      pbs-policy completion bash >/etc/bash_completion.d/pbs-policy
      pbs-policy completion zsh >/usr/local/share/zsh/site-functions/_pbs-policy
      pbs-policy completion fish >/etc/fish/completions/pbs-policy.fish
    """
    from click.shell_completion import get_completion_class

    _register_bash()
    script = get_completion_class(shell)
    if script is None:
        raise click.BadParameter(f"click knows no completion for {shell}")
    click.echo(script(context.find_root().command, {}, "pbs-policy", VARIABLE).source().rstrip())
