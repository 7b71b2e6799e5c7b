"""The recorder's metrics, where `recorder_metrics_listen` is set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from pbs_policy.log import Log
from pbs_policy.pages import DaemonNumbers
from pbs_policy.recorder.reports import ReportServer
from pbs_policy.recorder.sessions import SessionKeeper
from pbs_policy.recorder.writer import LoginWriter
from pbs_policy.store.lookups import Lookups
from pbs_policy.table.records import REPORT, SESSION, WAYS

_OUTCOMES = ("recorded", "left_out", "no_success", "other_service", "allow", "refused")


class RecorderNumbers(DaemonNumbers):
    """What `writer`, `reports` and `keeper` have counted, read when somebody asks."""

    def __init__(
        self, writer: LoginWriter, reports: ReportServer | None, keeper: SessionKeeper, lookups: Lookups, log: Log
    ) -> None:
        super().__init__(lookups, log)
        self._writer = writer
        self._reports = reports
        self._keeper = keeper

    def collect(self) -> Iterator[Metric]:
        """Every metric."""
        writer, reports, keeper = self._writer, self._reports, self._keeper
        recorded = Counter({REPORT: writer.recorded, SESSION: keeper.recorded})
        yield _counted("logins_recorded", "Logins that Redis has taken.", "way", WAYS, recorded)
        left_out = Counter({REPORT: writer.left_out})
        yield _counted("logins_left_out", "Logins that must not be recorded.", "way", WAYS, left_out)
        if reports is not None:
            yield _counted("reports", "What Dovecot has posted.", "outcome", _OUTCOMES, reports.counts)
        yield CounterMetricFamily("pbs_policy_logins_lost", "Logins that Redis did not take in time.", writer.lost)
        yield GaugeMetricFamily("pbs_policy_logins_waiting", "Logins that wait for Redis.", writer.waiting)
        yield GaugeMetricFamily("pbs_policy_sessions", "Logins of users who are connected.", keeper.connected)
        yield GaugeMetricFamily("pbs_policy_sessions_renewed", "Of these, those renewed last time.", keeper.renewed)
        yield from super().collect()


def _counted(name: str, meaning: str, label: str, known: tuple[str, ...], counts: Counter[str]) -> Metric:
    """Each of the `known` is there from the start, so that the first one is an increase."""
    family = CounterMetricFamily(f"pbs_policy_{name}", meaning, labels=[label])
    for what, number in sorted((dict.fromkeys(known, 0) | counts).items()):
        family.add_metric([what], number)
    return family
