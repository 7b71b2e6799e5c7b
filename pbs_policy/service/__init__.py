"""The running service. `serve` is its inventory, `server` and `connection` are the policy server in it; `sockets`,
`passed` and `notify` are where it meets the system.
"""
