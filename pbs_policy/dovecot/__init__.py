"""Dovecot as the tools see it: its configuration, what runs at a login, its last_login plugin."""
