"""Made-up annotations, the same on every machine, and a table in the form of AlpacaEval's rigged references."""

import csv
import json
import math
from pathlib import Path
from typing import Any

from humpback_ray.evaluate.judged import Judged, read_all

PROMPTS = 60
PREFERENCES: list[float | None] = [2, 1, 1.5, 0, 1.75, 2, None, 1.2, 2, 1.9, math.nan, 1]


def annotations(model: str = "m1", reference: str = "base", shift: int = 0) -> list[dict[str, Any]]:
    """Rows with every coding of a preference; `shift` makes another model of it."""
    return [
        {
            "instruction": f"prompt {at}",
            "output_1": "r" * (100 + 37 * at % 211),
            "generator_1": reference,
            "output_2": "m" * (80 + 53 * (at + shift) % 307),
            "generator_2": model,
            "dataset": ("koala", "vicuna")[at % 2],
            "annotator": "judge",
            "preference": PREFERENCES[(7 * at + at // 12 + shift) % len(PREFERENCES)],
        }
        for at in range(PROMPTS)
    ]


def write_gamed(path: Path) -> None:
    """Write a table in the form of AlpacaEval's `df_gamed.csv`."""
    columns = ["preference", "index", "std_delta_len", "instruction_difficulty", "not_gamed_baseline", "model"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for sign, model in ((-1, "verbose"), (1, "concise")):
            for at in range(PROMPTS):
                delta = sign * (0.4 + 0.05 * (at % 17))
                share = min(max(0.5 - 0.25 * math.tanh(delta) + 0.02 * (at % 7 - 3), 0), 1)
                writer.writerow([share, at, delta, 0.3 * (at % 11 - 5), False, model])


def row(preference: object = 2, first: str = "base", second: str = "m1", **more: object) -> dict[str, Any]:
    return {"instruction": "Why?", "generator_1": first, "generator_2": second, "preference": preference, **more}


def written(folder: Path, *rows: object, name: str = "annotations.json") -> str:
    path = folder / name
    path.write_text(json.dumps(rows, indent=2))
    return str(path)


def judged_in(folder: Path, *rows: object, named: tuple[str, ...] = ()) -> Judged:
    (judged,) = read_all([written(folder, *rows)], named)
    return judged
