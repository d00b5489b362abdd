"""Measures `streamavg merge` against what the machine needs merely to move the bytes.

    python scripts/benchmark.py --quick
    python scripts/benchmark.py --mode all --repeat 3 --json results.json --page docs/benchmarks.md
    python scripts/benchmark.py --from results.json --page docs/benchmarks.md

Builds checkpoints in the layouts that Keras writes in a temporary folder, runs streamavg, other
ways to average them and L (`cat` of all inputs and a copy of one) in turn, compares what they
wrote, and prints tables. Modes:

    warm      inputs in the page cache: every layout and dtype, and the peers
    cold      nothing in the page cache
    cgroup    the same in a memory cgroup of 96 MiB
    median    the median of 32 checkpoints
    growth    time and memory against the numbers of checkpoints, variables and bytes
    accuracy  errors in ULP against rational arithmetic
    all       everything, with a profile

Full sizes need 25 GB on the disk, 20 GB of memory (the article's way takes 10, and the inputs are
to stay in the page cache) and about 20 minutes a repeat. Whatever else runs on the machine spoils
the numbers. The package `benchmarks` beside this file has the parts.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the streamavg of this checkout

from benchmarks import machine, page, plot
from benchmarks.checks import OutputsDifferError
from benchmarks.contenders import Abilities
from benchmarks.measuring import REPOSITORY
from benchmarks.modes import (
    MODES,
    QUICK,
    Bench,
    Sizes,
    can_drop_everything,
    run_modes,
    scratch_folder,
)
from benchmarks.results import Report
from benchmarks.rounds import CommandFailedError


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--mode",
        nargs="+",
        choices=[*MODES, "all"],
        default=["warm"],
        metavar="MODE",
        help="one or several of those above; default: warm",
    )
    parser.add_argument(
        "--quick", action="store_true", help="small inputs: under a minute (warm, without mergekit)"
    )
    parser.add_argument("--checkpoints", type=int, help="default: 8")
    parser.add_argument("--megabytes", type=float, help="of each checkpoint; default: 815")
    parser.add_argument("--rounds", type=int, help="that count; default: 5")
    parser.add_argument(
        "--repeat", type=int, default=1, metavar="N", help="measure the whole table N times"
    )
    parser.add_argument("--profile", action="store_true", help="also where the time goes")
    parser.add_argument(
        "--cold-by",
        choices=["drop-caches", "fadvise"],
        help="how the page cache is emptied: all of it, or of the inputs alone; "
        "default: all of it where that is permitted",
    )
    parser.add_argument(
        "--mergekit-python", metavar="PYTHON", help="an interpreter that has mergekit"
    )
    parser.add_argument(
        "--without",
        nargs="+",
        choices=["article", "mergekit"],
        default=[],
        metavar="PEER",
        help="peers to skip: article, mergekit",
    )
    parser.add_argument("--folder", type=Path, help="where the temporary folder goes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measurement")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the page and its picture")
    parser.add_argument(
        "--from",
        type=Path,
        nargs="+",
        metavar="FILE",
        dest="earlier",
        help="measure nothing: write the page of measurements that --json wrote",
    )
    return parser.parse_args()


def main() -> None:
    """Measures, prints tables, and writes JSON and the page if asked to."""
    options = parse_arguments()
    if options.earlier:
        try:
            report = Report.load(options.earlier)
        except (OSError, ValueError, KeyError, TypeError) as error:
            sys.exit(f"error: these are not measurements that --json wrote: {error}")
    else:
        report = Report()
        try:
            measure(options, report)
        except (CommandFailedError, OutputsDifferError) as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            sys.exit("error: interrupted")
        finally:  # what was measured so far is not lost
            if options.json:
                report.save(options.json)
    print("\n\n".join(page.sections(report)))
    if options.page:
        write_page(report, options.page)


def measure(options: argparse.Namespace, report: Report) -> None:
    """Runs the modes that are asked for."""
    everything = "all" in options.mode
    given = {
        name: value
        for name in ("checkpoints", "megabytes", "rounds")
        if (value := getattr(options, name)) is not None
    }
    sizes = replace(QUICK if options.quick else Sizes(), **given)
    drops = options.cold_by != "fadvise" and can_drop_everything()
    with scratch_folder(options.folder) as folder:
        report.machine |= machine.describe(folder, REPOSITORY)
        report.settings |= settings(sizes, options.repeat, drops)
        bench = Bench(
            folder,
            sizes,
            Abilities(options.mergekit_python, options.without),
            report,
            profiles=options.profile or everything,
            drops_everything=drops,
        )
        run_modes(list(MODES) if everything else options.mode, bench, options.repeat)


def settings(sizes: Sizes, repeat: int, drops_everything: bool) -> dict[str, str]:
    """What a reader has to know of how it was measured."""
    return {
        "inputs": f"{sizes.checkpoints} checkpoints of {sizes.megabytes:g} MB in float32",
        "rounds": f"{sizes.rounds}, {sizes.peer_rounds} of other programs; one before that fills "
        "the caches and does not count",
        "whole table": "once" if repeat == 1 else f"{repeat} times",
        "cold": "the page cache of the machine was dropped before each command"
        if drops_everything
        else "the kernel was asked to forget the inputs before each command (posix_fadvise)",
    }


def write_page(report: Report, path: Path) -> None:
    """Writes the page, and the picture beside it if growth was measured."""
    picture = path.with_suffix(".png")
    if plot.points(report):
        plot.draw(report, picture)
        path.write_text(page.render(report, picture.name), "utf-8")
    else:
        path.write_text(page.render(report), "utf-8")


if __name__ == "__main__":
    main()
