"""`streamavg evaluate`: is the average better than the best single checkpoint?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from streamavg.cli import common_options, exit_codes
from streamavg.cli.printing import aligned
from streamavg.cli.progress import choose_batch_progress
from streamavg.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from streamavg.evaluation.connectivity import PathEvaluation
    from streamavg.evaluation.evaluating import EvaluateOptions
    from streamavg.evaluation.verdict import Evaluation

_WIDEST_NAME = 40
_MANY = "--against"


class _ManyAgainst(click.Command):
    """Lets `--against` take all files up to the next option, as a shell's pattern gives them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spread: list[str] = []
        is_open = False
        for argument in args:
            if argument == _MANY or argument.startswith("-"):
                is_open = argument == _MANY
                spread += [] if is_open else [argument]
            else:
                spread += [_MANY, argument] if is_open else [argument]
        if args and args[-1] == _MANY:
            spread.append(_MANY)  # click says that it needs a file
        return super().parse_args(ctx, spread)


@click.command(cls=_ManyAgainst)
@click.argument("average", required=False, metavar="AVERAGE")
@click.option("--against", multiple=True, metavar="CHECKPOINT...", help="The checkpoints that the "
              "average must beat, usually those it was made of.")  # fmt: skip
@click.option("--path", nargs=2, metavar="A B", help="Instead: score models along the straight "
              "line between two checkpoints.")  # fmt: skip
@click.option("--points", type=int, default=11, show_default=True, metavar="N",
              help="Of --path: how many, both ends among them.")  # fmt: skip
@common_options.choice(
    "preprocessing",
    "equal",
    "Of --path: Normalization state and vocabularies must be equal, or are A's.",
)
@click.option("--val", required=True, metavar="DATA", help="Validation data: FILE.npz with arrays "
              "x and y, FILE.npz:SPLIT with x_SPLIT and y_SPLIT, or module:function that returns a "
              "tf.data.Dataset or arrays.")  # fmt: skip
@click.option("--test", metavar="DATA", help="Test data: they decide, because the best checkpoint "
              "was not chosen on them.")  # fmt: skip
@click.option("--metric", metavar="NAME", help="Chooses the best checkpoint and decides. "
              "By default the loss.")  # fmt: skip
@click.option("--require", metavar="better|not-worse", help="Exit with 3 unless the average is "
              "better, or not shown to be worse.")  # fmt: skip
@click.option("--margin", type=float, metavar="D", help="Of --require, in the metric's unit: "
              "better by more than D, or surely not worse by D.")  # fmt: skip
@click.option("--recalibrate-batchnorm", metavar="DATA", help="Estimate the moving statistics of "
              "the average anew from these data, usually the training set.")  # fmt: skip
@click.option("-o", "--output", metavar="FILE.keras", help="Save the better one of the average "
              "with and without recalibration.")  # fmt: skip
@click.option("--plot", metavar="FILE", help="Draw it: *.png or *.svg (needs matplotlib).")
@common_options.scoring
@click.option("--seed", type=int, default=0, show_default=True, help="Of the resamples.")
@click.option("--force", is_flag=True, help="Replace an existing output or picture.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON on stdout.")
@common_options.quiet
@common_options.no_progress
@common_options.debug
@click.pass_context
def command(
    context: click.Context,
    /,
    average: str | None,
    against: tuple[str, ...],
    path: tuple[str, str] | None,
    val: str,
    as_json: bool,
    quiet: bool,
    no_progress: bool,
    debug: bool,
    **options: Any,
) -> None:
    """Tell whether AVERAGE is better than the best single one of the checkpoints.

    The best one is chosen on the validation data; then both are compared on validation and test
    data, in every metric that the model was compiled with, with a paired bootstrap over examples
    (10,000 resamples, 95% intervals). One model is in memory at a time.
    """
    with choose_batch_progress(shown=not (quiet or no_progress)) as progress:
        calls = {
            "on_plan": progress.begin, "on_model": progress.name, "on_progress": progress.advance,
        }  # fmt: skip
        found: Evaluation | PathEvaluation
        if path:
            found = _evaluate_path(path, val, average, against, options, calls)
        else:
            found = _evaluate(average, against, val, options, calls)
    if as_json:
        click.echo(found.to_json())
    else:
        click.echo("\n".join(_path_lines(found) if path else _lines(found)))  # type: ignore[arg-type]
    if not quiet:
        for note in found.notes:
            click.echo(f"note: {note}", err=True)
    gate = getattr(found, "gate", None)
    if gate is not None and not gate.passed:
        context.exit(exit_codes.GATE)


def _evaluate(
    average: str | None,
    against: Sequence[str],
    val: str,
    options: dict[str, Any],
    calls: Mapping[str, Any],
) -> Evaluation:
    from streamavg.evaluation.evaluating import evaluate

    if average is None:
        raise OptionError(
            "name the average first, then --against with the checkpoints: "
            "streamavg evaluate AVERAGE --against CHECKPOINT... --val DATA"
        )
    for name in _OF_PATHS:
        options.pop(name)
    return evaluate(average, against, val, **calls, **cast("EvaluateOptions", options))


_OF_PATHS = ("points", "preprocessing")
_PATH_OPTIONS = (*_OF_PATHS, "batch_size", "model", "loss", "metrics", "imports", "unsafe", "plot",
                 "force", "seed")  # fmt: skip


def _evaluate_path(
    path: tuple[str, str],
    val: str,
    average: str | None,
    against: Sequence[str],
    options: dict[str, Any],
    calls: Mapping[str, Any],
) -> PathEvaluation:
    from streamavg.evaluation.connectivity import evaluate_path

    left_over = [f"--{name.replace('_', '-')}" for name, value in options.items()
                 if value and name not in _PATH_OPTIONS]  # fmt: skip
    left_over += ["--against"] * bool(against) + [str(average)] * (average is not None)
    if left_over:
        raise OptionError(f"--path does not go with {', '.join(left_over)}.")
    chosen = {name: options[name] for name in _PATH_OPTIONS}
    return evaluate_path(path[0], path[1], val, **calls, **chosen)


def _lines(evaluation: Evaluation) -> Iterator[str]:
    """The answer, a row for each model, and a row for each difference."""
    from streamavg.comparison import shortened
    from streamavg.evaluation.verdict import number, signed

    names = _names([model.path for model in evaluation.models], shortened)
    by_path = dict(zip([model.path for model in evaluation.models], names, strict=True))
    yield evaluation.answer(by_path[evaluation.best])
    if evaluation.gate is not None:
        yield f"required: {evaluation.gate.require} in {evaluation.gate.set} " \
              f"{evaluation.gate.metric}; {evaluation.gate.reason}"  # fmt: skip
    yield ""
    metrics = list(evaluation.models[0].validation)
    has_test = evaluation.test is not None
    header = ["", "model", *(f"validation {metric}" for metric in metrics)]
    header += [f"test {metric}" for metric in metrics] if has_test else []
    rows = [header]
    for model, name in zip(evaluation.models, names, strict=True):
        kind = {"average": "average", "recalibrated": "recalibrated"}.get(model.kind)
        is_best = model.kind == "checkpoint" and model.path == evaluation.best
        row = [">" if is_best else "", name if kind is None else f"{name} ({kind})"]
        row += [number(model.validation[metric]) for metric in metrics]
        if has_test:
            row += ["-" if model.test is None else number(model.test[metric]) for metric in metrics]
        rows.append(row)
    yield from aligned(rows, right=range(2, len(header)))
    for title, differences in (
        ("average against the best checkpoint (>)", evaluation.differences),
        ("recalibrated average against the average as it was", evaluation.recalibration),
    ):
        if not differences:
            continue
        yield ""
        rows = [[title, "difference", "95% interval", "verdict"]]
        for d in differences:
            interval = "-" if d.low is None or d.high is None else (
                f"{signed(d.low)} to {signed(d.high)}"
            )  # fmt: skip
            rows.append([f"{d.set} {d.metric}", signed(d.difference), interval, d.verdict or "-"])
        yield from aligned(rows, right=range(1, 4))
    yield ""
    yield _data_line(evaluation)


def _data_line(evaluation: Evaluation) -> str:
    parts = [f"validation: {evaluation.validation.name} ({evaluation.validation.examples:,})"]
    if evaluation.test is not None:
        parts.append(f"test: {evaluation.test.name} ({evaluation.test.examples:,})")
    return (
        f"{', '.join(parts)} examples; > is best by {evaluation.metric} on validation; paired "
        f"bootstrap, seed {evaluation.seed}."
    )


def _names(paths: list[str], shortened: Any) -> list[str]:
    """Names of files, with their folders where two have the same."""
    bare = [Path(path).name for path in paths]
    is_ambiguous = len({*zip(bare, paths, strict=True)}) > len(set(bare))
    names: list[str] = shortened(paths if is_ambiguous else bare, _WIDEST_NAME)
    return names


def _path_lines(found: PathEvaluation) -> Iterator[str]:
    """The answer, and a row for each point."""
    from streamavg.evaluation.verdict import number

    yield found.answer(Path(found.first).name, Path(found.second).name)
    yield ""
    metrics = list(found.points[0].values)
    rows = [["position", *metrics]]
    rows += [
        [f"{point.position:.3g}", *(number(point.values[metric]) for metric in metrics)]
        for point in found.points
    ]
    yield from aligned(rows, right=range(len(rows[0])))
    yield ""
    yield (
        f"position: 0 is {found.first}, 1 is {found.second}; scored on {found.validation.name} "
        f"({found.validation.examples:,} examples)."
    )
