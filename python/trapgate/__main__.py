"""`python -m trapgate`: the command."""

from trapgate.cli import main

main()
