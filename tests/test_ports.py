"""Ports for private daemons: one that is handed out belongs to who asked, whether or not it listens yet."""

from __future__ import annotations

from pbs_policy.demo.ports import PORT_RANGE, free_port


def test_no_port_is_handed_out_twice_before_its_daemon_listens() -> None:
    ports = [free_port() for _ in range(1000)]
    assert len(set(ports)) == len(ports)
    assert set(ports) <= set(PORT_RANGE)
