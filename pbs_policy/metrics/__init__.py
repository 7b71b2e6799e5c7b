"""Metrics and health over HTTP, where `metrics_listen` is set; without it nothing of this package is loaded.

`numbers` takes what the service counts anyway, `exposition` makes Prometheus' text of it,
`http` answers, and `exporter` puts it all together. No label holds an address or a user.
"""
