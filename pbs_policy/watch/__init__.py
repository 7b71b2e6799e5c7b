"""`pbs-policy watch`: what is known (`state`), where it comes from (`source`), how it is drawn (`screen`), the
terminal it is drawn on (`terminal`), and what holds them together (`live`). Nothing here is part of the service."""
