"""The Dovecot side as a daemon (`pbs-policy record`): logins that Dovecot reports by itself, and sessions that stay
connected, written to the login table as the post-login script writes logins. It decides nothing about relaying. For
reports it needs no right but the script's, to write logins; for sessions it reads logins and denies as well. The
policy service never imports it.
"""
