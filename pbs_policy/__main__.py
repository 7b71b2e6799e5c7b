"""`python -m pbs_policy`: the command line where its script is not on PATH."""

from pbs_policy.cli import main

main()
