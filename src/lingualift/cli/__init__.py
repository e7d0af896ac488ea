"""The command line. Each command reads its options, calls one function, shows what came out and what to do next."""

from lingualift.cli import experiments, training, rows, merging, listing  # noqa: F401, I001  in the order of --help
from lingualift.cli.app import app, main

__all__ = ["app", "main"]
