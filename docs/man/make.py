"""`python docs/man/make.py [DIRECTORY]`: writes the manual pages, roff with the macros of man(7).

A page is the text in PAGE.in, where a line `@NAME@` stands for what is taken from the program: commands and options
from click, settings with their defaults and meanings from `settings`, keys and values from the docstrings of `keys`
and `records`, reasons from `check`, names in JSON from docs/reference.md, what the post-login script reads from the
script. A test holds the committed pages equal to what this writes.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).parent
TOP = HERE.parent.parent
sys.path.insert(0, str(TOP))  # hence E402: the package that stands beside this file, and no installed one

import click  # noqa: E402

from pbs_policy import __version__, settings  # noqa: E402
from pbs_policy.cli import cli  # noqa: E402
from pbs_policy.cli.check import WHY  # noqa: E402
from pbs_policy.cli.commands import PLACES  # noqa: E402
from pbs_policy.service.reload import CHANGEABLE  # noqa: E402
from pbs_policy.table import keys, records  # noqa: E402

TITLES = {
    "pbs-policy.1": "POP-before-SMTP commands",
    "pbs-policy.conf.5": "POP-before-SMTP settings",
    "pbs-policy-table.5": "POP-before-SMTP login table",
    "pbs-policy.8": "POP-before-SMTP policy service",
    "pbs-postlogin.8": "POP-before-SMTP post-login script",
}
"""Every page, and what stands in the middle of its head line."""

# Roff's own letters, and those that it would print as typographic ones.
_LETTERS = {"\\": r"\(rs", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti"}


def text(plain: str) -> str:
    """`plain` as roff; what stands in backquotes comes in bold. ASCII only: what a terminal shows can be copied."""
    parts = re.split(r"`([^`]+)`", plain)
    whole = "".join(rf"\fB{_escape(part)}\fP" if at % 2 else _escape(part) for at, part in enumerate(parts))
    return rf"\&{whole}" if whole.startswith((".", r"\(aq")) else whole


def _escape(plain: str) -> str:
    return "".join(_LETTERS.get(letter, letter) for letter in plain.encode("ascii").decode())


def literal(lines: str) -> Iterator[str]:
    """Lines as they stand, in a fixed-width font where there is one."""
    yield ".PP\n.RS 4\n.nf\n.ft CR"
    yield from (text(line).replace(r"\fB", r"\f[CB]").replace(r"\fP", r"\f[CR]") for line in lines.splitlines())
    yield ".ft R\n.fi\n.RE"


def prose(docstring: str) -> Iterator[str]:
    """A docstring of paragraphs; one that is indented, or follows a lone \\b as in click's help, stays as it is."""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        kept = paragraph.removeprefix("\b\n")
        if kept != paragraph:
            name, _, example = kept.partition("\n")
            yield f".PP\n{text(name)}"
            yield from literal(inspect.cleandoc(example))
        elif paragraph.startswith("    "):
            yield from literal(inspect.cleandoc("\n" + paragraph))
        else:
            yield f".PP\n{text(' '.join(paragraph.split()))}"


def commands() -> Iterator[str]:
    """Every command: how it is called, its help, its options."""
    for name in PLACES:
        command = cli.get_command(click.Context(cli), name)
        if command is None:
            raise ValueError(f"no such command: {name}")
        arguments = [_value(each) for each in command.params if isinstance(each, click.Argument)]
        words = " ".join(rf"\fI{text(each)}\fP" for each in arguments)
        yield f".SS {text(name)}\n.B pbs\\-policy {text(name)}\n[\\fIoptions\\fP] {words}".rstrip()
        yield from prose(command.help or "")
        yield from _options(command)


def options() -> Iterator[str]:
    """The options that stand before the command."""
    yield from _options(cli)


def _options(command: click.Command) -> Iterator[str]:
    for each in command.params:
        if isinstance(each, click.Option):
            # Sorted, because click changed its order: short names first.
            names = [rf"\fB{text(name)}\fP" for name in [*sorted(each.opts, key=len), *each.secondary_opts]]
            value = "" if each.is_flag else rf" \fI{text(_value(each))}\fP"
            yield f".TP\n{', '.join(names)}{value}\n{text(_help(each))}"


def _help(option: click.Option) -> str:
    if option.name == "version":
        return "Show the version and exit."
    help_text = " ".join((option.help or "").split())
    if option.show_default is True and "default:" not in help_text:
        default = option.default
        if option.is_flag and option.secondary_opts:
            default = (option.opts if default else option.secondary_opts)[0]
        help_text += f"  [default: {default}]"
    return help_text + ("  [required]" if option.required else "")


def _value(parameter: click.Parameter) -> str:
    if parameter.metavar:
        return parameter.metavar
    choices = parameter.type.choices if isinstance(parameter.type, click.Choice) else [(parameter.name or "").upper()]
    name = "|".join(choices)
    return name if parameter.required or isinstance(parameter, click.Option) else f"[{name}]"


def every_setting() -> Iterator[str]:
    """Every setting: default and meaning."""
    for name, value in settings.defaults().items():
        default = rf"default: \fB{text(value.text)}\fP" if value.text else "default: empty"
        yield f".TP\n\\fB{text(name)}\\fP ({default})\n{text(settings.meaning(name))}"


def script_settings() -> Iterator[str]:
    """The settings that the post-login script reads, from its own table of defaults."""
    script = (TOP / "dovecot-hooks" / "pbs_postlogin.py").read_text()
    table = script.partition("    settings = {")[2].partition("}")[0]
    yield ",\n".join(f"\\fB{text(name)}\\fP" for name in re.findall(r'"(\w+)":', table)) + "."


def changeable() -> Iterator[str]:
    """The settings that a reload can change."""
    yield ",\n".join(f"\\fB{text(name)}\\fP" for name in settings.defaults() if name in CHANGEABLE) + "."


def reasons() -> Iterator[str]:
    """Every reason for a decision that `pbs-policy check` knows."""
    for name, meaning in WHY.items():
        yield f".TP\n.B {text(name)}\n{text(meaning)}"


def json_names() -> Iterator[str]:
    """Every name in JSON and TSV, from docs/reference.md."""
    page = (TOP / "docs" / "reference.md").read_text()
    section = page.partition("\n## Names in JSON and TSV\n")[2].partition("\n## ")[0]
    for name, meaning, where in re.findall(r"^\| `(\w+)` \| (.+) \| ([\w, ]+) \|$", section, re.MULTILINE):
        yield f".TP\n.B {text(name)}\n{text(f'{meaning} ({where})')}"


def key_names() -> Iterator[str]:
    """What `keys` says of the names of the keys."""
    yield from prose(_without_modules(keys.__doc__ or ""))


def values() -> Iterator[str]:
    """What `records` says of the values, and the fields of a permit."""
    yield from prose(_without_modules(records.__doc__ or ""))
    yield ".PP\nThe fields of a permit:"
    fields = inspect.getsource(records.Permit)
    for name in records.Permit._fields:
        # The string under a field, where it has one.
        said = re.search(rf'^    {name}: [^\n]*\n    """(.*?)"""', fields, re.MULTILINE | re.DOTALL)
        yield f".TP\n.B {text(name)}\n{text(' '.join(said[1].split()) if said else 'Text, shown in listings.')}"


def _without_modules(docstring: str) -> str:
    """What a docstring says of the thing, without what it says to programmers of where it is."""
    docstring = docstring.replace(": the only module that knows them.", ".")
    docstring = docstring.replace("with the fields of `Permit`", "with the fields below")
    return re.sub(r" \(`\w+`\)| The values are described in `records`\.", "", docstring)


PARTS: dict[str, Callable[[], Iterator[str]]] = {
    "commands": commands,
    "options": options,
    "settings": every_setting,
    "script settings": script_settings,
    "changeable": changeable,
    "reasons": reasons,
    "json names": json_names,
    "keys": key_names,
    "values": values,
}


def page(name: str) -> str:
    """The manual page of this file name. Raises KeyError for a part that there is not."""
    title, _, section = name.rpartition(".")
    lines = [
        rf".\" Written by docs/man/make.py from {name}.in and the program: change those.",
        f'.TH {text(title.upper())} {section} "" "pbs\\-policy {__version__}" "{text(TITLES[name])}"',
        ".nh\n.ad l",
    ]
    for line in (HERE / f"{name}.in").read_text().splitlines():
        part = re.fullmatch(r"@([a-z ]+)@", line)
        lines.extend(PARTS[part[1]]() if part else [line.replace("@version@", __version__)])
    return "\n".join(lines) + "\n"


def main(directory: Path) -> None:
    """Write every page into `directory`."""
    for name in TITLES:
        (directory / name).write_text(page(name))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
