"""`python -m medssl` is `medssl`."""

from medssl.cli import main

main()
