"""`python -m giraffe_cli` is `giraffe`."""

from giraffe_cli.cli.app import main

main()
