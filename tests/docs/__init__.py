"""The documentation against the program and the real daemons: what readers copy runs, what they look up is there."""
