"""`streamavg demo`: trains checkpoints that average well and others that do not, and shows both."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from streamavg.cli import common_options
from streamavg.cli.interrupts import raise_remembered
from streamavg.errors import StreamAvgError

if TYPE_CHECKING:
    from streamavg.evaluation.demo import Outcome, Step


@click.command()
@click.argument(
    "folder", metavar="[DIR]", default="streamavg-demo", type=click.Path(path_type=Path)
)
@click.option("--files-only", is_flag=True, help="Write the files, and show nothing.")
@common_options.debug
def command(folder: Path, files_only: bool, debug: bool) -> None:
    """Train small networks on scikit-learn's digits for a minute and average their checkpoints.

    Writes into DIR (streamavg-demo by default, which must be empty or not there) a set of
    checkpoints whose average is better than the best of them, and one whose average is ruined. Then
    check, compare, merge and evaluate run on both, as you would type them.
    """
    from streamavg.evaluation import demo

    def tell(what: str) -> None:
        raise_remembered()
        click.echo(f"training {what}", err=True)

    demo.write_demo(folder, on_run=tell)
    click.echo(f"Wrote {folder}: {demo.GOOD}/ and {demo.BAD}/ with checkpoints, "
               f"{demo.VALIDATION}, {demo.TEST}")  # fmt: skip
    if files_only:
        return
    time.sleep(demo.seconds_until_settled(folder))
    for step in demo.steps(folder):
        if step.introduction:
            click.echo(f"\n--- {step.introduction}")
        click.echo(f"\n$ {step.typed}")
        _show(step, demo.run(step))
    click.echo("\nAll of these commands can be typed again (merge with --force).")
    click.echo("docs/runbook.md goes on from here, to the deployment.")


def _show(step: Step, outcome: Outcome) -> None:
    """What a command printed, and what that means. Raises: StreamAvgError: it failed."""
    click.echo(outcome.output, nl=False)
    if outcome.exit_code not in step.shows:
        raise StreamAvgError(
            f"{step.typed}: ended with exit code {outcome.exit_code}, which this demonstration "
            "does not expect. What it printed is above."
        )
    code = f" (exit code {outcome.exit_code})" if outcome.exit_code else ""
    click.echo(f"=> {step.shows[outcome.exit_code]}{code}")
