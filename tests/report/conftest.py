"""A small finished run, written through real stages: every manifest, table and commit is the kind that a run writes."""

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from humpback_ray.curate.canaries import PLACES
from humpback_ray.records import CANARY, CANDIDATE, PAIR, RESPONSE, SCORE, SEGMENT, record_id
from humpback_ray.stages.commits import Commit
from humpback_ray.stages.ledger import Attempt, write_table
from humpback_ray.stages.manifest import Manifest
from humpback_ray.stages.outputs import TableWriter
from humpback_ray.stages.stage import Place, Stage
from humpback_ray.train.job import StepMetrics, metrics_table

WORDS = ("lake", "orchard", "bridge", "lantern", "copper", "harvest", "valley", "market", "engine", "winter", "signal")
Wrap = Callable[[str], str]


def sentence(seed: object, words: int) -> str:
    picked = random.Random(str(seed))
    return " ".join(picked.choice(WORDS) for _ in range(words)).capitalize() + "."


class MadeRun:
    """Builds stages under a directory; `wrap` is put around every text, to make it hostile or long."""

    def __init__(self, root: Path, count: int = 60, wrap: Wrap = str, parameters: int = 410_000) -> None:
        self.root, self.count, self.wrap, self.parameters = root, count, wrap, parameters
        self.manifests: dict[str, Manifest] = {}
        self.ids = [record_id("segment", index) for index in range(count)]

    def table(self, name: str, schema: pa.Schema, rows: list[dict[str, Any]], recipe: Mapping[str, Any]) -> Manifest:
        def write(attempt: Attempt) -> Commit:
            writer = TableWriter(attempt, schema)
            half = len(rows) // 2
            for part in (rows[:half], rows[half:]):
                writer.write(pa.Table.from_pylist(part, schema=schema))
            return writer.commit()

        return self.leased(name, write, recipe, schema)

    def leased(
        self, name: str, work: Callable[[Attempt], Commit], recipe: Mapping[str, Any], schema: pa.Schema | None = None
    ) -> Manifest:
        place = Place(name, str(self.root / name), "20260101T000000Z-abc123")
        self.manifests[name] = Stage(place, recipe, {}, schema).leased(work)
        return self.manifests[name]

    def model(self, name: str, steps: int, examples: int, losses: Callable[[int], float] | None = None) -> Manifest:
        loss = losses or (lambda step: 4.2 * (0.985**step) + 0.4)
        history = [
            StepMetrics(
                step, loss(step), 1e-5 - 1e-6 * (step - 1) / max(1, steps - 1), gradient_norm=1.0, tokens=1800,
                output_tokens=900, seconds=0.1, validation_loss=loss(step) + 0.1 if step % 20 == 0 else None, mfu=0.4,
                memory_bytes=step * 10**9, padding_share=0.25, data_s=0.0,
            )
            for step in range(1, steps + 1)
        ]  # fmt: skip
        extra = {"model": "data/all.1", "examples": {"kept": examples}, "steps": steps, "parameters": self.parameters}

        def write(attempt: Attempt) -> Commit:
            file = write_table(attempt.ledger, f"{attempt.directory}/metrics.parquet", metrics_table(history))
            return replace(attempt.describe([], {}, 900 * steps, extra), metrics=file)

        return self.leased(name, write, {"model": name})

    def build(self, rounds: int = 2) -> dict[str, Manifest]:
        """Make every stage of a run and return its manifests in order."""
        self.inputs()
        self.model("models/backward", 60, 20)
        self.model("models/m0", 60, 20)
        self.candidates()
        for number in range(1, rounds + 1):
            self.round(number)
            self.model(f"models/m{number}", 80, 30)
        for model in range(rounds + 1):
            self.answers(f"evaluation/m{model}")
        return self.manifests

    def inputs(self) -> None:
        seed = [
            {"id": record_id("seed", i), "instruction": self.wrap(sentence(("ask", i), 8 + i % 9)),
             "response": self.wrap(sentence(("say", i), 40)), "source": "seed", "score": None, "drop_reason": None}
            for i in range(20)
        ]  # fmt: skip
        self.table("seed", PAIR, seed, {"version": 1})
        fates = [None, None, None, None, "too_short", "navigation_header", "repetitive"]
        segments = [self.segment(i, fates[i % 7] if i >= self.count else None) for i in range(self.count * 2)]
        self.table("segments", SEGMENT, segments, {"version": 1})
        corpus = [self.segment(i, None) for i in range(self.count)] + [
            self.segment(self.count + i, "duplicate") for i in range(6)
        ]
        self.table("corpus", SEGMENT, corpus, {"version": 1})

    def segment(self, index: int, drop: str | None) -> dict[str, Any]:
        row_id = self.ids[index] if index < self.count else record_id("segment", index)
        text = "" if drop else self.response(index)
        return {
            "id": row_id, "document_id": f"doc-{index // 3}", "url": self.wrap(f"https://example.org/{index}"),
            "header": self.wrap("A header"), "position": -1 if drop == "too_short" else index % 3, "text": text,
            "chars": len(text), "text_hash": row_id, "drop_reason": drop,
        }  # fmt: skip

    def response(self, index: int) -> str:
        return self.wrap(sentence(("segment", index), 90 + index % 60))

    def candidates(self) -> None:
        rows = [
            {"id": row_id, "url": self.wrap(f"https://example.org/{i}"),
             "instruction": self.wrap(sentence(("x", i), 12)), "response": self.response(i),
             "finish_reason": "stop", "prompt_tokens": 200,
             "completion_tokens": 12, "drop_reason": None}
            for i, row_id in enumerate(self.ids)
        ]  # fmt: skip
        self.table("candidates", CANDIDATE, rows, {"version": 1})

    def score(self, number: int, index: int) -> float | None:
        if index % 10 == 9:
            return None
        return round(min(5.0, max(1.0, random.Random(f"{number}-{index}").gauss(2.6 + 0.5 * number, 1.1))), 2)

    def round(self, number: int, threshold: float = 4.5) -> None:
        scores, curated = [], []
        for index, row_id in enumerate(self.ids):
            score = self.score(number, index)
            reply = self.wrap(f"The answer is direct. {sentence((number, index), 9)}\nScore: {score}")
            scores.append({
                "id": row_id, "score": score, "samples": [score, None], "replies": [reply, self.wrap("no verdict")],
                "finish_reasons": ["stop", "length"], "prompt_hash": "0" * 64, "prompt_tokens": 300,
                "completion_tokens": 40, "drop_reason": None if score is not None else "unrated_unparsed",
            })  # fmt: skip
            if score is not None:
                kept = score >= threshold
                curated.append({
                    "id": row_id, "instruction": self.wrap(sentence(("x", index), 12)) if kept else "",
                    "response": self.response(index) if kept else "", "source": "augmented", "score": score,
                    "drop_reason": None if kept else "below_threshold",
                })  # fmt: skip
        self.table(f"round-{number}/scores", SCORE, scores, {"version": 1})
        self.table(f"round-{number}/curated", PAIR, curated, {"threshold": threshold})

    def canaries(self, rated: Mapping[tuple[str, bool], list[float | None]], rounds: int = 2) -> None:
        """Make canaries of families, with and without attack, and their scores in each round."""
        made, scores = [], []
        for (family, attacked), given in rated.items():
            for number, score in enumerate(given):
                row_id = record_id(family, attacked, number)
                made.append({"id": row_id, "family": family, "place": PLACES[number % 3], "attacked": attacked,
                             "instruction": self.wrap("ask"), "response": self.wrap("say"),
                             "obedient_score": 5.0 if attacked and number == 0 else 1.0})  # fmt: skip
                reason = "unrated_unparsed" if score is None else None
                scores.append({"id": row_id, "score": score, "drop_reason": reason})
        self.table("canaries", CANARY, made, {"version": 3})
        for number in range(1, rounds + 1):
            self.table(f"round-{number}/canary-scores", SCORE, scores, {"version": 1})

    def answers(self, name: str) -> None:
        rows = [
            {"id": record_id("prompt", i), "instruction": self.wrap(sentence(("prompt", i), 9)),
             "output": self.wrap(sentence((name, i), 30)), "dataset": "demo",
             "finish_reason": "stop" if i % 3 else "length", "prompt_tokens": 20, "completion_tokens": 33,
             "drop_reason": None}
            for i in range(12)
        ]  # fmt: skip
        self.table(name, RESPONSE, rows, {"version": 1})


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Manifest]:
    """A whole run of two rounds."""
    return MadeRun(tmp_path_factory.mktemp("run")).build()
