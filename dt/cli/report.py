"""`dt report`: runs as one HTML file. No torch."""

from dt.cli.options import Report
from dt.sharing.html_report.page import write_report
from transformer.errors import ConfigError
from transformer.runs.console import show
from transformer.runs.outputs import check_place


def run(options: Report) -> None:
    """Write the file."""
    if not options.runs:
        raise ConfigError("no run named: dt report RUN [RUN ...]")
    check_place(options.output, picture=False)
    size = write_report(options.runs, options.output)
    show(f"{options.output}  {size / 1e6:.2f} MB; open it in a browser")
