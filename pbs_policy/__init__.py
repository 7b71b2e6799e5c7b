"""POP-before-SMTP for Postfix and Dovecot.

A reader's order: `postfix.protocol` (what Postfix asks), `address` (who asks), `table` (what a login leaves),
`decision` (may they relay), `service` and `store.lookups` (the policy service), `settings`, `cli`.
"""

__version__ = "0.1.0"
