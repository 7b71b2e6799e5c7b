"""Metrics and health: how workers add up, what HTTP answers, what Prometheus, Grafana and promtool make of it."""
