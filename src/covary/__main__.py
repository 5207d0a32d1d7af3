"""`python -m covary` is the command line."""

from covary.cli import main

main()
