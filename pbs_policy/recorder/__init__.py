"""The Dovecot side as a daemon (`pbs-policy record`): logins that Dovecot reports by itself, written to the login
table as the post-login script writes them. It decides nothing about relaying, and needs no right but the script's: to
write logins. The policy service never imports it.
"""
