"""The hook taken out of Dovecot's configuration, whoever put it there and whatever else changed since.

Dovecot refuses every login while its configuration names a script that is missing. So each file of the configuration
is looked at as it is, and what it says about our script, or about the plugin's table, goes; the site's own scripts
stay. The script itself stays for as long as a running Dovecot asks for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pbs_policy.dovecot.doveconf import DovecotConfig, parse_lines, read_setting
from pbs_policy.dovecot.doveconf import Path as Blocks
from pbs_policy.dovecot.editing import edited
from pbs_policy.dovecot.last_login import read_plugin
from pbs_policy.dovecot.logins import chain, find_hooks, find_script, sockets, without_script
from pbs_policy.dovecot.reports import read_reports
from pbs_policy.host import Host
from pbs_policy.install.dovecot import read_config
from pbs_policy.install.files import InstallError, Tree, data_of, read_state
from pbs_policy.install.record import InstallRecord
from pbs_policy.install.reports import BESIDE
from pbs_policy.install.undo import Removal, plan_removal
from pbs_policy.log import printable
from pbs_policy.programs import find_program


def plan_hook_removal(tree: Tree, record: InstallRecord, folder: str, key_prefix: str) -> Removal:
    """What takes the hook out of the configuration that the record is about, or else of that in `folder`.

    Raises InstallError where Dovecot does not accept the configuration, and OSError.
    """
    removal = plan_removal(tree, record)
    conf_d = tree.name(f"{record.configuration}/conf.d") + "/"
    removal.later = [path for path in record.entries if not path.startswith(conf_d)]  # what Dovecot's files name
    removal.waits = partial(_needs_script, tree, record, removal)
    file = tree.place(record.configuration or folder) / "dovecot.conf"
    if not file.exists() or not find_program("doveconf"):
        return removal
    config = read_config(file)
    restored = {str(tree.place(each.path)) for each in removal.changes if each.after is None}
    changes: dict[str, dict[int, str | None]] = {}
    for place, value in (
        *_script_changes(config), *_plugin_changes(config, key_prefix), *_report_changes(config),
    ):  # fmt: skip
        path, _, number = place.rpartition(":")
        if path not in restored:
            changes.setdefault(path, {})[int(number)] = value
    for name in [each for each in removal.edited if each.endswith(f"/{BESIDE}")]:
        changes.pop(str(tree.place(name)), None)  # it is searched as it is: Dovecot may not read it any more
        removal.take_out(tree, name, _without_secret)
    for path, of_file in changes.items():
        if not Path(path).is_relative_to(tree.root):
            raise InstallError(f"{path}: is outside {tree.root}. By hand: take pbs-postlogin out of it")
        # By the path that Dovecot goes: whoever can change a folder or link of it could lead root to another file.
        name = tree.name(f"/{Path(path).relative_to(tree.root)}")
        removal.take_out(tree, name, partial(_edit, of_file, data_of(read_state(tree.place(name)))))
    removal.checks.append(partial(_check_left, tree, removal, file, set(_listeners(config))))
    return removal


def _edit(changes: dict[int, str | None], read: bytes, data: bytes) -> bytes:
    """The changes are to the lines of the file as it was read; what was restored already has none of ours."""
    if data != read:
        return data
    return edited(data.decode("utf-8", "surrogateescape"), changes).encode("utf-8", "surrogateescape")


def _script_changes(config: DovecotConfig) -> Iterator[tuple[str, str | None]]:
    """The places where the script is named, with what is left there: None where nothing is."""
    executables = [each for each in config.written if each.name == "executable" and len(each.blocks) == 1]
    named = {each.blocks: each for each in executables if find_script(each.value.split())}
    last = {each.blocks: each for each in executables}
    gone = [blocks for blocks in named if not without_script(last[blocks].value.split())]
    asked = {socket for each in gone for socket in _listeners(config, each)}
    for each in config.written:
        words = each.value.split()
        if each.blocks in gone:
            if not each.name:
                yield each.place, None
        elif each.blocks in named and each.name == "executable":
            left = without_script(words)
            yield each.place, chain(left) if left else None
        elif each in executables and asked.intersection(map(_name, words[1:])):
            rest = " ".join(words[:1] + [word for word in words[1:] if _name(word) not in asked])
            yield each.place, rest if f"service {rest}" != each.blocks[0] else None


def _without_secret(data: bytes) -> bytes:
    text = data.decode("utf-8", "surrogateescape")
    gone = [int(each.place[1:]) for each in parse_lines(text, "") if each.name.startswith("auth_policy_")]
    return edited(text, dict.fromkeys(gone)).encode("utf-8", "surrogateescape")


def _listeners(config: DovecotConfig, service: Blocks = ()) -> Iterator[str]:
    """The names of the sockets at which the service, or any of them, listens."""
    for each in config.written:
        if each.blocks[: len(service)] == service and len(each.blocks) == 2 and not each.name:
            yield _name(each.blocks[1].partition(" ")[2])


def _name(socket: str) -> str:
    return socket.rpartition("/")[2]


def _plugin_changes(config: DovecotConfig, key_prefix: str) -> Iterator[tuple[str, str | None]]:
    """The same for Dovecot's last_login plugin, where it writes the login table."""
    plugin = read_plugin(config)
    if plugin is None or not plugin.is_ours(key_prefix):
        return
    for each in config.written:
        words = each.value.split()
        if each.name == "mail_plugins" and "last_login" in words:
            rest = " ".join(word for word in words if word != "last_login")
            yield each.place, None if rest in ("", "$mail_plugins") else rest
        elif each.name.startswith("last_login") or (each.blocks == ("last_login",) and not each.name):
            yield each.place, None


def _report_changes(config: DovecotConfig) -> Iterator[tuple[str, str | None]]:
    """The same for Dovecot's reports, where they say what our recorder wants to know."""
    reports = read_reports(config)
    if reports is None or not {"proxied", "nologin"} <= set(reports.attributes):
        return
    for each in config.written:
        is_block = each.blocks in (("auth_policy",), ("auth_policy_request_attributes",)) and not each.name
        if is_block or (each.name.startswith("auth_policy_") and not each.blocks):
            yield each.place, None


def _needs_script(tree: Tree, record: InstallRecord, removal: Removal) -> bool:
    """Whether Dovecot, running as it was configured before, needs the script at the next login.

    Until it is reloaded, it listens for logins on `BASE_DIR/pop3-postlogin`; /proc/net/unix lists that (proc(5)).
    Where a script of the site's own is asked there afterwards too, all that tells is that we have changed it now.
    """
    file = tree.place(record.configuration) / "dovecot.conf"
    if not tree.is_running_system or not file.exists() or not find_program("doveconf"):
        return False
    base = Path(read_setting(Host(), str(file), "base_dir")).resolve()
    gone = {"pop3-postlogin", "imap-postlogin"} - set(_listeners(read_config(file)))
    return any(each.is_edit for each in removal.changes) or any(_listens(base / each) for each in gone)


def _listens(socket: Path) -> bool:
    for line in Path("/proc/net/unix").read_text(errors="replace").splitlines():
        path = Path(line.split()[-1])
        if path.name == socket.name and path.is_absolute() and path.parent.resolve() == socket.parent:
            return True
    return False


def _check_left(tree: Tree, removal: Removal, file: Path, listened: set[str]) -> None:
    """Raise InstallError unless Dovecot accepts what is left, and no login is for a script that is gone. Notes which
    files stay that nothing includes any more."""
    config = read_config(file)
    for hook in find_hooks(config):
        raise InstallError(f"{hook.place}: {hook.protocol} logins still run {hook.script}. By hand: take it out")
    for protocol in config.protocols():
        for socket in listened.intersection(map(_name, sockets(config, protocol))).difference(_listeners(config)):
            place = config.place((f"service {protocol}",), "executable")
            raise InstallError(f"{place}: nobody would listen at {socket} for {protocol} logins. By hand: remove it")
    read = {each.place.rpartition(":")[0] for each in config.written}
    for each in removal.changes:
        place = str(tree.place(each.path))
        left = parse_lines(data_of(each.after).decode("utf-8", "replace"), "") if each.is_edit else ()
        names = ", ".join(printable(line.name, 100) for line in left if line.name)
        if names and place not in read:
            removal.notes.append(
                f"{place}: stays, but Dovecot does not read it any more, since the drop-in that included it is gone. "
                f"Move what is left in it ({names}) to a file of your own, or delete it"
            )
