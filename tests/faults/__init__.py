"""Faults, one after the other, and what a login, a relay attempt and inbound mail see of each, through a real
Postfix, Dovecot and Redis. `make test` runs each for a moment and compares with docs/faults.md; `make faults` runs
each for longer, counts, and writes that page.
"""
