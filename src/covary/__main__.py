"""`python -m covary` is the command line."""

from covary.cli.main import main

main()
