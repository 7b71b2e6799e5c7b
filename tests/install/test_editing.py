"""Our words taken out of a file: what is left says what it said before, in whatever way it was written."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pbs_policy.dovecot.doveconf import parse_lines
from pbs_policy.dovecot.editing import edited
from pbs_policy.install.files import Change, FileState
from pbs_policy.install.undo import _without_difference
from pbs_policy.postfix.editing import take_out
from pbs_policy.postfix.restrictions import CHECK, Restriction, parse_restrictions

OURS = (
    f"{CHECK} inet:127.0.0.1:10040",
    f"{CHECK} {{ inet:127.0.0.1:10040, timeout=2s, {{ default_action = DEFER_IF_REJECT later }} }}",
    f"warn_if_reject {CHECK} inet:127.0.0.1:10040",
    f"warn_if_reject\n\t{CHECK.upper()}\n# why\n {{ inet:127.0.0.1:10040,\n\n# because\n timeout=2s }}",
)
THEIRS = (
    "permit_mynetworks", "permit_auth_destination", "reject_unauth_destination", "reject", "hash:/etc/postfix/access",
    f"{CHECK} inet:127.0.0.1:10023", f"{CHECK} {{ unix:private/policyd, timeout=1s }}", "check_client_access hash:/x",
    "warn_if_reject reject_rbl_client dnsbl.example.org", "Caf\xe9",
)  # fmt: skip
SEPARATORS = (" ", ", ", ",", ",\n  ", "\n\t", " ,\n# a comment, with commas\n  ", "\n\n ")

lists = st.lists(st.tuples(st.sampled_from(OURS + THEIRS), st.sampled_from(SEPARATORS)), max_size=6)


def is_ours(restriction: Restriction) -> bool:
    return "10040" in restriction.argument


def meant(words: list[str]) -> list[tuple[str, str]]:
    found = parse_restrictions(re.sub(r"(?m)^#.*$", "", " ".join(words)))
    return [(each.name, " ".join(each.argument.split())) for each in found]


def read(data: bytes) -> dict[str, str]:
    """The parameters of a main.cf, as Postfix joins their lines."""
    text = re.sub(r"(?m)^[ \t]*#.*\n?", "", data.decode("latin-1"))
    text = re.sub(r"\n\s*(?=\n)", "", text)
    return dict(
        re.split(r"\s*=\s*", line, maxsplit=1) for line in re.sub(r"\n[ \t]+", " ", text).splitlines() if line
    )


@given(lists, lists, st.sampled_from(["", "\n", "\n\n# the end\n"]))
@example([(OURS[0], ", "), ("reject", " ")], [], "")
@example([("permit_mynetworks", ",\n  "), (OURS[3], "\n\t")], [], "")
def test_main_cf_says_the_same_without_our_checks(
    first: list[tuple[str, str]], second: list[tuple[str, str]], end: str
) -> None:
    def text(words: list[tuple[str, str]]) -> str:
        return "".join(word + separator for word, separator in words)

    data = (
        f"# ours: {OURS[0]}\nbiff = no\nfirst = {text(first)}\nsecond =\n  {text(second)}\n#\nlast = 1{end}".encode(
            "latin-1"
        )
    )
    names = {"first", "second"}
    left = take_out(data, is_ours, names)
    parameters = read(left)
    assert list(parameters) == ["biff", "first", "second", "last"]
    for name, words in (("first", first), ("second", second)):
        theirs = [word for word, _ in words if word not in OURS]
        assert meant([parameters[name]]) == meant(theirs)
    assert [line for line in data.splitlines() if line.startswith(b"# ours")] == left.splitlines()[:1]
    assert take_out(left, is_ours, names) == left
    if not any(word in OURS for word, _ in (*first, *second)):
        assert left == data


@given(lists, st.booleans())
def test_master_cf_says_the_same_without_our_checks(words: list[tuple[str, str]], braces: bool) -> None:
    value = ",".join(re.sub(r"\s+", " ", re.sub(r"(?m)^#.*$", "", word)) for word, _ in words)
    if not braces:
        value = ",".join(re.split(r"[\s,]+", value)) if "{" not in value else "permit"
    option = f"-o {{ smtpd_relay_restrictions = {value} }}" if braces else f"-o smtpd_relay_restrictions={value}"
    entry = "submission inet n - y - - smtpd\n  -o syslog_name=postfix/x\n  {} -o x=1\nsmtp inet n - y - - smtpd\n"
    data = entry.format(option).encode("latin-1")
    left = take_out(data, is_ours, {"smtpd_relay_restrictions"}, options=True).decode("latin-1")
    before, after = entry.split("{}")
    assert left.startswith(before)
    assert left.endswith((after.lstrip(), after))
    assert "10040" not in left
    middle = left[len(before) :].removesuffix(after).strip()
    found = (
        middle.strip("{} ").partition("=")[2] if not braces else middle.partition("=")[2].strip().removesuffix("}")
    )
    theirs = [restriction for restriction in parse_restrictions(value) if not is_ours(restriction)]
    ours_warned = [each for each in parse_restrictions(value) if is_ours(each) and each.is_warned]
    assert len(parse_restrictions(found)) == len(theirs) - len(ours_warned)


@pytest.mark.parametrize(
    ("written", "left"),
    [
        ("-o x=1 -o y={} -o z=1", "-o x=1 -o y= -o z=1"),
        ("-o { x = reject,\n    {} }", "-o { x = reject,\n    }"),
        ("-o { x = {},\n    reject }", "-o { x =\n    reject }"),
        ("-o { x =\n    {},\n    reject }", "-o { x =\n    reject }"),
        ("-o { x = {} }\n  -o y=1", "-o { x = }\n  -o y=1"),
    ],
)
def test_an_option_of_master_cf_stays_where_its_entry_goes_on(written: str, left: str) -> None:
    """What begins in the first column would be another entry."""
    ours = "check_policy_service,inet:127.0.0.1:10040"
    entry = "smtp inet n - y - - smtpd\n  "
    assert (
        take_out(f"{entry}{written.replace('{}', ours)}\n".encode(), is_ours, {"x", "y"}, options=True).decode()
        == f"{entry}{left}\n"
    )


LINE = st.sampled_from([b"a = 1", b"b = 2", b"c = 3", b"  d", b"# e", b"", b"f = 6"])
ENDS = st.sampled_from([b"", b"\n"])
FILES = st.builds(lambda lines, end: b"\n".join(lines) + end, st.lists(LINE, max_size=6), ENDS)


@given(FILES, st.lists(st.tuples(st.integers(0, 9), LINE), max_size=3), FILES, FILES)
@example(b"a = 1", [], b"a = ours\n", b"b = 2\n")
@example(b"a = 1\n", [], b"a = 1\nx = ours\n", b"  d\n")
def test_lines_that_are_put_back_leave_every_other_line_whole(
    before: bytes, at: list[tuple[int, bytes]], after: bytes, added: bytes
) -> None:
    ours = after if after.endswith(b"\n") else after + b"\n"
    lines = (ours + added).split(b"\n")
    for number, line in at:
        lines.insert(number, line)
    data = b"\n".join(lines)
    entry = Change("", FileState(before, 0o644, 0, 0), FileState(ours, 0o644, 0, 0))
    left = _without_difference(data, entry)
    known = set(data.split(b"\n")) | set(before.split(b"\n"))
    assert set(left.split(b"\n")) <= known
    theirs = [line for line in data.split(b"\n") if line and line not in ours.split(b"\n")]
    assert [line for line in left.split(b"\n") if line in theirs and line not in before.split(b"\n")] == [
        line for line in theirs if line not in before.split(b"\n")
    ]
    if data == ours:
        assert left in (before, before + b"\n", data)


BLOCKS = st.recursive(
    st.tuples(st.just("setting"), st.integers(0, 9)),
    lambda inner: st.tuples(st.just("block"), st.lists(inner, max_size=3)),
    max_leaves=8,
)


def written(blocks: list[tuple[str, object]], depth: int = 0) -> str:
    text = ""
    for kind, content in blocks:
        indent = "  " * depth
        if kind == "setting":
            text += f"{indent}name{content} = {content}  # why\n"
        else:
            assert isinstance(content, list)
            text += f"{indent}block x{{\n".replace("x{", "x {") + written(content, depth + 1) + f"{indent}}}\n\n"
    return text


@given(st.lists(BLOCKS, max_size=4), st.sets(st.integers(0, 9)), st.sampled_from([None, "new"]))
def test_a_file_of_dovecots_says_the_same_but_for_what_was_changed(
    blocks: list[tuple[str, object]], changed: set[int], value: str | None
) -> None:
    text = written(blocks)
    lines = list(parse_lines(text, "x"))
    changes = {int(each.place[2:]): value for each in lines if each.name and int(each.value) in changed}
    left = list(parse_lines(edited(text, changes), "x"))
    settings = [(each.blocks, each.name, each.value) for each in left if each.name]
    expected = []
    for each in lines:
        if each.name and int(each.value) not in changed:
            expected.append((each.blocks, each.name, each.value))
        elif each.name and value:
            expected.append((each.blocks, each.name, value))
    assert settings == expected
    if not changes:
        assert edited(text, changes) == text


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ('  executable = "a b"  # why\n', "  executable = new  # why\n"),
        ("executable=a\n", "executable= new\n"),
        ("executable = a \\\n   b\n", "executable = new\n"),
        ("executable =\n", "executable = new\n"),
        ("executable = a", "executable = new\n"),
    ],
)
def test_a_changed_setting_keeps_its_place_and_its_comment(line: str, left: str) -> None:
    assert edited(line, {1: "new"}) == left
