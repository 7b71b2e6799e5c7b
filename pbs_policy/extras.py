"""What needs packages that not everybody installs, and what to say where they are missing."""

from __future__ import annotations

from importlib import import_module


def why_no_metrics(setting: str = "metrics_listen") -> str:
    """Why nothing answers where `setting` says, and what to do; "" where nothing is missing. It imports the packages:
    0.4 s, to be spent only where it is set."""
    return _why_not(f"{setting}: nothing answers there", "metrics", "aiohttp", "prometheus_client")


def why_no_reports() -> str:
    """The same of `pbs-policy record`."""
    return _why_not("record: Dovecot's reports cannot be heard", "recorder", "aiohttp")


def _why_not(what: str, extra: str, *packages: str) -> str:
    try:
        for package in packages:
            import_module(package)
    except ImportError as missing:
        debian = " ".join("python3-" + package.replace("_", "-") for package in packages)
        return (
            f"{what}, a Python package is missing ({missing}): "
            f"pip install 'pbs-policy[{extra}]', or apt-get install {debian}"
        )
    return ""
