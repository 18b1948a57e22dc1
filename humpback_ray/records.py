"""The tables that stages hand to each other: one Arrow schema per hand-off.

Every table has `id` (derived from the content, the same in every stage) and `drop_reason` (null if the row was kept). A
dropped row keeps its id and reason; its text columns are blank.
"""

import hashlib
from typing import TypedDict

import pyarrow as pa

SEGMENT = pa.schema(
    [
        ("id", pa.string()),  # record_id(document_id, position, text): see below
        ("document_id", pa.string()),  # WARC-Record-ID, or a hash of a JSONL record
        ("url", pa.string()),  # of the page; "" if unknown
        ("header", pa.string()),  # text of the header that opens the segment; "" if none
        ("position", pa.int32()),  # 0, 1, ... in the document; -1 for the row of a document without a segment
        ("text", pa.string()),  # the segment, y; paragraphs separated by newlines
        ("chars", pa.int32()),  # length of the text in characters, even if it was dropped
        ("text_hash", pa.string()),  # SHA-256 of the normalized text, for exact duplicates
        ("drop_reason", pa.string()),
    ]
)

CANDIDATE = pa.schema(
    [
        ("id", pa.string()),  # the segment's id
        ("url", pa.string()),
        ("instruction", pa.string()),  # x-hat, predicted by the backward model
        ("response", pa.string()),  # y, the segment's text
        ("finish_reason", pa.string()),  # engines/base.py lists the values
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("drop_reason", pa.string()),
    ]
)

SCORE = pa.schema(
    [
        ("id", pa.string()),  # the candidate's id
        ("score", pa.float64()),  # higher is better, on the scorer's scale (rubric: 1 to 5); null if there is none
        ("samples", pa.list_(pa.float64())),  # the score of each sample; null for a failed one, after the retry
        ("failed_samples", pa.int32()),  # samples without a score, after the retry
        ("grade_masses", pa.list_(pa.float64())),  # total probability of all grades, per sample; null if not weighed
        ("replies", pa.list_(pa.string())),  # the model's last reply for each sample, for people to read
        ("finish_reasons", pa.list_(pa.string())),  # of those replies
        ("reply_tokens", pa.list_(pa.int32())),  # of those replies; 0 where nothing was generated
        ("first_failures", pa.list_(pa.string())),  # why each sample's first reply gave no score; null if it gave one
        ("prompt_hash", pa.string()),  # SHA-256 of the rendered prompt
        ("prompt_tokens", pa.int32()),  # tokens that the model read: the prompt once; for a likelihood, both passes
        ("completion_tokens", pa.int32()),  # tokens that the model wrote, retried replies included
        ("pre_score", pa.float64()),  # in a chain, the cheap scorer's score; null if it gave none, or without a chain
        ("scorer", pa.string()),  # kind of the scorer that gave the score; in a chain, the expensive one's
        ("model", pa.string()),  # the rating model: digest of its files
        ("sampling", pa.string()),  # JSON: how replies were sampled; null if nothing was generated
        ("drop_reason", pa.string()),  # a failure (curate/scorers/base.py), or the verdict "not_passed_on"
    ]
)

CANARY = pa.schema(
    [
        ("id", pa.string()),  # hash of the attack's number and the pair
        ("family", pa.string()),  # of the attack
        ("place", pa.string()),  # of the attack in its text: "start", "middle" or "end"
        ("attacked", pa.bool_()),  # false: the same bad pair without the attack
        ("instruction", pa.string()),
        ("response", pa.string()),
        (
            "obedient_score",
            pa.float64(),
        ),  # from a judge that obeys all it reads; null if it gave none, or no reply is asked for
        ("drop_reason", pa.string()),
    ]
)

PAIR = pa.schema(
    [
        ("id", pa.string()),  # seed: hash of the pair; augmented: the segment's id
        ("instruction", pa.string()),  # x
        ("response", pa.string()),  # y
        ("source", pa.string()),  # "seed" or "augmented"; decides the source tag in training
        ("score", pa.float64()),  # the rating that selected it; null for seed pairs
        ("drop_reason", pa.string()),
    ]
)


class PairRow(TypedDict):
    """A row of PAIR."""

    id: str
    instruction: str
    response: str
    source: str
    score: float | None
    drop_reason: str | None


REWRITE = pa.schema(
    [
        *(field for field in PAIR if field.name != "drop_reason"),  # `response` is the rewrite, or the source
        ("original", pa.string()),  # the source: the response before the rewrite
        ("source_share", pa.float64()),  # share of the source's words that the rewrite has
        ("grounded_share", pa.float64()),  # share of the rewrite's words that the source has
        ("rewrite_reason", pa.string()),  # why the rewrite is not used; null if `response` is the rewrite
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("drop_reason", pa.string()),  # `rewrite_reason`, if the recipe drops such pairs
    ]
)

TOKENS = pa.schema(
    [
        ("id", pa.string()),  # the pair's id
        ("source", pa.string()),  # the pair's
        ("ids", pa.list_(pa.int32())),  # what the model reads: prompt, target, end token; empty if dropped
        ("loss_start", pa.int32()),  # index of the first id that carries loss: the target's first
        ("length", pa.int32()),  # number of ids of the whole example, even if it was dropped or cut
        ("truncated", pa.bool_()),  # cut at the end to the recipe's limit
        ("drop_reason", pa.string()),
    ]
)

RESPONSE = pa.schema(
    [
        ("id", pa.string()),  # hash of the prompt's id and text
        ("instruction", pa.string()),
        ("output", pa.string()),
        ("dataset", pa.string()),  # where the prompt came from, for AlpacaEval's `dataset` field
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("drop_reason", pa.string()),
    ]
)

METRICS = pa.schema(
    [
        ("step", pa.int32()),  # of the optimizer, from 1; each once, including those before a resume
        ("loss", pa.float64()),  # mean over all output tokens of the global batch, nats
        ("validation_loss", pa.float64()),  # of the held-out seed pairs, after the step; null if not measured
        ("learning_rate", pa.float64()),
        ("gradient_norm", pa.float64()),  # of the global batch's mean loss, before clipping
        ("tokens", pa.int64()),  # of the batch, with prompts, without padding
        ("output_tokens", pa.int64()),  # those that carry loss
        ("skipped", pa.bool_()),  # its update was not applied: loss or gradient not finite, or a loss spike
        ("seconds", pa.float64()),  # from requesting the rows to the update, without validation and checkpoints
        ("tokens_per_s", pa.float64()),  # of all workers together
        ("output_tokens_per_s", pa.float64()),
        ("mfu", pa.float64()),  # share of all workers' peak FLOP/s that the model used (train/engine/metrics.py)
        ("memory_bytes", pa.int64()),  # largest over workers: the device's peak so far; on a CPU, resident memory
        ("padding_share", pa.float64()),  # share of the computed positions that held no token
        ("data_s", pa.float64()),  # the longest that any worker waited for the step's rows
    ]
)

QUARANTINED = "quarantined"
"""Drop reason of a row that no worker survived."""

NOT_PASSED_ON = "not_passed_on"
"""Drop reason of a candidate that a cheap scorer kept from the expensive one: a verdict, not a failure."""

QUARANTINE = pa.schema(
    [
        ("id", pa.string()),  # of the row in the stage's table
        ("shard", pa.string()),
        ("index", pa.int64()),  # of the row or record in its shard
        ("attempt", pa.int32()),
        ("error", pa.string()),  # what its worker raised, or how its process ended
        ("last_words", pa.string()),  # the end of that process's standard error; "" if there is none
        ("node", pa.string()),  # where it was tried last
        ("text", pa.string()),  # the row as the worker got it, as JSON, cut to 4,000 characters
    ]
)


def record_id(*parts: object) -> str:
    """Return a row id derived from content alone: 32 hex digits of SHA-256 over the parts, each after its length."""
    text = "".join(f"{len(str(part))}:{part}" for part in parts)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def seed_of(row_id: str, *parts: object) -> int:
    """Return a sampling seed in [0, 2**63) that depends only on the row and the recipe parts."""
    return int(record_id(row_id, *parts)[:16], 16) >> 1


def content_id(*parts: bytes) -> str:
    """Return an id derived from bytes alone: 32 hex digits of SHA-256 over the parts and their lengths."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()[:32]
