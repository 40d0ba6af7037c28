"""`python -m prunekit` is the command line."""

from prunekit.cli.app import main

main()
