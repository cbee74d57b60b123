"""`python -m skysense_cli` is `skysense`."""

from skysense_cli.app import main

main()
