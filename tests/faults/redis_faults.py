"""Faults of Redis, and of the way to it."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

from redis import Redis, RedisError
from redis.exceptions import ResponseError

from pbs_policy.demo.daemons import PrivateRedis, wait_until
from tests.faults.clients import fill
from tests.faults.fault import Again, Marks, Scale, fault
from tests.faults.proxy import Proxy
from tests.faults.stage import Stage, action, mount_tmpfs, unmount
from tests.stores import pause, resume
from tests.topology.servers import Sentinel

AT_ONCE = ("--repl-diskless-sync-delay", "0")
"""A master that does not wait 5 s for further replicas."""


def lacks_tmpfs() -> str:
    """Whether no file system may be mounted, which takes root, and in a container CAP_SYS_ADMIN."""
    with tempfile.TemporaryDirectory() as place:
        if said := mount_tmpfs(place, "1m"):
            return f"no tmpfs can be mounted here: {said}"
        unmount(place)
    return ""


@fault("Redis is killed", "SIGKILL; started again, empty, at the end")
def killed(stage: Stage, _: Scale, marks: Marks) -> Iterator[Again | None]:
    stage.kill(stage.redis)
    yield None
    stage.redis.start()
    marks.at.append(time.monotonic())
    stage.fill()


@fault("Redis is stopped", "SIGSTOP: it accepts connections, and never answers; SIGCONT at the end")
def stopped(stage: Stage, _: Scale, marks: Marks) -> Iterator[Again | None]:
    pause(stage.redis)
    yield None
    resume(stage.redis)
    marks.at.append(time.monotonic())


@fault("Redis is restarted, empty", "SIGKILL and a start, and nobody logs in again before the end")
def emptied(stage: Stage, _: Scale, marks: Marks) -> Iterator[Again | None]:
    stage.kill(stage.redis)
    stage.redis.start()
    # The service is back when strangers are refused for good, no longer deferred.
    assert wait_until(lambda: action(stage) == "DUNNO"), f"it is not empty: {action(stage)}"
    yield None
    stage.fill()
    marks.at.append(time.monotonic())


@fault("Redis is out of memory", "`maxmemory` is reached, `maxmemory-policy noeviction`")
def out_of_memory(stage: Stage, _: Scale, __: Marks) -> Iterator[Again | None]:
    with stage.admin() as redis:
        redis.config_set("maxmemory-policy", "noeviction")
        redis.config_set("maxmemory", 1)
        yield None
        redis.config_set("maxmemory", 0)


@fault("Redis is a read-only replica", "`REPLICAOF` another, which is then stopped as well")
def replica(stage: Stage, _: Scale, marks: Marks) -> Iterator[Again | None]:
    with PrivateRedis(stage.directory / "master", port=None, arguments=AT_ONCE) as master, stage.admin() as redis:
        with Redis(port=master.port) as there:
            fill(there)
        redis.replicaof("127.0.0.1", master.port)
        assert wait_until(lambda: redis.info("replication").get("master_link_status") == "up")
        assert wait_until(lambda: redis.dbsize() > 0)
        pause(master)
        # The service finds out within some seconds that this is no master any more.
        assert wait_until(lambda: action(stage).startswith("DEFER")), f"a replica is asked: {action(stage)}"
        try:
            yield None
        finally:
            redis.replicaof("NO", "ONE")
            marks.at.append(time.monotonic())
            stage.fill()


@fault("Redis wants another password", "`requirepass` is changed, and every connection ended")
def wrong_password(stage: Stage, _: Scale, marks: Marks) -> Iterator[Again | None]:
    with stage.admin() as redis:
        redis.config_set("requirepass", "another one")
        redis.client_kill_filter(_type="normal", skipme=True)
        yield None
        redis.config_set("requirepass", "")
        marks.at.append(time.monotonic())


@fault("Redis' disk is full: no snapshot", "a failed `BGSAVE` with `stop-writes-on-bgsave-error yes`", lacks_tmpfs)
def no_snapshot(stage: Stage, _: Scale, __: Marks) -> Iterator[Again | None]:
    with stage.admin() as redis:
        redis.config_set("save", "3600 1")
        ballast = _fill_disk(stage)
        with suppress(ResponseError):
            redis.bgsave()
        assert wait_until(lambda: redis.info("persistence")["rdb_last_bgsave_status"] == "err"), "it could be saved"
        yield None
        ballast.unlink()
        redis.bgsave()
        assert wait_until(lambda: redis.info("persistence")["rdb_last_bgsave_status"] == "ok")
        redis.config_set("save", "")
    (stage.disk / "dump.rdb").unlink()  # else the next one to be killed does not come back empty


@fault("Redis' disk is full: no append-only file", "writes to the AOF fail, `appendfsync everysec`", lacks_tmpfs)
def no_append(stage: Stage, _: Scale, __: Marks) -> Iterator[Again | None]:
    with stage.admin() as redis:
        redis.config_set("appendonly", "yes")
        assert wait_until(lambda: not redis.info("persistence")["aof_rewrite_in_progress"])
        ballast = _fill_disk(stage)

        def is_refused() -> bool:
            with suppress(RedisError):
                redis.set("filler", "x" * 4_096, ex=60)
                return False
            return True

        assert wait_until(is_refused), "it goes on writing"
        yield None
        ballast.unlink()
        assert wait_until(lambda: not is_refused())
        redis.config_set("appendonly", "no")
    shutil.rmtree(stage.disk / "appendonlydir", ignore_errors=True)


def _fill_disk(stage: Stage) -> Path:
    ballast = stage.disk / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4_096)
    return ballast


@fault("Redis' master dies, Sentinel names another", "SIGKILL for the master, one Sentinel and a replica")
def failed_over(stage: Stage, _: Scale, marks: Marks) -> Iterator[Again | None]:
    with ExitStack() as stack:
        master = stack.enter_context(PrivateRedis(stage.directory / "m1", port=None, arguments=AT_ONCE))
        with Redis(port=master.port) as there:
            fill(there)
        replica_of = ("--replicaof", "127.0.0.1", str(master.port))
        second = stack.enter_context(PrivateRedis(stage.directory / "m2", port=None, arguments=replica_of))
        sentinel = stack.enter_context(Sentinel(stage.directory / "sentinel", master.port, ""))
        with sentinel.open() as client:
            client.execute_command("SENTINEL", "SET", "mymaster", "quorum", "1")  # it may decide alone
            sentinel.be_quick()
            assert wait_until(lambda: [each["master-link-status"] for each in _replicas(client)] == ["ok"])
        url = f"redis+sentinel://127.0.0.1:{sentinel.port}/mymaster"
        stack.enter_context(stage.other_service(redis_url=url))
        assert wait_until(lambda: action(stage) == "OK"), "not before the fault"
        stage.kill(master)

        def see_election() -> bool:
            if not marks.at and sentinel.names()[1] == second.port:
                marks.at.append(time.monotonic())
            return bool(marks.at)

        yield Again(see_election, 0.01)
        assert wait_until(see_election), "nobody was elected"


def _replicas(sentinel: Redis) -> list[dict[str, str]]:
    known: list[dict[str, str]] = sentinel.sentinel_slaves("mymaster")
    return known


@fault("the network to Redis cuts replies short", "a proxy in between closes in the middle of a reply, every 0.2 s")
def cut_replies(stage: Stage, _: Scale, __: Marks) -> Iterator[Again | None]:
    with Proxy(stage.redis.port) as proxy, stage.other_service(redis_url=proxy.url):
        assert wait_until(lambda: action(stage) == "OK")
        yield Again(proxy.cut_next_reply, 0.2)


@fault("the network to Redis falls silent", "a proxy in between passes on half a reply, and nothing after it")
def silent_network(stage: Stage, _: Scale, marks: Marks) -> Iterator[Again | None]:
    with Proxy(stage.redis.port) as proxy, stage.other_service(redis_url=proxy.url):
        assert wait_until(lambda: action(stage) == "OK")
        proxy.fall_silent()
        yield None
        proxy.speak_again()
        marks.at.append(time.monotonic())
        assert wait_until(lambda: action(stage) == "OK")
