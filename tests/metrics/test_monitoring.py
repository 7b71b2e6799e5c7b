"""docs/monitoring/: rules and dashboard are what promtool accepts, and name all that the service exports, no more."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from pbs_policy.log import Log
from pbs_policy.metrics import Numbers, Waits

DOCS = Path(__file__).parents[2] / "docs"
MONITORING = DOCS / "monitoring"
RULES = MONITORING / "alerts.yml"
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "grafana-dashboard.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]

_SUFFIXES = ("_bucket", "_count", "_sum")


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, cwd=MONITORING)


def exported() -> str:
    lookups = SimpleNamespace(connections=1, in_flight=0, circuit_is_open=False)
    server: Any = SimpleNamespace(counts={}, connections=set(), lookups=lookups, log=Log())
    numbers = Numbers(server, lambda: 0, Waits())
    numbers.redis_sets = 1
    registry = CollectorRegistry(auto_describe=False)
    registry.register(numbers)
    return generate_latest(registry).decode()


def exported_names() -> set[str]:
    """Each metric, as it is written in a query; a histogram's by its common name."""
    names = set()
    for family in text_string_to_metric_families(exported()):
        names |= {re.sub("|".join(f"{each}$" for each in _SUFFIXES), "", sample.name) for sample in family.samples}
    return names


def named_in(text: str) -> set[str]:
    found = set(re.findall(r"\bpbs_policy_\w+", text))
    return {re.sub("|".join(f"{each}$" for each in _SUFFIXES), "", name) for name in found}


def queries() -> list[str]:
    return [target["expr"] for panel in PANELS for target in panel["targets"]]


def test_promtool_finds_nothing_wrong_with_the_metrics() -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=exported(), capture_output=True, text=True, timeout=60
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_promtool_reads_the_rules() -> None:
    checked = promtool("check", "rules", RULES)
    assert checked.returncode == 0, checked.stderr
    assert "SUCCESS" in checked.stdout


def test_each_alert_is_raised_when_it_should_be() -> None:
    checked = promtool("test", "rules", "alerts_test.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    alerts = set(re.findall(r"alert: (\w+)", RULES.read_text()))
    raised = re.findall(r"alertname: (\w+)\n +exp_alerts:\n +- ", (MONITORING / "alerts_test.yml").read_text())
    assert set(raised) == alerts, "each alert has a scenario in which it is raised"


def test_the_queries_of_the_dashboard_can_be_parsed(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": query.replace("$__rate_interval", "5m")}
        for number, query in enumerate(queries())
    ]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))  # JSON is YAML
    checked = promtool("check", "rules", file)
    assert checked.returncode == 0, checked.stderr
    assert f"{len(rules)} rules found" in checked.stdout


def test_the_dashboard_names_what_is_exported_and_all_of_it() -> None:
    assert named_in(" ".join(queries())) == exported_names()


def test_the_alerts_name_only_what_is_exported() -> None:
    named = named_in(" ".join(re.findall(r"expr: (?:>-\n)?((?:.+\n)+?) +(?:for|labels):", RULES.read_text())))
    assert len(named) > 5
    assert named <= exported_names()


def test_the_page_on_monitoring_names_what_is_exported_and_all_of_it() -> None:
    page = (DOCS / "howto" / "monitoring.md").read_text()
    assert set(re.findall(r"^\| `(pbs_policy_\w+)` \|", page, re.MULTILINE)) == exported_names()


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: str(panel["title"]))
def test_each_panel_has_a_unit_a_sentence_and_a_place_of_its_own(panel: dict[str, Any]) -> None:
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["description"].endswith(".")
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert [each["id"] for each in PANELS].count(panel["id"]) == 1

    def cells(each: dict[str, Any]) -> set[tuple[int, int]]:
        at = each["gridPos"]
        assert at["x"] + at["w"] <= 24
        return {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}

    assert all(each is panel or cells(each).isdisjoint(cells(panel)) for each in PANELS)


def test_the_variables_of_the_dashboard_are_those_that_its_queries_use() -> None:
    defined = {each["name"] for each in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(PANELS))) - {"__rate_interval"}
    assert used == defined
