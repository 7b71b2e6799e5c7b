"""Metrics and health over HTTP, where `metrics_listen` is set; without it nothing of this package is loaded.

`numbers` takes what the service counts anyway, `exposition` makes Prometheus' text of it,
`http` answers, and `exporter` puts it all together. No label holds an address or a user.
"""


def lack() -> str:
    """Why nothing answers at `metrics_listen`, and what to do: a package that is not installed. "" where all are."""
    try:
        import prometheus_client  # noqa: F401
    except ImportError as missing:
        return (
            "metrics_listen: nothing answers there, the Python package prometheus-client is needed for it "
            f"({missing}): pip install 'pbs-policy[metrics]', or apt-get install python3-prometheus-client"
        )
    return ""
