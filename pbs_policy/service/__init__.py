"""The running service. `serve` is its inventory, `process` one process that answers, `server` and `connection` are
the policy server in it, `crew` and `workers` several of them; `sockets`, `passed`, `handover` and `notify` are where
it meets the system.
"""
