"""`python -m giverny`, and what torchrun starts."""

from giverny.cli import main

main()
