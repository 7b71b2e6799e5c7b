"""Metrics and health: what HTTP answers, what Prometheus, Grafana and promtool make of it."""
