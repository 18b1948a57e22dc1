"""Win rates from annotation files (AlpacaEval's `annotations.json`), with intervals and comparisons; needs no run.

    python -m jobs.winrate annotations.json
    python -m jobs.winrate m1/annotations.json m2/annotations.json --json
    python -m jobs.winrate 's3://bucket/results/*/annotations.json' --reference text_davinci_003

FILES are JSON, JSON lines or Parquet, compressed or not. Each argument is a path, a directory or a glob, local or
s3://, and its files count as one collection of rows. --json prints an object for one model and a list of objects for
several, in the order of the arguments. The reference is generator_1, unless --reference, or rows of several models, say
otherwise; the output names the rows that were turned around.

Exits 0, or 2 if an argument holds anything but annotations.
"""

import argparse
import json
import sys

from humpback_ray import storage
from humpback_ray.config import ConfigError
from humpback_ray.evaluate.judged import read_all
from humpback_ray.evaluate.lengthcontrol import LengthControlled, read_gamed
from humpback_ray.evaluate.standings import RESAMPLES, Standing, standings
from humpback_ray.evaluate.wording import CANNOT, compared, equal_lengths, range_of, sentences
from jobs.console import Table, console, guarded, say

COLUMNS = (
    "model",
    "reference",
    "win rate",
    "± s.e.",
    "95 % interval",
    "wins",
    "draws",
    "n",
    "characters, reference",
    "equal length",
)


def main(argv: list[str] | None = None) -> int:
    """Print the win rates of FILES."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="annotation files, directories or globs")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table and sentences")
    parser.add_argument("--reference", action="append", default=[], help="a generator that is a reference; repeatable")
    parser.add_argument("--difficulty", help="AlpacaEval's df_gamed.csv: fit its length control, length_controlled_v1")
    parser.add_argument("--resamples", type=int, default=RESAMPLES, help=f"of the bootstrap, default {RESAMPLES:,}")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap, default 0")
    arguments = parser.parse_args(argv)

    def work() -> int:
        if arguments.resamples < 1 or arguments.seed < 0:
            raise ConfigError("--resamples must be at least 1, and --seed at least 0")
        try:
            judged = read_all(arguments.files, arguments.reference)
            gamed = read_gamed(arguments.difficulty) if arguments.difficulty else None
        except OSError as error:
            raise ConfigError(f"cannot read: {storage.words(error)}") from error
        found = standings(judged, gamed, arguments.resamples, arguments.seed)
        if arguments.json:
            plain = [one.as_json() for one in found]
            say(json.dumps(plain[0] if len(plain) == 1 else plain, indent=1))
        else:
            show(found)
        return 0

    return guarded(work)


def show(found: list[Standing]) -> None:
    """Print a line per model, then what the figures decide."""
    out = Table(*COLUMNS)
    for column in out.columns[2:]:
        column.justify = "right"
    for one in found:
        out.add_row(*cells(one))
        for name, part in [*(one.by_dataset or {}).items(), *(one.by_category or {}).items()]:
            figures = (f"{part.win_rate:.2f}", f"{part.standard_error:.2f}", range_of(part.interval))
            out.add_row(f"  {name}", "", *figures, f"{part.n_wins:,}", f"{part.n_draws:,}", f"{part.n_total:,}")
    console.print(out, markup=False)
    for line in [*(line for one in found for line in sentences(one)), *equal_lengths(found), *compared(found), CANNOT]:
        say(line)


def cells(one: Standing) -> list[str]:
    """Format a model's figures."""
    lengths = [f"{length:,}" for length in (one.avg_length, one.reference_avg_length) if length is not None]
    fitted = one.length_controlled
    return [
        one.label,
        one.reference + (f", judge {one.annotator}" if one.annotator else ""),
        f"{one.win_rate:.2f}",
        f"{one.standard_error:.2f}",
        range_of(one.interval),
        f"{one.n_wins:,}",
        f"{one.n_draws:,}",
        f"{one.n_total:,}",
        ", ".join(lengths),
        f"{100 * fitted.rate:.2f}" if isinstance(fitted, LengthControlled) else "",
    ]


if __name__ == "__main__":
    sys.exit(main())
