"""Rows for a person to read: pairs at every score with the judge's replies, and the models' answers side by side.

Rows are chosen by the hash of their id, so the same run always shows the same rows and nobody picked them. Ids are
streamed first; only the texts of the chosen rows are kept.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from humpback_ray.graph import each_round
from humpback_ray.records import NOT_PASSED_ON, record_id
from humpback_ray.report.funnel import Manifests
from humpback_ray.report.ratings import GRADES, nearest
from humpback_ray.stages.manifest import Manifest

PAIRS_PER_SCORE = 4
PROMPTS = 6
SEED_PAIRS = 3
LOST_PER_STAGE = 10
TEXT_CHARS = 1500
REPLY_CHARS = 800
REPLIES = 3
TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that change the direction of the text after them."""
UNRATED, PASSED_OVER = "unrated", "not passed on"
"""Buckets of the pairs whose rating failed, and of those that a cheap scorer did not pass on to the expensive one."""


@dataclass(frozen=True)
class Text:
    """A text made safe to display, and its length before it was cut."""

    shown: str
    chars: int

    @property
    def cut(self) -> bool:
        """Tell whether the end was cut off."""
        return self.chars > len(self.shown)


def text(value: str | None, limit_chars: int = TEXT_CHARS) -> Text:
    """Cut a text and make control and direction-changing characters visible, so it cannot disguise itself."""
    value = value or ""
    shown = value[:limit_chars]
    return Text("".join(sign if _harmless(sign) else "\N{REPLACEMENT CHARACTER}" for sign in shown), len(value))


def _harmless(sign: str) -> bool:
    return sign in "\n\t" or (unicodedata.category(sign) != "Cc" and sign not in TURNING)


@dataclass(frozen=True)
class ReadPair:
    """A candidate with its rating."""

    id: str
    url: Text
    instruction: Text
    response: Text
    score: float | None
    samples: tuple[float | None, ...]
    replies: tuple[Text, ...]
    fate: str
    """"kept", or the drop reason."""


@dataclass(frozen=True)
class Bucket:
    """Pairs whose score is nearest to one point of the scale: the total and those shown."""

    label: str
    total: int
    pairs: tuple[ReadPair, ...]


class Lowest:
    """The rows with the smallest hashes so far, a few per bucket."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.kept: dict[int | str, list[tuple[str, str]]] = defaultdict(list)
        self.totals: dict[int | str, int] = defaultdict(int)

    def add(self, entries: Iterable[tuple[int | str, str]]) -> None:
        """Add (bucket, id) entries."""
        fresh: dict[int | str, list[tuple[str, str]]] = defaultdict(list)
        for bucket, row_id in entries:
            fresh[bucket].append((record_id("report", row_id), row_id))
        for bucket, found in fresh.items():
            self.totals[bucket] += len(found)
            self.kept[bucket] = sorted([*self.kept[bucket], *found])[: self.count]

    def ids(self, bucket: int | str) -> list[str]:
        """Return the chosen ids of a bucket, in the order of their hashes."""
        return [row_id for _, row_id in self.kept[bucket]]


def pairs_to_read(manifests: Manifests, points: range = GRADES) -> tuple[int, list[Bucket]] | None:
    """Return the last rated round and its pairs by score, best first, unrated last; None if nothing was rated."""
    rated = each_round(manifests, "round-{t}/scores")
    if not rated:
        return None
    last, scores = max(rated.items())
    chosen = Lowest(PAIRS_PER_SCORE)
    for table in scores.tables(["id", "score", "drop_reason"], kept=False):
        chosen.add((_bucket(row, points), row["id"]) for row in table.to_pylist())
    wanted = [row_id for bucket in chosen.kept for row_id in chosen.ids(bucket)]
    ratings = rows_of(scores, wanted, ["score", "samples", "replies", "drop_reason"], kept=False)
    candidates = rows_of(manifests.get("candidates"), wanted, ["url", "instruction", "response"])
    fates = rows_of(each_round(manifests, "round-{t}/curated").get(last), wanted, ["drop_reason"], kept=False)
    buckets = []
    for point in (*reversed(points), *([PASSED_OVER] if chosen.totals[PASSED_OVER] else []), UNRATED):
        pairs = [_pair(key, ratings[key], candidates.get(key, {}), fates.get(key)) for key in chosen.ids(point)]
        label = point if isinstance(point, str) else f"score {point}"
        buckets.append(Bucket(label, chosen.totals[point], tuple(pairs)))
    return last, buckets


def _bucket(rating: dict[str, Any], points: range) -> int | str:
    if rating["score"] is not None:
        return nearest(rating["score"], points)
    return PASSED_OVER if rating["drop_reason"] == NOT_PASSED_ON else UNRATED


def _pair(row_id: str, rating: dict[str, Any], candidate: dict[str, Any], fate: dict[str, Any] | None) -> ReadPair:
    return ReadPair(
        id=row_id,
        url=text(candidate.get("url"), 200),
        instruction=text(candidate.get("instruction")),
        response=text(candidate.get("response")),
        score=rating["score"],
        samples=tuple(rating["samples"] or ()),
        replies=tuple(text(reply, REPLY_CHARS) for reply in (rating["replies"] or ())[:REPLIES]),
        fate=_fate(rating, fate),
    )


def _fate(rating: dict[str, Any], fate: dict[str, Any] | None) -> str:
    if fate:
        return fate["drop_reason"] or "kept"
    return rating["drop_reason"] or "not in the selection"


def rows_of(
    manifest: Manifest | None, ids: Sequence[str], columns: list[str], kept: bool = True
) -> dict[str, dict[str, Any]]:
    """Return rows by id; ids that the stage does not have are left out, and without a manifest all are."""
    if manifest is None or not ids:
        return {}
    wanted, found = set(ids), {}
    for table in manifest.tables(["id", *columns], kept=kept):
        mask = pa.array([row_id in wanted for row_id in table["id"].to_pylist()], pa.bool_())
        found |= {row["id"]: row for row in table.filter(mask).to_pylist()}
    return found


@dataclass(frozen=True)
class Answers:
    """One prompt and each model's answer; None if a model has none."""

    instruction: Text
    answers: dict[str, "Answer | None"]


@dataclass(frozen=True)
class Answer:
    """A model's answer, and how it ended."""

    output: Text
    finish_reason: str


def answers_to_read(manifests: Manifests) -> list[Answers]:
    """Return a few prompts with every model's answer."""
    done = {f"m{t}": answers for t, answers in each_round(manifests, "evaluation/m{t}").items()}
    if not done:
        return []
    chosen = Lowest(PROMPTS)
    for table in next(iter(done.values())).tables(["id"], kept=False):
        chosen.add((0, row_id) for row_id in table["id"].to_pylist())
    ids = chosen.ids(0)
    columns = ["instruction", "output", "finish_reason", "drop_reason"]
    rows = {model: rows_of(manifest, ids, columns, kept=False) for model, manifest in done.items()}
    return [_answers(row_id, rows) for row_id in ids]


def _answers(row_id: str, rows: dict[str, dict[str, dict[str, Any]]]) -> Answers:
    found = {model: by_id.get(row_id) for model, by_id in rows.items()}
    instruction = next((row["instruction"] for row in found.values() if row and row["instruction"]), "")
    return Answers(text(instruction), {model: _answer(row) if row else None for model, row in found.items()})


def _answer(row: dict[str, Any]) -> Answer:
    return Answer(text(row["output"]), row["drop_reason"] or row["finish_reason"] or "")


@dataclass(frozen=True)
class Lost:
    """A quarantined row."""

    stage: str
    id: str
    error: Text
    last_words: Text
    row: Text


def quarantined_to_read(manifests: Manifests) -> tuple[int, list[Lost]]:
    """Return how many rows of all stages are quarantined, and the first few of each stage."""
    total, shown = 0, []
    for name, manifest in manifests.items():
        total += manifest.quarantined
        rows = manifest.quarantine().slice(0, LOST_PER_STAGE).to_pylist() if manifest.quarantined else []
        shown += [
            Lost(name, row["id"], text(row["error"], REPLY_CHARS), text(row["last_words"]), text(row["text"]))
            for row in rows
        ]
    return total, shown


@dataclass(frozen=True)
class SeedPair:
    """A human-written pair."""

    instruction: Text
    response: Text


def seed_to_read(manifests: Manifests) -> list[SeedPair]:
    """Return a few seed pairs, for comparison with the others."""
    seed = manifests.get("seed")
    if seed is None:
        return []
    chosen = Lowest(SEED_PAIRS)
    for table in seed.tables(["id"]):
        chosen.add((0, row_id) for row_id in table["id"].to_pylist())
    rows = rows_of(seed, chosen.ids(0), ["instruction", "response"])
    found = [rows[row_id] for row_id in chosen.ids(0)]
    return [SeedPair(text(row["instruction"]), text(row["response"])) for row in found]
