"""`python -m bigcircuit` is the `bigcircuit` command."""

from bigcircuit.cli import main

main()
