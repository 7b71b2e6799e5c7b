"""Our check_policy_service in main.cf's smtpd_relay_restrictions, where postfix-examples/README.md says it belongs.

What the administrator has there stays. A configuration in which the right place is not certain, or in which a check
in the right place would not have its effect, is refused with what to do by hand.
"""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import PurePosixPath

from pbs_policy.install.conflicts import CHECK, RELAY, Server, refuse_conflicts, submission_notes
from pbs_policy.install.files import Account, FileState, InstallError, Tree, read_state, useradd
from pbs_policy.install.plan import Change, Folder, Plan
from pbs_policy.install.postconf import PostfixConfiguration
from pbs_policy.install.record import Record
from pbs_policy.install.restrictions import (
    PERMIT_LOCAL,
    REFUSING,
    ListError,
    insert_check,
    parse_list,
    policy_server,
    split_words,
    stands_right,
)
from pbs_policy.log import printable
from pbs_policy.postfix.listener import Listener
from pbs_policy.programs import find_program
from pbs_policy.shipped import shipped
from pbs_policy.sources import logical_lines
from pbs_policy.trust import temporary_folder

COMMAND = "install-postfix"
DEFAULT_FOLDER = "/etc/postfix"
AFTERWARDS = "postfix reload"


def plan_postfix(tree: Tree, record: Record, folder: str, listeners: Sequence[Listener], user: str) -> Plan:
    """What puts the check for the first of `listeners` that Postfix can reach into the main.cf of `folder`.

    `user` is who the service runs as, for the folder of a unix socket. Raises InstallError with the file, the line
    and what to do by hand where the configuration is not understood.
    """
    path = tree.name(f"{folder}/main.cf")
    configuration = PostfixConfiguration(tree.place(path).parent)
    current = read_state(configuration.main_cf)
    if current is None:
        raise InstallError(f"{configuration.main_cf}: there is no such file. Where is Postfix? --postfix-config DIR")
    entry = record.entries.get(path)
    # What we have put there ourselves is put there anew, so that it follows the settings.
    base = entry.before if entry and entry.before and current == entry.after else current
    server = choose_server(listeners, configuration.value("queue_directory", expanded=True))
    plan = Plan(tree.name(folder), afterwards=AFTERWARDS)
    value, data = _draft(configuration, base, server)
    if data != current.data:
        if entry and current not in (entry.before, entry.after):
            raise InstallError(
                f"{configuration.place_of(RELAY)}: main.cf was changed since the installation, and the check is not "
                f"there as it is to be now. By hand: {_by_hand(server)}"
            )
        plan.changes.append(Change(path, current, FileState(data, current.mode, current.uid, current.gid)))
        plan.commands = _commands(configuration, value)
        warnings = configuration.warnings()
        plan.check = lambda: _verify(configuration, value, warnings)
    _plan_socket_folder(tree, plan, configuration, server, user)
    plan.notes = submission_notes(configuration)
    return plan


def _commands(configuration: PostfixConfiguration, value: str) -> list[str]:
    postconf = ["postconf", "-c", str(configuration.folder)]
    return [shlex.join([*postconf, "-e", f"{RELAY} = {value}"]), shlex.join([*postconf, "-n"])]


def check_left(tree: Tree, record: Record) -> None:
    """Raise InstallError unless Postfix, where it is still installed, accepts what is left without the check."""
    configuration = PostfixConfiguration(tree.place(record.configuration))
    if configuration.main_cf.exists() and find_program("postconf"):
        configuration.run("-n")


def choose_server(listeners: Sequence[Listener], queue_directory: str) -> Server:
    """The first listener that Postfix can reach, chrooted or not. Raises InstallError where there is none."""
    faults = []
    for listener in listeners:
        if listener.path:
            socket = PurePosixPath(listener.path)
            if socket.is_relative_to(queue_directory):
                return Server(f"unix:{socket.relative_to(queue_directory)}", queue_directory)
            faults.append(
                f"{listener} is outside Postfix' queue directory {queue_directory}, where a chrooted smtpd does not "
                "find it"
            )
        elif not listener.port:
            faults.append(f"{listener} is another port at every start")
        else:
            # The service listens on every address: Postfix asks it on this host's own.
            host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listener.host, listener.host)  # noqa: S104 - replaced
            return Server(str(Listener(host=host, port=listener.port)), queue_directory)
    raise InstallError(
        f"listen: {'; '.join(faults)}. Expected in the settings file: inet:127.0.0.1:10040 or "
        f"unix:{queue_directory}/pbs-policy/policy"
    )


def check_for(server: Server) -> str:
    """The restriction for the policy service at `server`, as the example in postfix-examples has it."""
    example = "postfix-examples/" + ("main.cf.unix" if server.name.startswith("unix:") else "main.cf.inet")
    for _, line in logical_lines(shipped(example).read_bytes()):
        for each in parse_list(line.decode().partition("=")[2]):
            if each.name == CHECK:
                words = " ".join(each.argument.split())
                return f"{CHECK} {words.replace(policy_server(words), server.name, 1)}"
    raise InstallError(f"{shipped(example)}: there is no {CHECK} in it", os.EX_SOFTWARE)


def _by_hand(server: Server) -> str:
    readme = shipped("postfix-examples/README.md")
    return f"put `{PERMIT_LOCAL}, {check_for(server)}` right before {REFUSING[0]} in {RELAY}. {readme} says why there"


def _draft(configuration: PostfixConfiguration, base: FileState, server: Server) -> tuple[str, bytes]:
    """The list with our check in it, and the main.cf that postconf -e makes with it of `base`, in a copy."""
    with temporary_folder() as folder:
        draft = PostfixConfiguration(folder, shown_as=configuration.folder)
        draft.main_cf.write_bytes(base.data)
        for name in ("master.cf", "dynamicmaps.cf"):
            if (configuration.folder / name).exists():
                shutil.copyfile(configuration.folder / name, draft.folder / name)
        _let_rest(draft)
        value = _new_value(draft, server)
        refuse_conflicts(draft, server)
        if value != draft.value(RELAY):
            warnings = draft.warnings()
            draft.run("-e", f"{RELAY} = {value}")
            _let_rest(draft)
            _verify(draft, value, warnings)
        return value, draft.main_cf.read_bytes()


def _let_rest(draft: PostfixConfiguration) -> None:
    """Postfix reads a main.cf again and again until it is seconds old, in case its writer is not done. We are."""
    written = time.time() - 60
    os.utime(draft.main_cf, (written, written))


def _new_value(configuration: PostfixConfiguration, server: Server) -> str:
    """The list with our check in it; as it is where that stands in its place already."""
    lines = configuration.lines_of(RELAY)
    if len(lines) > 1:
        raise InstallError(
            f"{configuration.place_of(RELAY)}: {RELAY} is set more than once (lines {', '.join(map(str, lines))}), "
            "and the last one counts. By hand: delete the others"
        )
    text = configuration.value(RELAY, expanded=not lines)
    try:
        classes = [word for word, _ in split_words(configuration.value("smtpd_restriction_classes", expanded=True))]
        restrictions = parse_list(text, classes)
        if not restrictions:
            raise ListError(
                "it is empty, so that relaying is decided in smtpd_recipient_restrictions. Move what permits and "
                "refuses relaying from there to here first"
            )
        for number, each in enumerate(restrictions):
            if each.name == CHECK and server.is_named_by(each.argument):
                if stands_right(restrictions, number):
                    return text
                raise ListError(
                    f"our {CHECK} stands in it, but not after {PERMIT_LOCAL} and right before {REFUSING[0]}"
                )
        return insert_check(text, check_for(server), classes)
    except ListError as error:
        where = configuration.place_of(RELAY) + ("" if lines else f" (not set: the default is {text!r})")
        raise InstallError(f"{where}: {RELAY}: {printable(str(error), 1000)}. By hand: {_by_hand(server)}") from None


def _verify(configuration: PostfixConfiguration, value: str, warnings: set[str]) -> None:
    """Raise InstallError unless Postfix reads the value that was meant, with no complaint it did not have before."""
    read = configuration.value(RELAY)
    if read.split() != value.split():
        raise InstallError(f"{configuration.place_of(RELAY)}: postconf reads {printable(read, 1000)}, not {value}")
    complaints = configuration.warnings() - warnings
    if complaints:
        raise InstallError("postconf complains of the result: " + "; ".join(printable(each) for each in complaints))


def _plan_socket_folder(
    tree: Tree, plan: Plan, configuration: PostfixConfiguration, server: Server, user: str
) -> None:
    """The folder of a unix socket, which its group lets Postfix in: what the comment in main.cf.unix says to make."""
    kind, _, relative = server.name.partition(":")
    folder = tree.name(str(PurePosixPath(server.queue_directory, relative).parent))
    if kind != "unix" or tree.place(folder).exists():
        return
    mail_owner = configuration.value("mail_owner", expanded=True)
    service, postfix = tree.find_user(user), tree.find_user(mail_owner)
    if service is None:
        plan.obstacles.append(f"there is no user {user} to own {folder}. First: {useradd(user)}")
    if postfix is None:
        plan.obstacles.append(f"there is no user {mail_owner}, whom {configuration.main_cf} calls mail_owner")
    owner = Account(service.uid, postfix.gid) if service and postfix else None
    plan.make_folders(tree, folder)
    plan.folders.append(Folder(folder, 0o2750, owner))
