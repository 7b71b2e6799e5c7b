"""Writing what a file of JSON lines says (`transfer`) into the login table, beside what stands there.

An entry of the table that lasts longer than the file's is left as it is, or overwritten where that is asked for. The
keys that the logins from one address share name the last of them, as after the post-login script: an imported login
takes them from an earlier one, never from a later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from pbs_policy.address import Target
from pbs_policy.store.question import Command
from pbs_policy.table.keys import NO_END
from pbs_policy.table.login_table import LoginTable, set_command
from pbs_policy.table.records import Permit, Record, parse_record, serialise_record
from pbs_policy.table.transfer import Item

BATCH = 500
"""Items that are compared with the table and written at a time."""

_SAME = 0.05  # seconds by which an end differs that was read a moment later


class _State(NamedTuple):
    """What stands under a key: whose login, where it is one; when it ends, 0 where nothing is there that counts."""

    record: Record | None
    ends_at: float
    is_new: bool = False


class Import:
    """Counts what becomes of the items in `counts`: `logins`, `permits`, `denies` written, and `ended`, `kept`
    (the table's lasts longer), `excluded` (never permitted here). With `only_looks` nothing is written. `skipped` is
    told the address of each that is excluded."""

    def __init__(
        self,
        table: LoginTable,
        *,
        with_domain: bool,
        replaces: bool = False,
        only_looks: bool = False,
        skipped: Callable[[Target], object] = lambda _target: None,
    ) -> None:
        self._table = table
        self._with_domain = with_domain
        self._replaces = replaces
        self._only_looks = only_looks
        self._skipped = skipped
        self.counts: Counter[str] = Counter()

    def add(self, items: Iterable[Item]) -> None:
        """Take in some items, BATCH or so. Raises StoreUnavailable: then those before them are written."""
        now = self._table.now()
        going: list[tuple[Item, list[bytes]]] = []
        for item in items:
            if item.ends_at <= now:
                self.counts["ended"] += 1
            elif item.target and item.target.excluded and not isinstance(item.what, str):
                self.counts["excluded"] += 1
                self._skipped(item.target)
            else:
                going.append((item, self._keys(item)))
        states = self._read({key for _, keys in going for key in keys})
        chosen: dict[bytes, Item] = {}
        for item, keys in going:
            *shared, main = keys
            if not self._gives_way(states[main], item):
                self.counts["kept"] += 1
                continue
            self.counts[item.kind] += 1
            for key in (main, *(key for key in shared if self._gives_way(states[key], item))):
                chosen[key] = item
                record = item.what if isinstance(item.what, Record) else None
                states[key] = _State(record, item.ends_at, states[key].is_new)
        if not self._only_looks:
            self._write(chosen, states)

    def _keys(self, item: Item) -> list[bytes]:
        """The keys of an item; the last one is its own, those before are shared with other logins."""
        keys = self._table.keys
        if isinstance(item.what, Permit):
            return [keys.permit(item.text)]
        if isinstance(item.what, str):
            if item.denied_user:
                return [keys.deny_user(self._table.name(item.denied_user))]
            return [(keys.auto_deny if item.is_automatic else keys.deny)(item.text)]
        address, *names = self._table.login_keys(item.text, item.what.user, with_domain=self._with_domain)
        return [address, *names[1:], *names[:1]]

    def _read(self, keys: set[bytes]) -> dict[bytes, _State]:
        if not keys:
            return {}
        listed = list(keys)
        values, left = self._table.read(listed, listed)
        now = self._table.now()
        states = {}
        for key, value, milliseconds in zip(listed, values, left, strict=True):
            if value is None:
                states[key] = _State(None, 0, is_new=True)
            elif milliseconds == NO_END:
                # A deny without an end holds for ever; a login or permit without one does not count.
                is_deny = not key.startswith((self._table.keys.login_prefix, self._table.keys.permit_prefix))
                states[key] = _State(None, float("inf") if is_deny else 0)
            else:
                record = parse_record(value) if key.startswith(self._table.keys.login_prefix) else None
                states[key] = _State(record, now + max(0, milliseconds) / 1000)
        return states

    def _gives_way(self, state: _State, item: Item) -> bool:
        if not state.ends_at:
            return True
        if isinstance(item.what, Record) and state.record:
            before, after = state.record, item.what
            if self._table.name(before.user) != self._table.name(after.user):
                return (before.login_at, state.ends_at) < (after.login_at, item.ends_at)
        return self._replaces or state.ends_at < item.ends_at - _SAME

    def _write(self, chosen: dict[bytes, Item], states: dict[bytes, _State]) -> None:
        table, replaces = self._table, self._replaces
        commands: list[Command] = []
        now = table.now()
        for key, item in chosen.items():
            what, ttl = item.what, item.ends_at - now
            if ttl <= 0:
                continue
            if isinstance(what, str):  # by itself: never in place of one that lasts longer, whenever that came
                if item.denied_user:
                    table.deny_user(table.name(item.denied_user), what, ttl, replaces=replaces)
                else:
                    table.deny(item.target, what, ttl, replaces=replaces, is_automatic=item.is_automatic)
                continue
            if isinstance(what, Record):
                command = set_command(key, serialise_record(what), ttl)
            else:
                assert item.target  # noqa: S101 - `parse_line` gives every permit one
                command = table.permitting(item.target, what, ttl)
            # Where nothing was, something may be by now: a new login is not to be overwritten.
            commands.append((*command, b"NX") if states[key].is_new and not replaces else command)
        if commands:
            table.write(commands)
