"""How fast, how large and how right pbs-policy is on this machine: `python -m benchmarks`, see README.md."""
