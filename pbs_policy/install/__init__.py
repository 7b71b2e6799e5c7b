"""Putting the hook into Dovecot and the policy service into Postfix, shown first, and taken out again to the byte."""
