"""Our check_policy_service in main.cf's smtpd_relay_restrictions, where postfix-examples/README.md says it belongs.

What the administrator has there stays. A configuration in which the right place is not certain, or in which a check
in the right place would not have its effect, is refused with what to do by hand.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from pbs_policy.command_line import command_line, useradd
from pbs_policy.host import Host
from pbs_policy.install.files import Change, FileState, InstallError, Tree, read_accepted, read_state
from pbs_policy.install.plan import Folder, Plan
from pbs_policy.install.record import InstallRecord
from pbs_policy.log import printable
from pbs_policy.postfix.configuration import MasterService, PostfixConfig, read_postfix
from pbs_policy.postfix.listener import Listener
from pbs_policy.postfix.placing import ListError, by_hand, check_for, insert_check, misplaced, parse_list
from pbs_policy.postfix.restrictions import (
    CHECK,
    LISTS,
    RECIPIENT,
    RELAY,
    endpoint_of,
    find_refusal,
    parse_policy_check,
)
from pbs_policy.trust import temporary_folder

COMMAND = "install-postfix"
AFTERWARDS = "postfix reload"


def plan_postfix(tree: Tree, record: InstallRecord, folder: str, listeners: Sequence[Listener], user: str) -> Plan:
    """What puts the check for the first of `listeners` that Postfix can reach into the main.cf of `folder`.

    `user` is who the service runs as, for the folder of a unix socket. Raises InstallError with the file, the line
    and what to do by hand where the configuration is not understood.
    """
    path = tree.name(f"{folder}/main.cf")
    main_cf = tree.place(path)
    current = read_state(main_cf)
    if current is None:
        raise InstallError(f"{main_cf}: there is no such file. Where is Postfix? --postfix-config DIR")
    config = read_config(main_cf.parent)
    entry = record.entries.get(path)
    # What we have put there ourselves is put there anew, so that it follows the settings.
    base = entry.before if entry and entry.before and current == entry.after else current
    listener = choose_listener(listeners, config.queue_directory)
    plan = Plan(tree.name(folder), afterwards=AFTERWARDS)
    value, data = _draft(main_cf.parent, base, listener)
    if data != current.data:
        if entry and current not in (entry.before, entry.after):
            raise InstallError(
                f"{config.place(RELAY)}: main.cf was changed since the installation, and the check is not "
                f"there as it is to be now. By hand: {by_hand(RELAY, endpoint_of(listener, config.queue_directory))}"
            )
        plan.changes.append(Change(path, current, FileState(data, current.mode, current.uid, current.gid)))
        postconf = ["postconf", "-c", str(main_cf.parent)]
        plan.commands = [command_line(*postconf, "-e", f"{RELAY} = {value}"), command_line(*postconf, "-n")]
        plan.checks.append(lambda: _verify(main_cf.parent, value, config.warnings))
    _plan_socket_folder(tree, plan, config, listener, user)
    plan.notes = list(_submission_notes(config))
    return plan


def read_config(folder: Path) -> PostfixConfig:
    """The configuration in `folder`. Raises InstallError where postconf refuses it, or is not there."""
    return read_accepted(read_postfix, folder, "postconf", "postfix")


def choose_listener(listeners: Sequence[Listener], queue_directory: str) -> Listener:
    """The first that Postfix can reach, chrooted or not. Raises InstallError where there is none."""
    faults = []
    for listener in listeners:
        if listener.path and not PurePosixPath(listener.path).is_relative_to(queue_directory):
            faults.append(
                f"{listener} is outside Postfix' queue directory {queue_directory}, where a chrooted smtpd does not "
                "find it"
            )
        elif not listener.path and not listener.port:
            faults.append(f"{listener} is another port at every start")
        else:
            return listener
    raise InstallError(
        f"listen: {'; '.join(faults)}. Expected in the settings file: inet:127.0.0.1:10040 or "
        f"unix:{queue_directory}/pbs-policy/policy"
    )


def _draft(postfix: Path, base: FileState, listener: Listener) -> tuple[str, bytes]:
    """The list with our check in it, and the main.cf that postconf -e makes with it of `base`, in a copy."""
    with temporary_folder() as folder:
        try:
            main_cf = folder / "main.cf"
            main_cf.write_bytes(base.data)
            for name in ("master.cf", "dynamicmaps.cf"):
                if (postfix / name).exists():
                    shutil.copyfile(postfix / name, folder / name)
            _let_rest(main_cf)
            draft = read_config(folder)
            value = _new_value(draft, listener)
            _refuse_conflicts(draft, listener)
            if value != draft.written.get(RELAY, draft.value(RELAY)):
                # postconf -e would write a line more behind a last one without its end, and so into that.
                main_cf.write_bytes(base.data if base.data.endswith(b"\n") else base.data + b"\n")
                edited = Host().run("postconf", "-c", str(folder), "-e", f"{RELAY} = {value}")
                if edited.status:
                    raise InstallError(f"postconf does not set {RELAY}: {printable(edited.err, 2000)}")
                _let_rest(main_cf)
                _verify(folder, value, draft.warnings)
            return value, main_cf.read_bytes()
        except InstallError as error:
            # The copy is gone when this is read.
            raise InstallError(str(error).replace(str(folder), str(postfix)), error.status, error.by_hand) from None


def _let_rest(main_cf: Path) -> None:
    """Postfix reads a main.cf again and again until it is seconds old, in case its writer is not done. We are."""
    written = time.time() - 60
    os.utime(main_cf, (written, written))


def _new_value(config: PostfixConfig, listener: Listener) -> str:
    """The list with our check in it; as it is where that stands in its place already."""
    lines = config.lines.get(RELAY, [])
    if len(lines) > 1:
        raise InstallError(
            f"{config.place(RELAY)}: {RELAY} is set more than once (lines {', '.join(map(str, lines))}), "
            "and the last one counts. By hand: delete the others"
        )
    text = config.written.get(RELAY, config.value(RELAY))
    endpoint = endpoint_of(listener, config.queue_directory)
    try:
        restrictions = parse_list(text, config.classes())
        if not restrictions:
            decides = parse_list(config.value(RECIPIENT), config.classes())
            ours = config.find_ours(RECIPIENT, None, [listener])
            if ours and not misplaced(decides, ours[0]):
                return text
            raise ListError(
                f"it is empty, so that relaying is decided in {RECIPIENT}. Move what permits and refuses relaying "
                "from there to here first"
            )
        for number in config.find_ours(RELAY, None, [listener]):
            wrong = misplaced(restrictions, number)
            fault = wrong.why if wrong else parse_policy_check(restrictions[number].argument).fault
            if not fault:
                return text
            raise ListError(f"our {CHECK} stands in it, but {fault}")
        return insert_check(text, check_for(endpoint), config.classes())
    except ListError as error:
        where = config.place(RELAY) + ("" if lines else f" (not set: the default is {text!r})")
        why = printable(str(error), 1000)
        raise InstallError(f"{where}: {RELAY}: {why}. By hand: {by_hand(RELAY, endpoint)}") from None


def _refuse_conflicts(config: PostfixConfig, listener: Listener) -> None:
    """Raise InstallError for the first setting with which our check in its right place would not have its effect, or
    another one, with its file and line."""
    services: list[MasterService | None] = [*config.for_strangers()]
    for service in services or [None]:
        if service and RELAY in service.overrides:
            raise InstallError(
                f"{config.place(RELAY, service)}: {service.name}/{service.kind} has {RELAY} of its own, and does not "
                "look at those of main.cf. By hand: remove that line, or put the check there"
            )
        for name in [*LISTS, *config.classes(service)]:
            if name == config.relay_list(service):
                continue
            where = config.place(name, service)
            if config.find_ours(name, service, [listener]):
                why = f"our {CHECK} stands in {name}, where its OK does not permit relaying"
                raise InstallError(f"{where}: {why}. By hand: remove it")
            restrictions = config.restrictions(name, service)
            refusal = find_refusal(restrictions)
            if refusal is not None and name in LISTS:
                raise InstallError(
                    f"{where}: {restrictions[refusal].name} in {name} refuses a relay attempt even when {RELAY} has "
                    f"permitted it. By hand: remove it there ({RELAY} has one that stays)"
                )


def _submission_notes(config: PostfixConfig) -> Iterator[str]:
    """What to look at where clients that authenticate come in: they inherit the check."""
    for each in config.services:
        if each.is_submission and not each.is_closed and RELAY not in each.overrides:
            yield (
                f"{each.place}: {each.name}/{each.kind} has no {RELAY} of its own, so a client that may relay need "
                f"not authenticate there. To have it so: -o {RELAY}=permit_sasl_authenticated,reject"
            )


def _verify(folder: Path, value: str, warnings: frozenset[str]) -> None:
    """Raise InstallError unless Postfix reads the value that was meant, with no complaint it did not have before."""
    config = read_config(folder)
    read = config.written.get(RELAY, "")
    if read.split() != value.split():
        raise InstallError(f"{config.place(RELAY)}: postconf reads {printable(read, 1000)}, not {value}")
    complaints = config.warnings - warnings
    if complaints:
        raise InstallError("postconf complains of the result: " + "; ".join(printable(each) for each in complaints))


def _plan_socket_folder(tree: Tree, plan: Plan, config: PostfixConfig, listener: Listener, user: str) -> None:
    """The folder of a unix socket, which its group lets Postfix in: what the comment in main.cf.unix says to make."""
    if not listener.path:
        return
    folder = tree.name(str(PurePosixPath(listener.path).parent))
    if tree.place(folder).exists():
        return
    mail_owner = config.value("mail_owner")
    service, postfix = tree.find_user(user), tree.find_user(mail_owner)
    if service is None:
        plan.obstacles.append(f"there is no user {user} to own {folder}. First: {useradd(user)}")
    if postfix is None:
        plan.obstacles.append(f"there is no user {mail_owner}, whom {config.main_cf} calls mail_owner")
    owner = (service.uid, postfix.primary_gid) if service and postfix else None
    plan.make_folders(tree, folder)
    plan.folders.append(Folder(folder, 0o2750, owner))
