"""Lists of restrictions: read as Postfix reads them, and ours put where it belongs or not at all."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbs_policy.postfix.placing import ListError, insert_check, parse_list, right_list
from pbs_policy.postfix.restrictions import PERMIT_LOCAL, REFUSING, is_balanced, parse_policy_check, split_words

CHECK = "check_policy_service { inet:127.0.0.1:10040, timeout=2s }"

HARMLESS = [
    "permit_mynetworks",
    "permit_sasl_authenticated",
    "reject_unknown_sender_domain",
    "check_client_access hash:/etc/postfix/clients",
    "check_recipient_access inline:{ a=OK, b=REJECT }",
    "reject_rbl_client dnsbl.example.org",
    "check_policy_service { unix:private/greylist, timeout=10s }",
    "hash:/etc/postfix/recipients",
    "sleep 1",
    "warn_if_reject reject",
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "permit_mynetworks permit_sasl_authenticated defer_unauth_destination",
            f"permit_mynetworks permit_sasl_authenticated {PERMIT_LOCAL} {CHECK} defer_unauth_destination",
        ),
        (
            "permit_mynetworks, permit_sasl_authenticated, reject_unauth_destination",
            f"permit_mynetworks, permit_sasl_authenticated, {PERMIT_LOCAL}, {CHECK}, reject_unauth_destination",
        ),
        ("reject_unauth_destination", f"{PERMIT_LOCAL} {CHECK} reject_unauth_destination"),
        (
            f"permit_mynetworks,{PERMIT_LOCAL},reject_unauth_destination,reject_unknown_sender_domain",
            f"permit_mynetworks,{PERMIT_LOCAL},{CHECK}, reject_unauth_destination,reject_unknown_sender_domain",
        ),
        ("Permit_MyNetworks Reject_Unauth_Destination permit", None),
        ("check_client_access hash:$config_directory/clients reject_unauth_destination", None),
    ],
)
def test_the_check_goes_right_before_what_refuses(text: str, expected: str | None) -> None:
    result = insert_check(text, CHECK)
    if expected is not None:
        assert result == expected
    names = [each.name for each in parse_list(result)]
    place = next(number for number, name in enumerate(names) if name in REFUSING)
    assert names[place - 1] == "check_policy_service"
    assert PERMIT_LOCAL in names[: place - 1]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("permit_mynetworks, reject", "no reject_unauth_destination"),
        ("", "no reject_unauth_destination"),
        ("reject_unauth_destination defer_unauth_destination", "stand in it"),
        ("permit reject_unauth_destination", "never reached"),
        ("permit_mynetworks reject reject_unauth_destination", "never reached"),
        ("warn_if_reject reject_unauth_destination", "a mere warning"),
        ("our_class reject_unauth_destination", "restriction class"),
        ("$mua_relay_restrictions reject_unauth_destination", "another parameter"),
        ("permit_mynetwork reject_unauth_destination", "permit_mynetwork is no restriction"),
        ("permit_mynetworks check_client_access", "has no argument"),
        ("reject_unauth_destination check_policy_service inet:127.0.0.1:10023", "would skip that"),
        ("permit_mynetworks { reject_unauth_destination", "braces"),
        ("permit_mynetworks } reject_unauth_destination {", "braces"),
    ],
)
def test_a_list_in_which_the_place_is_not_certain_is_refused(text: str, why: str) -> None:
    with pytest.raises(ListError, match=why):
        insert_check(text, CHECK, ["our_class"])


@given(
    before=st.lists(st.sampled_from(HARMLESS), max_size=6),
    refusing=st.sampled_from(REFUSING),
    separator=st.sampled_from([" ", ", ", ",", "\t", " , "]),
)
def test_what_stands_in_the_list_stays_in_its_order(before: list[str], refusing: str, separator: str) -> None:
    text = separator.join([*before, refusing])
    result = insert_check(text, CHECK)
    expected = [(each.name, each.argument) for each in parse_list(text)]
    added = [(PERMIT_LOCAL, ""), ("check_policy_service", policy_argument())]
    assert [(each.name, each.argument) for each in parse_list(result)] == [*expected[:-1], *added, expected[-1]]


def policy_argument() -> str:
    return CHECK.partition(" ")[2]


@given(st.text(alphabet="ab{}, \t$:", max_size=30))
def test_any_text_is_split_into_its_words(text: str) -> None:
    words = split_words(text)
    assert is_balanced(text) or "{" in text or "}" in text
    rest = text
    for word, start in words:
        assert text[start : start + len(word)] == word
        rest = rest.replace(word, "", 1)
    assert not rest.strip(", \t")


@given(st.text(max_size=60))
def test_any_text_is_taken_or_refused(text: str) -> None:
    with contextlib.suppress(ListError):
        assert CHECK in insert_check(text, CHECK)


def test_a_policy_service_is_named_in_either_form() -> None:
    assert parse_policy_check("inet:127.0.0.1:10040").endpoint == "inet:127.0.0.1:10040"
    argument = "{ unix:pbs-policy/policy, timeout=2s, { default_action = x } }"
    assert parse_policy_check(argument).endpoint == "unix:pbs-policy/policy"
    assert parse_policy_check("{}").endpoint == ""


OURS = "check_policy_service inet:localhost:10040"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            f"permit_mynetworks, reject_unauth_destination, {OURS}",
            f"permit_mynetworks, {PERMIT_LOCAL}, {CHECK}, reject_unauth_destination",
        ),
        (f"{OURS} permit_mynetworks defer_unauth_destination",
         f"permit_mynetworks {PERMIT_LOCAL} {CHECK} defer_unauth_destination"),
        (
            f"check_client_access cidr:/etc/postfix/c, {PERMIT_LOCAL}, {OURS}",
            f"check_client_access cidr:/etc/postfix/c, {PERMIT_LOCAL}, {CHECK}, reject_unauth_destination",
        ),
        ("", f"{PERMIT_LOCAL} {CHECK} reject_unauth_destination"),
    ],
)  # fmt: skip
def test_a_list_is_put_right_and_what_is_the_sites_own_stays(text: str, expected: str) -> None:
    assert right_list(text, CHECK, lambda each: "10040" in each.argument) == expected


def test_a_list_in_which_our_check_is_a_mere_warning_is_left_to_its_owner() -> None:
    with pytest.raises(ListError, match="warn_if_reject"):
        right_list(f"warn_if_reject {OURS}, reject_unauth_destination", CHECK, lambda each: "10040" in each.argument)
