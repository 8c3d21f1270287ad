"""Run the command `bigcircuit` as `python -m bigcircuit`."""

from bigcircuit.cli import main

main()
