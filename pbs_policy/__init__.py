"""POP-before-SMTP for Postfix and Dovecot.

A reader's order: `protocol` (what Postfix asks), `address` (who asks), `table` (what a login leaves in Redis),
`policy` (the decision), `lookups` and `server` (the policy service), `settings`, `cli`.
"""

__version__ = "0.1.0"
