"""What Postfix says and reads, and nothing of ours: the policy delegation protocol, listeners as it writes them, its
log, and what postconf prints.
"""
