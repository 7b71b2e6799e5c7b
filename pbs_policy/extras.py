"""What needs packages that not everybody installs, and what to say where they are missing."""

from __future__ import annotations

from importlib import import_module


def why_no_metrics() -> str:
    """Why nothing answers at `metrics_listen`, and what to do; "" where nothing is missing. It imports the packages:
    0.4 s, to be spent only where `metrics_listen` is set."""
    try:
        for package in ("aiohttp", "prometheus_client"):
            import_module(package)
    except ImportError as missing:
        return (
            f"metrics_listen: nothing answers there, a Python package is missing ({missing}): "
            "pip install 'pbs-policy[metrics]', or apt-get install python3-aiohttp python3-prometheus-client"
        )
    return ""
