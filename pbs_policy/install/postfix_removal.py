"""Our check taken out of Postfix's configuration, whoever put it there and whatever else changed since.

A Postfix that asks a service which is gone refuses every client that is logged in. So main.cf and master.cf are
looked at as they are, and what they say about the policy service goes; all else in them stays.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from string import Template

from pbs_policy.install.files import InstallError, Tree, data_of, read_state
from pbs_policy.install.postfix import read_config
from pbs_policy.install.record import InstallRecord
from pbs_policy.install.undo import Removal, plan_removal
from pbs_policy.log import printable
from pbs_policy.postfix.configuration import PostfixConfig
from pbs_policy.postfix.editing import IsOurs, restriction_names, take_out
from pbs_policy.postfix.listener import Listener
from pbs_policy.postfix.main_cf import logical_lines
from pbs_policy.postfix.restrictions import (
    CHECK,
    LISTS,
    PERMIT_LOCAL,
    RELAY,
    Restriction,
    is_at,
    parse_policy_check,
    parse_restrictions,
    words,
)

_QUEUE = "/var/spool/postfix"
_SOCKET = "pbs-policy/policy"
"""Where in the queue directory `pbs-policy.socket` listens."""


def plan_postfix_removal(tree: Tree, record: InstallRecord, folder: str, listeners: Sequence[Listener]) -> Removal:
    """What takes the check for the service at `listeners` out of the configuration in `folder`, of the one that the
    record is about, and of the other instances that it names (multi_instance_directories).

    Raises InstallError where what would be left is not certain, with what to do by hand.
    """
    removal = plan_removal(tree, record)
    todo = list(dict.fromkeys(tree.name(each) for each in (record.configuration or folder, folder)))
    for each in todo:
        files = [tree.place(f"{each}/{name}") for name in ("main.cf", "master.cf")]
        if not files[0].exists():
            continue
        try:
            config = read_config(files[0].parent)
        except InstallError:
            config = None  # it is as broken afterwards, and our words are found all the same
        added, permit_local = _added(record, tree.name(f"{each}/main.cf"))
        ours = partial(_is_ours, config.values if config else {}, listeners, added)
        names = restriction_names(*(data_of(read_state(file)) for file in files))
        removal.checks.append(partial(_check_theirs, files, names, _theirs(files, names)))
        for file in files:
            edit = partial(take_out, is_ours=ours, names=names, permit_local=permit_local)
            edit = partial(edit, options=file.name == "master.cf")
            removal.take_out(tree, tree.name(f"{each}/{file.name}"), edit)
        if config:
            removal.checks.append(partial(_check_left, files[0].parent, ours, config))
            others = map(tree.name, words(config.value("multi_instance_directories")))
            todo += [other for other in others if other not in todo]
    return removal


def _is_ours(
    values: dict[str, str], listeners: Sequence[Listener], added: frozenset[str], restriction: Restriction
) -> bool:
    """Whether a check is for our service, in a configuration with these values."""
    queue = values.get("queue_directory") or _QUEUE
    endpoint = parse_policy_check(Template(restriction.argument).safe_substitute(values)).endpoint
    ours = (*listeners, Listener(path=str(PurePosixPath(queue, _SOCKET))))
    return endpoint in added or any(is_at(endpoint, each, queue) for each in ours)


def _theirs(files: Sequence[Path], names: Collection[str]) -> list[bytes]:
    """What has to be the same afterwards: the parameters and entries in their order, and the text of each parameter
    that is not one of `names`, where our words may stand."""
    main_cf, master_cf = ([line for _, line in logical_lines(data_of(read_state(file)))] for file in files)
    found = [(line.partition(b"=")[0].strip(), line) for line in main_cf]
    kept = [name if name.decode("latin-1") in names else line for name, line in found if name != RELAY.encode()]
    return kept + [line.partition(b"=")[0].strip() for line in master_cf]


def _check_theirs(files: Sequence[Path], names: Collection[str], before: Sequence[bytes]) -> None:
    """Raise InstallError where a line of the site's is gone, or part of another: postconf takes that for a value."""
    left = _theirs(files, names)
    if left != before:
        lost = next((each for each in before if each not in left), b"the order of the lines").decode("latin-1")
        raise InstallError(
            f"{files[0].parent}: what is not ours would be changed: {printable(lost, 200)}. By hand: remove {CHECK} "
            "from main.cf and master.cf"
        )


def _added(record: InstallRecord, path: str) -> tuple[frozenset[str], bool]:
    """The endpoints that the installation put into the relay list, and whether a PERMIT_LOCAL came with them."""
    entry = record.entries.get(path)
    if entry is None:
        return frozenset(), False
    lists = [_relay_list(data_of(state)) for state in (entry.before, entry.after)]
    before, after = [
        {parse_policy_check(each.argument).endpoint for each in found if each.name == CHECK} for found in lists
    ]
    permits = [any(each.name == PERMIT_LOCAL for each in found) for found in lists]
    return frozenset(after - before), permits == [False, True]


def _relay_list(data: bytes) -> list[Restriction]:
    lines = [line.decode("utf-8", "surrogateescape").partition("=") for _, line in logical_lines(data)]
    return parse_restrictions(next((value for name, _, value in reversed(lines) if name.strip() == RELAY), ""))


def _check_left(folder: Path, ours: IsOurs, before: PostfixConfig) -> None:
    config = read_config(folder)
    for where, name in _asking(config, ours):
        raise InstallError(f"{where}: {name} still asks the policy service. By hand: remove {CHECK} there")
    for name in config.classes():
        if before.value(name).strip() and not config.value(name).strip():
            raise InstallError(
                f"{before.place(name)}: {name} is a restriction class that has nothing but our {CHECK} in it, and "
                f"Postfix refuses an empty one. By hand: remove {name} here, from smtpd_restriction_classes and from "
                "the lists and tables that name it"
            )


def _asking(config: PostfixConfig, ours: IsOurs) -> Iterator[tuple[str, str]]:
    """Where a list or class still has a check of ours: the place, and the parameter's name."""
    for service in (None, *config.services):
        for name in (*LISTS, *config.classes(service)):
            if any(each.name == CHECK and ours(each) for each in config.restrictions(name, service)):
                yield config.place(name, service), name
