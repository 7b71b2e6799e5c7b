"""Every line of the log that the code can write, and every exit status, as they stand in the code.

What is put into a line at run time is `...` here. Only literals are read: a line whose text is made elsewhere is
resolved by name below, and one that is not known here is a KeyError, so that none goes unnoticed.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

from tests.pages import TOP

WORDS = ("info", "warning", "error")

# What the script says by these, and how such a line begins.
_SAID = {
    "say": "",
    "complaint": "error: this login is not recorded: ",
    "Failure": "error: this login is not recorded: ",
    "Unwanted": "info: this login is not recorded: ",
}

# Lines that are handed to the log as a whole, by their file and expression: where their text is made.
_MADE = {
    # pbs_policy/decision/caps.py, _refuse
    ("connection.py", "decision.warning"): ("decision/caps.py", "warning"),
    # pbs_policy/service/connection.py, _disconnect
    ("server.py", "line"): ("service/connection.py", "report_disconnection"),
    # pbs_policy/service/service.py: the faults of the settings, as every command says them
    ("service.py", "fault"): None,
    # dovecot-hooks/pbs_postlogin.py, describe: where log_logins asks for each login
    ("writer.py", "recorded.line"): None,
}


def service_lines() -> set[str]:
    """What `pbs-policy serve` and `pbs-policy record` can log, but decisions and the faults of settings."""
    found: set[str] = set()
    for file in sorted((TOP / "pbs_policy").rglob("*.py")):
        for call in _calls(file):
            if isinstance(call.func, ast.Attribute) and call.func.attr in WORDS and _is_log(call.func.value):
                found.update(f"{call.func.attr}: {text}" for text in _texts(call.args[0], file.name))
    return found


def script_lines() -> set[str]:
    """What the post-login script says on its standard error."""
    found = set()
    for file in ("pbs-postlogin", "pbs_postlogin.py"):
        for call in _calls(TOP / "dovecot-hooks" / file):
            if isinstance(call.func, ast.Name) and call.func.id in _SAID:
                text = _text(call.args[0])
                if text.strip(".: "):
                    found.add(f"pbs-postlogin: {_SAID[call.func.id]}{text}")
    return found


def exit_statuses() -> set[int]:
    """What the command line and the script can end with."""
    found = {0}
    for file in [*(TOP / "pbs_policy").rglob("*.py"), TOP / "dovecot-hooks" / "pbs_postlogin.py"]:
        source = file.read_text()
        found |= {getattr(os, name) for name in re.findall(r"os\.(EX_\w+)", source)}
        found |= set(map(int, re.findall(r"^\s+(?:sys\.|posix\._)exit\((\d+)\)", source, re.MULTILINE)))
        for numbers in re.findall(r'^[A-Z_, ]+ = ([\d, ]+)\n"""Exit status', source, re.MULTILINE):
            found |= set(map(int, numbers.split(",")))
    command_line = "\n".join(file.read_text() for file in (TOP / "pbs_policy" / "cli").glob("*.py"))
    return found | {int(number) for number in re.findall(r"^ +return (\d+)$", command_line, re.MULTILINE)}


def _calls(file: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call))


def _is_log(node: ast.expr) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name.strip("_") == "log"


def _texts(argument: ast.expr, file: str) -> set[str]:
    while isinstance(argument, ast.Call) and ast.unparse(argument.func) == "printable":
        argument = argument.args[0]
    if isinstance(argument, ast.JoinedStr | ast.Constant):
        return {_text(argument)}
    made = _MADE[file, ast.unparse(argument)]
    if made is None:
        return set()
    where, name = made
    tree = ast.parse((TOP / "pbs_policy" / where).read_text())
    nodes = list(ast.walk(tree))
    given = [each.value for each in nodes if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == name]
    given += [
        each.args[0] for each in nodes if isinstance(each, ast.Call) and ast.unparse(each.func).endswith(f".{name}")
    ]
    texts = {_text(part) for each in given for part in ast.walk(each) if isinstance(part, ast.JoinedStr)}
    assert texts, made
    return texts


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        whole = "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)
        return whole.replace("......", "...")
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
        return re.sub(r"%\w", "...", _text(node.left))
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        return re.sub(r"\{\}", "...", _text(node.func.value))
    return "..."
