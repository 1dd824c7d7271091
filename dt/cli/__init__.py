"""The command line: `dt train` and what is done with runs."""

from dt.cli.program import main as main
