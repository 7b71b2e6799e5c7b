"""Shell completion: what a Tab suggests, through click's classes for each shell, and in a real bash."""

from __future__ import annotations

import os
import pty
import select
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete, get_completion_class

from pbs_policy.address import ClientAddresses
from pbs_policy.cli import cli, completion
from pbs_policy.demo.daemons import PrivateRedis, wait_until
from pbs_policy.demo.ports import free_port
from pbs_policy.settings import defaults
from pbs_policy.store.redis_url import RedisUrl
from pbs_policy.table.keys import Keys
from pbs_policy.table.records import Permit, Record
from tests.commands import Pbs
from tests.service import CLI
from tests.stores import connect, table_on, write_login

SHELLS = ["bash", "zsh", "fish"]
parse_target = ClientAddresses().parse_target
Complete = Callable[[str], list[str]]


def fill(redis_url: str) -> None:
    with connect(RedisUrl.parse(redis_url), "", "") as redis:
        table = table_on(redis, "pbs:")
        for address, user in [
            ("192.0.2.7", "alice@example.com"),
            ("192.0.2.8", "Bob@example.com"),
            ("2001:db8::7", "alice@example.com"),
            ("198.51.100.1", "$(reboot)@example.com"),
        ]:
            write_login(table, address, Record(1, "imap", user), 60, with_domain=True)
        table.permit(parse_target("203.0.113.0/28"), Permit(1, "scanners@example.com"), 60)
        table.deny(parse_target("192.0.2.99"), "spam", 60)
        table.deny(None, "", 60)
        table.deny_user(b"carol@example.com", "", 60)


@pytest.fixture
def url(redis_server: PrivateRedis, monkeypatch: pytest.MonkeyPatch) -> str:
    """A Redis with some logins, permits and denies; nothing but it is in the settings."""
    for name in [name for name in os.environ if name.startswith("PBS_")]:
        monkeypatch.delenv(name)
    fill(redis_server.url)
    return redis_server.url


def completing(url: str, shell: str, monkeypatch: pytest.MonkeyPatch) -> Complete:
    completion._register_bash()
    found = get_completion_class(shell)
    assert found is not None
    shell_class: type[ShellComplete] = found

    def complete(line: str) -> list[str]:
        words = f"pbs-policy -c /dev/null --set redis_url={url} {line}"
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", "" if shell == "fish" and line.endswith(" ") else str(words.count(" ")))
        if shell == "fish" and not line.endswith(" "):
            monkeypatch.setenv("COMP_CWORD", line.split()[-1])
        each = shell_class(cli, {}, "pbs-policy", completion.VARIABLE)
        return [item.value for item in each.get_completions(*each.get_completion_args())]

    return complete


@pytest.fixture(params=SHELLS)
def complete(request: pytest.FixtureRequest, url: str, monkeypatch: pytest.MonkeyPatch) -> Complete:
    """What a shell suggests for a line that goes on behind `pbs-policy`, with that Redis."""
    return completing(url, request.param, monkeypatch)


@pytest.mark.parametrize(
    ("line", "suggested"),
    [
        ("check 192.0.2.", ["192.0.2.7", "192.0.2.8", "192.0.2.99"]),
        ("check 2001:", ["2001:db8::7"]),
        ("show ali", ["alice@example.com"]),
        ("show ALI", ["ALIce@example.com"]),
        ("show 2", ["2001:db8::7", "203.0.113.0/28"]),
        ("revoke bob@", ["bob@example.com"]),
        ("permit 20", ["2001:db8::7", "203.0.113.0/28"]),
        ("permit 192.0.2.1 --user c", ["carol@example.com"]),
        ("undeny ", ["192.0.2.99", "carol@example.com"]),
        ("config tt", ["ttl"]),
        ("config ttl sender_mat", ["sender_match"]),
        ("--set tt", ["ttl="]),
        ("--set ttl=", ["ttl=30m"]),
        ("--set require_tls=", ["require_tls=yes", "require_tls=no"]),
        ("--set never_record=", []),
        ("--set nothing=", []),
        ("--set ", [f"{name}=" for name in defaults()]),
        ("show *", []),
        ("show [a]", []),
        ("show a?", []),
        # What a shell would run, or is no user, is not among them.
        ("show ", ["192.0.2.7", "192.0.2.8", "198.51.100.1", "2001:db8::7", "203.0.113.0/28", "alice@example.com",
                   "bob@example.com"]),
        ("che", ["check"]),
        ("help unde", ["undeny"]),
        ("deny 192.0.2.99 ali", ["alice@example.com"]),
        ("completion f", ["fish"]),
    ],
)  # fmt: skip
def test_a_tab_suggests_what_there_is(complete: Complete, line: str, suggested: list[str]) -> None:
    assert complete(line) == suggested


def test_a_listener_of_the_settings_is_suggested(url: str) -> None:
    context = click.Context(cli)
    context.params = {"file": Path(os.devnull), "overrides": ("listen=inet:127.0.0.1:10041 unix:/run/policy",)}
    parameter = cli.params[0]
    assert completion.suggest_listener(context, parameter, "unix") == ["unix:/run/policy"]
    context.params["overrides"] = ("listen=nonsense",)
    assert completion.suggest_listener(context, parameter, "") == []


def test_at_most_200_are_suggested(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with connect(RedisUrl.parse(url), "", "") as redis:
        keys = Keys("pbs:")
        redis.mset({keys.login(f"10.0.{number // 250}.{number % 250}"): b"1 imap" for number in range(3000)})
    suggested = completing(url, "bash", monkeypatch)("check 10.0.")
    assert len(suggested) == completion.MOST
    assert all(each.startswith("10.0.") for each in suggested)


def test_another_database_a_password_and_a_user_are_those_of_the_settings(
    own_redis: Callable[..., PrivateRedis], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = own_redis("--user", "helper", "on", ">secret", "~*", "+@all")
    with connect(RedisUrl.parse(f"{server.url.removesuffix('/0')}/3"), "", "") as redis:
        write_login(table_on(redis, "[x]:"), "192.0.2.7", Record(1), 60)
    password = tmp_path / "password"
    password.write_text("secret\n")
    for words, suggested in [("", ["192.0.2.7"]), ("--set redis_user=nobody ", [])]:
        complete = completing(f"{server.url.removesuffix('/0')}/3", "bash", monkeypatch)
        settings = f"--set key_prefix=[x]: --set redis_user=helper --set redis_password_file={password} {words}"
        assert complete(f"{settings}check ") == suggested


def test_without_redis_or_with_wrong_settings_nothing_is_suggested_nor_said(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for url in (f"redis://127.0.0.1:{free_port()}", f"redis+sentinel://127.0.0.1:{free_port()}/mail", "nonsense"):
        assert completing(url, "bash", monkeypatch)("show ") == []
    assert capfd.readouterr() == ("", "")


def test_a_mute_redis_is_waited_for_a_fifth_of_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        complete = completing(f"redis://127.0.0.1:{mute.getsockname()[1]}", "bash", monkeypatch)
        began = time.monotonic()
        assert complete("show ") == []
        assert completion.SECONDS * 0.9 < time.monotonic() - began < 5


def test_a_name_server_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", lambda *_, **__: done.wait(60) and [])
        began = time.monotonic()
        assert completing("redis://redis.example.com", "bash", patch)("show ") == []
        assert time.monotonic() - began < 10
        reader = next(each for each in threading.enumerate() if each.daemon and each is not threading.main_thread())
        done.set()
        reader.join(10)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_for_that_shell_and_asks_for_its_completion(bare: Pbs, shell: str) -> None:
    result = bare("completion", shell)
    assert result.status == 0
    assert f"{completion.VARIABLE}={shell}_complete" in result.out
    assert "pbs-policy" in result.out
    assert bare("completion", "tcsh").status == os.EX_USAGE


@pytest.fixture
def bash(url: str, tmp_path: Path) -> str:
    """A bash; beside it the program, and `conf` with that Redis."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed: apt-get install bash")
    program = tmp_path / "pbs-policy"
    program.write_text(f'#!/bin/sh\nexec {" ".join(CLI)} "$@"\n')
    program.chmod(0o755)
    (tmp_path / "conf").write_text(f"redis_url = {url}\n")
    return bash


@pytest.mark.parametrize(
    ("line", "replies"),
    [
        ("check 192.0.2.", ["192.0.2.7", "192.0.2.8", "192.0.2.99"]),
        ("check 2001:d", ["db8::7"]),
        ("check 2001:db8::", ["7"]),
        ("revoke alice@", ["@example.com"]),
        ("--set tt", ["ttl="]),
        ("--set ttl=", ["30m"]),
        ("config services ttl", ["ttl"]),
        ("config services", ["services"]),
    ],
)
def test_bash_gets_what_follows_its_last_cut(bash: str, tmp_path: Path, line: str, replies: list[str]) -> None:
    script = (
        'source <("$1" completion bash); compopt() { :; }; COMP_LINE="pbs-policy $2"; COMP_POINT=${#COMP_LINE}\n'
        '_pbs_policy_completion "$1"; printf "%s\\n" "${COMPREPLY[@]}"; complete -p pbs-policy'
    )
    process = subprocess.run(
        [bash, "--norc", "-c", script, "bash", str(tmp_path / "pbs-policy"), f"-c {tmp_path}/conf {line}"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert process.stderr == ""
    *found, registered = process.stdout.splitlines()
    assert found == replies
    assert registered == "complete -o nosort -F _pbs_policy_completion pbs-policy"


def test_a_tab_at_a_prompt_of_bash_completes_the_line(bash: str, tmp_path: Path) -> None:
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TERM": "dumb", "PS1": "ready> "}
    try:
        terminal, slave = pty.openpty()
    except OSError:
        pytest.skip("no pseudo-terminal here: mount -t devpts devpts /dev/pts")
    with subprocess.Popen(
        [bash, "--norc", "--noprofile", "-i"], cwd=tmp_path, env=environment | {"INPUTRC": os.devnull},
        stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
    ) as process:  # fmt: skip
        os.close(slave)
        shown = ""

        def shows(text: str) -> bool:
            nonlocal shown
            if select.select([terminal], [], [], 0.05)[0]:
                shown += os.read(terminal, 4096).decode()
            return text in shown

        try:
            assert wait_until(lambda: shows("ready> "))
            os.write(terminal, b"source <(pbs-policy completion bash); echo sour''ced\n")
            assert wait_until(lambda: shows("sourced"))
            for typed, whole in [
                (b"pbs-policy -c conf revoke 2001:d\t", "revoke 2001:db8::7 "),
                (b"pbs-policy -c conf show bob@\t", "show bob@example.com "),
                (b"pbs-policy --set ttl\t", "--set ttl="),
            ]:
                shown = ""
                os.write(terminal, typed)
                assert wait_until(partial(shows, whole)), repr(shown)
                os.write(terminal, b"\x15")
        finally:
            process.kill()
            os.close(terminal)
