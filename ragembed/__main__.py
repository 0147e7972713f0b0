"""`python -m ragembed` is the command line."""

from ragembed.cli.main import main

main()
