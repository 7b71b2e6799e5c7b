"""What recording a login costs: POP3 logins through private Dovecots that differ in nothing but the hook."""

from __future__ import annotations

import shutil
import subprocess
import time
from dataclasses import dataclass, field

from benchmarks.bench import Bench
from benchmarks.figures import Bar, Section, median, milliseconds, spread, table
from benchmarks.filling import LOGGED_IN
from benchmarks.processes import cpu_seconds
from benchmarks.reports import PrivateRecorder
from pbs_policy.demo.daemons import PrivateRedis
from pbs_policy.demo.dovecot import PrivateDovecot, dovecot_version, pop3_login
from pbs_policy.demo.ports import free_port
from pbs_policy.programs import find_program
from pbs_policy.shipped import shipped
from pbs_policy.store.connect import connect
from pbs_policy.store.redis_url import RedisUrl

NONE = "no hook"
NOOP = "a script that does nothing (dash)"
MINIMAL = "a minimal Python program: connects to Redis, no more"
SCRIPT = "pbs-postlogin, Redis by TCP"
SCRIPT_UNIX = "pbs-postlogin, Redis by unix socket"
PLUGIN = "Dovecot's last_login plugin"
REPORTS = "Dovecot's reports to pbs-policy record"

_USER = "nobody"  # who runs the scripts
_POST_LOGIN = """\
service pop3 {{
  executable = pop3 pop3-postlogin
}}
service pop3-postlogin {{
  executable = script-login {script} pop3
  user = {user}
  unix_listener pop3-postlogin {{
  }}
}}
"""
# As little as such a program can do and be one, in the way of the shipped script: no import that reads a file.
_MINIMAL = """\
{interpreter}
import posix, sys, _socket
connection = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
connection.connect(("127.0.0.1", {port}))
connection.close()
posix.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass
class Site:
    """One Dovecot, and what its logins took; `cpu` of all its processes for one login."""

    name: str
    dovecot: PrivateDovecot
    times: list[float] = field(default_factory=list)
    cpu: float = 0.0


def run(bench: Bench) -> Section:
    """The cell."""
    bench.need("redis", "dovecot")
    # The scripts run as another user, who has to get at them and at the socket.
    redis = bench.redis("redis", "--unixsocketperm", "777")
    redis.directory.chmod(0o755)
    settings = {"redis_url": redis.url, "renew_sessions": "0"}
    recorder = bench.stack.enter_context(PrivateRecorder(bench.directory / "recorder", settings, free_port()))
    hooks = _hooks(bench, redis, recorder.port)
    sites = [Site(name, _dovecot(bench, number, hook)) for number, (name, hook) in enumerate(hooks.items())]
    _check_recording(redis, sites)
    count = bench.pick(200, 20)
    bench.say(f"logins: {count} rounds of {len(sites)}")
    before = [cpu_seconds(site.dovecot.pid) for site in sites]
    for number in range(count):
        # Whoever follows a dear login finds the cores warm: the order moves on by one each round.
        for site in sites[number % len(sites) :] + sites[: number % len(sites)]:
            site.times.append(_log_in(site.dovecot, number))
    time.sleep(0.5)  # for the last sessions to end and be counted
    for site, earlier in zip(sites, before, strict=True):
        site.cpu = (cpu_seconds(site.dovecot.pid) - earlier) / count
    return _section(sites, count)


def _section(sites: list[Site], count: int) -> Section:
    known = {site.name: site for site in sites}
    base, noop = known[NONE], known[NOOP]

    def added(site: Site) -> float:
        return median(site.times) - median(base.times)

    def paired(site: Site) -> float:
        """The median of what it added in each round."""
        return median(this - that for this, that in zip(site.times, base.times, strict=True))

    rows = []
    for site in sites:
        figures = [median(site.times), added(site), paired(site), site.cpu, site.cpu - base.cpu]
        relative = [f"{added(site) / added(noop):.2f}", f"{median(site.times) / median(noop.times):.2f}"]
        rows.append([site.name, *map(milliseconds, figures), *(relative if site is not base else ["", ""])])
    head = ["at login", "median", "added", "by rounds", "CPU", "CPU added", "added, of no-op's", "whole, of no-op's"]
    version = ".".join(map(str, dovecot_version()))
    section = Section(
        "Cost of a login",
        [
            f"POP3 through a private Dovecot {version}: connect, log in, QUIT; {count} logins each, in turn, in ms. "
            '"Added" is over no hook: the difference of the medians, then the median of the differences within each '
            "round. CPU is that of all of Dovecot's processes for one login, without Redis and the recorder.",
            table(head, rows),
            spread("the logins without a hook", base.times),
        ],
    )
    for this, that, wanted in (
        (SCRIPT, NOOP, 2.6), (SCRIPT_UNIX, NOOP, 2.6), (SCRIPT, MINIMAL, 1.3), (SCRIPT_UNIX, MINIMAL, 1.3),
        (PLUGIN, NOOP, 0.2), (REPORTS, NOOP, 0.15),
    ):  # fmt: skip
        found = added(known[this]) / added(known[that])
        by_rounds = paired(known[this]) / paired(known[that])
        what = f"added by {this}, times what {that} adds"
        section.bars.append(Bar(what, f"at most {wanted}", f"{found:.2f} ({by_rounds:.2f})", found <= wanted))
    return section


def _hooks(bench: Bench, redis: PrivateRedis, reports_port: int) -> dict[str, str]:
    """The configuration of each way, by its name."""
    folder = bench.directory / "scripts"
    folder.mkdir()
    for file in shipped("dovecot-hooks").glob("pbs[-_]postlogin*"):
        shutil.copy(file, folder)
    script = folder / "pbs-postlogin"
    interpreter = script.read_text().splitlines()[0]
    # As it is to be installed: what it imports is compiled beforehand, for the user who runs it may not write there.
    python = interpreter.removeprefix("#!").split()[0]
    subprocess.run([python, "-m", "compileall", "-q", folder], check=True, timeout=60)
    texts = {
        NOOP: f'#!{find_program("dash", "sh")}\nshift\nexec "$@"\n',
        MINIMAL: _MINIMAL.format(interpreter=interpreter, port=redis.port),
    }
    hooks = {NONE: ""}
    for name, text in texts.items():
        path = folder / ("noop" if name == NOOP else "minimal")
        path.write_text(text)
        path.chmod(0o755)
        hooks[name] = _POST_LOGIN.format(script=path, user=_USER)
    for name, url in ((SCRIPT, redis.url), (SCRIPT_UNIX, f"unix://{redis.socket_path}")):
        file = folder / ("tcp.conf" if name == SCRIPT else "unix.conf")
        file.write_text(f"redis_url = {url}\nttl = 30m\n")
        hooks[name] = _POST_LOGIN.format(script=f"{script} -c {file}", user=_USER)
    redis_port = "redis_port = {}" if dovecot_version() >= (2, 4) else "port={}"
    hooks[PLUGIN] = _example("last-login", redis_port, 6379, redis.port)
    hooks[REPORTS] = _example("report", "127.0.0.1:{}", 10041, reports_port)
    return hooks


def _example(name: str, text: str, theirs: int, ours: int) -> str:
    """The shipped configuration for this Dovecot, with a port of ours."""
    example = shipped(f"dovecot-hooks/{name}-{'2.3' if dovecot_version() < (2, 4) else '2.4'}.conf").read_text()
    if text.format(theirs) not in example:
        raise ValueError(f"the example for {name} no longer says {text.format(theirs)!r}")
    return example.replace(text.format(theirs), text.format(ours))


def _dovecot(bench: Bench, number: int, hook: str) -> PrivateDovecot:
    return bench.stack.enter_context(PrivateDovecot(bench.directory / f"dovecot-{number}", hook_config=hook))


def _check_recording(redis: PrivateRedis, sites: list[Site]) -> None:
    """A way that records nothing is cheap: see that those that should do."""
    with connect(RedisUrl.parse(redis.url), "", "") as client:
        for site in sites:
            client.ask([(b"FLUSHALL",)])
            for number in range(3):  # also what the first logins pay for everybody: processes that stay
                _log_in(site.dovecot, number)
            deadline = time.monotonic() + 2  # last_login and reports write after the login has gone on
            while client.ask([(b"DBSIZE",)]) == [0] and site.name not in (NONE, NOOP, MINIMAL):
                if time.monotonic() > deadline:
                    raise OSError(f"{site.name}: nothing was recorded; {site.dovecot.log_text()[-500:]}")
                time.sleep(0.02)


def _log_in(dovecot: PrivateDovecot, number: int) -> float:
    """Seconds of one login, from connecting to the answer to QUIT."""
    address = LOGGED_IN.rsplit(".", 1)[0] + f".{number % 254 + 1}"
    start = time.perf_counter()
    attempt = pop3_login(dovecot.pop3_port, address)
    seconds = time.perf_counter() - start
    if not attempt.succeeded:
        raise OSError("a login failed: " + " / ".join(attempt.transcript))
    return seconds
