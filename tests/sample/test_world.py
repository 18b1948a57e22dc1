import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
from fastwarc.warc import ArchiveIterator, WarcRecordType

from humpback_ray.corpus.filters import FilterRecipe
from humpback_ray.corpus.segments import SegmentRecipe, segment_file
from humpback_ray.sample.facts import ATTRIBUTES, draw_truth
from humpback_ray.sample.texts import JUNK_KINDS
from humpback_ray.sample.world import WorldRecipe, documents, truth_of, write_world
from humpback_ray.seed import SeedRecipe, seed_file

SMALL = WorldRecipe(documents=400)
CUT = SegmentRecipe(filters=FilterRecipe(min_chars=40, max_chars=600))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("world")
    write_world(SMALL, directory)
    return directory


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def segments(world: Path) -> list[dict]:
    rows = []
    for path in sorted((world / "web").glob("*.warc.gz")):
        with path.open("rb") as stream:
            rows += segment_file(stream, path.name, CUT).to_pylist()
    return rows


def test_equal_recipes_write_equal_bytes_and_another_seed_writes_others(world: Path, tmp_path: Path) -> None:
    write_world(SMALL, tmp_path / "again")
    write_world(SMALL.model_copy(update={"seed": 1}), tmp_path / "other")
    names = sorted(str(path.relative_to(world)) for path in world.rglob("*") if path.is_file())
    assert names == ["prompts-test.jsonl", "prompts.jsonl", "seed.jsonl", "truth.jsonl"] + [
        f"web/web-{index}.warc.gz" for index in range(4)
    ]
    for name in names:
        assert (world / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
        assert (world / name).read_bytes() != (tmp_path / "other" / name).read_bytes()


def test_archives_are_well_formed_warc_with_one_gzip_member_per_record(world: Path) -> None:
    ids, urls = [], []
    for path in sorted((world / "web").glob("*.warc.gz")):
        with path.open("rb") as stream:
            records = 0
            for record in ArchiveIterator(stream, parse_http=True, record_types=WarcRecordType.any_type):
                records += 1
                ids.append(record.record_id)
                if record.record_type == WarcRecordType.response:
                    body = record.reader.read()
                    assert len(body) == int(record.http_headers["Content-Length"])
                    urls.append(record.headers["WARC-Target-URI"])
        assert gzip.decompress(path.read_bytes()).count(b"WARC/1.1\r\n") == records
    assert len(ids) == len(set(ids))
    assert len(urls) == len(set(urls)) > 300


def test_every_kept_segment_is_in_the_truth_word_for_word_and_about_half_are_junk(world: Path) -> None:
    known = {
        (line["url"], line["header"], line["text"]): line["kind"]
        for line in lines(world / "truth.jsonl")
        if line["record"] == "segment"
    }
    kept = {row["text_hash"]: row for row in segments(world) if row["drop_reason"] is None}
    kinds = Counter(known[row["url"], row["header"], row["text"]] for row in kept.values())
    assert set(kinds) == {"right", *JUNK_KINDS}
    assert 500 <= len(kept) <= 900
    assert 0.4 <= kinds["right"] / len(kept) <= 0.6


def test_every_filter_of_the_corpus_has_something_to_drop(world: Path) -> None:
    reasons = {row["drop_reason"] for row in segments(world)}
    headers = {"header_empty", "header_navigation", "header_uppercase"}
    assert headers | {"too_short", "too_long", "repetitive", "no_text", "not_html", "http_status"} <= reasons


def test_mirrors_hold_exact_and_near_duplicates(world: Path) -> None:
    kept = [row for row in segments(world) if row["drop_reason"] is None]
    texts = {row["text"] for row in kept if "mirror" not in row["url"]}
    mirrored = [row["text"] for row in kept if "mirror" in row["url"]]
    assert any(text in texts for text in mirrored)
    assert any(text not in texts and text.removesuffix(" Read on.") in texts for text in mirrored)


def test_the_seed_selection_keeps_one_pair_per_seed_town_and_meets_every_drop_rule(world: Path) -> None:
    with (world / "seed.jsonl").open("rb") as stream:
        rows = seed_file(stream, "seed.jsonl", SeedRecipe()).to_pylist()
    kept = [row for row in rows if row["drop_reason"] is None]
    reasons = {row["drop_reason"] for row in rows}
    assert reasons == {None, "deleted", "synthetic", "not_english", "no_rank_0_reply", "no_reply"}
    truth = truth_of(SMALL)
    assert len(kept) == SMALL.seed_towns
    for row in kept:
        town = next(town for town in truth.towns["seed"] if town in row["instruction"])
        assert any(f" {fact.value}." in row["response"] for fact in truth.facts[town].values())
    trees = [line["prompt"] for line in lines(world / "seed.jsonl")]
    replies = [reply for prompt in trees for reply in prompt["replies"]]
    assert any(reply["rank"] == 1 for reply in replies)
    assert any(reply["replies"] for reply in replies)


def test_towns_keep_to_their_split(world: Path) -> None:
    truth = truth_of(SMALL)
    assert len({town for towns in truth.towns.values() for town in towns}) == len(truth.facts)
    elsewhere = [
        text for text in documents(SMALL) if "Score:" in text or "\nWhich question does this answer?\n" in text
    ]
    text = "\n".join(elsewhere)
    assert not any(f" {town}" in text for split in ("unseen", "pool") for town in truth.towns[split])
    candidates = "\n".join(row["text"] for row in segments(world))
    assert not any(f" {town}" in candidates for town in truth.towns["unseen"])
    read = "\n".join(documents(SMALL.model_copy(update={"documents": 4_000})))
    assert all(f" {town}" in read for town in truth.facts)


def test_prompt_files_ask_for_true_facts_and_share_none(world: Path) -> None:
    truth = truth_of(SMALL)
    told = {line["id"]: line for line in lines(world / "truth.jsonl") if line["record"] == "prompt"}
    dev, test = lines(world / "prompts.jsonl"), lines(world / "prompts-test.jsonl")
    asked = [(told[line["id"]]["town"], told[line["id"]]["attribute"]) for line in dev + test]
    assert len(set(asked)) == len(asked)
    for line in dev + test:
        known = told[line["id"]]
        assert set(line) == {"id", "instruction", "dataset"}
        assert known["town"] in line["instruction"]
        assert truth.facts[known["town"]][known["attribute"]].value == known["value"]
        assert line["dataset"] == f"toy_{'dev' if line in dev else 'test'}_{known['split']}"


def test_reviews_end_in_their_score(world: Path) -> None:
    reviews = [text for text in documents(SMALL) if "\nReview:\n" in text]
    assert len(reviews) > 100
    assert {text.rsplit("\n", 1)[1] for text in reviews} == {f"Score: {digit}" for digit in range(1, 6)}


def test_attribute_values_are_disjoint_and_single_words() -> None:
    values = [value for attribute in ATTRIBUTES for value in attribute.values]
    assert len(values) == len(set(values))
    assert all(value.isalpha() for value in values)


def test_more_towns_than_names_are_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"10001 towns needs as many names, but there are only \d+"):
        draw_truth({"seed": 1, "pool": 10_000}, 0)
