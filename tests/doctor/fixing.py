"""A fix that doctor proposes, applied to main.cf and master.cf by the letter, as somebody would who knows no better.

A fix that says what to do in words alone is nothing that could be applied: `fix` raises ByHand.
"""

from __future__ import annotations

import re

from pbs_policy.doctor.finding import Finding
from pbs_policy.postfix.editing import take_out
from pbs_policy.postfix.main_cf import logical_lines
from pbs_policy.postfix.restrictions import CHECK, parse_policy_check, parse_restrictions, split_words

Files = tuple[str, str]
"""main.cf and master.cf."""


class ByHand(Exception):
    """The fix is no line and no command."""


def fix(found: Finding, files: Files) -> Files:
    """The two files after the fix. Raises ByHand."""
    main, master = files
    mend = found.mend
    if match := re.fullmatch(r"first put (\S+) at the end of (\S+), then (take .*)", mend):
        main = _set(main, match[2], f"{_value(main, match[2])}, {match[1]}")
        mend = match[3]
    if match := re.fullmatch(r"take (\S+) out of (\S+?)(?::.*)?", mend):
        return _set(main, match[2], _without(_value(main, match[2]), match[1])), master
    if match := re.fullmatch(r"remove -o (\S+)=\.\.\. from the entry (\S+)", mend):
        return main, _without_option(master, match[2], match[1])
    if match := re.fullmatch(r"(-o \S+=\S+) below the entry (\S+)", mend):
        return main, re.sub(rf"(?m)^({re.escape(match[2])} .*\n)", rf"\1  {match[1]}\n", master)
    if match := re.match(r"write ((?:inet|unix):\S+?)(?:$| there)", mend):
        asked = re.search(r"Postfix asks (\S+?),|is missing before (\S+)", found.seen)
        assert asked
        if (asked[1] or asked[2]) not in main:
            raise ByHand(f"{mend}: it stands in a variable")
        return main.replace(asked[1] or asked[2], match[1]), master
    if match := re.fullmatch(r"put (\S+) in place of (\S+) in (\S+)", mend):
        return _set(main, match[3], _value(main, match[3]).replace(match[2], match[1])), master
    if mend.startswith(f"{CHECK} {{"):
        return main.replace(_ours(main), mend.removeprefix(f"{CHECK} ")), master
    if mend.endswith(("inside the braces", "inside the braces of check_policy_service")):
        return _with_attributes(main, mend.partition(", inside")[0]), master
    if match := re.fullmatch(r"(smtpd_\w+) = (.*?)(?: \(and not in (\S+)\))?", mend, re.DOTALL):
        if match[3]:
            main = _set(main, match[3], _without(_value(main, match[3]), CHECK))
        return _set(main, match[1], match[2]), master
    if match := re.search(r"put `(.*)` right before (\S+) in (\S+)\. ", mend):
        value = _without(_value(main, match[3]), CHECK)
        return _set(main, match[3], value.replace(match[2], f"{match[1]}, {match[2]}")), master
    raise ByHand(mend)


def _value(main: str, name: str) -> str:
    lines = [line.decode().partition("=") for _, line in logical_lines(main.encode())]
    return next((value.strip() for parameter, _, value in reversed(lines) if parameter.strip() == name), "")


def _set(main: str, name: str, value: str) -> str:
    """As `postconf -e` does."""
    return f"{main}{name} = {value}\n"


def _without(value: str, word: str) -> str:
    if word == CHECK:
        left = take_out(f"x = {value}".encode(), lambda each: "10040" in each.argument, {"x"})
        return left.decode().partition("=")[2].strip()
    return ", ".join(each for each, _ in split_words(value) if each != word)


def _without_option(master: str, entry: str, name: str) -> str:
    kept, inside = [], False
    for line in master.splitlines(keepends=True):
        inside = line.startswith(f"{entry} ") if not line[0].isspace() else inside
        if not (inside and line.strip().startswith(f"-o {name}=")):
            kept.append(line)
    return "".join(kept)


def _with_attributes(main: str, attributes: str) -> str:
    """Our check with these attributes in place of its own of the same names."""
    argument = _ours(main)
    asked = parse_policy_check(argument)
    new = parse_policy_check(f"{{ {asked.endpoint}, {attributes} }}").attributes
    written = [f"{{ {name} = {value} }}" for name, value in (asked.attributes | new).items()]
    return main.replace(argument, f"{{ {', '.join([asked.endpoint, *written])} }}")


def _ours(main: str) -> str:
    """What our check is given."""
    asked = (each.argument for each in parse_restrictions(main) if each.name == CHECK)
    return next(each for each in asked if "10040" in each)
