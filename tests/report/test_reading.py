"""The rows shown to people are the same every time, honest about what was cut, and cannot disguise themselves."""

from dataclasses import replace

from humpback_ray.records import record_id
from humpback_ray.report import reading
from humpback_ray.report.ratings import nearest
from humpback_ray.stages.manifest import Manifest

Manifests = dict[str, Manifest]


def test_buckets_show_the_last_round_and_count_every_pair(finished: Manifests) -> None:
    found = reading.pairs_to_read(finished)
    assert found is not None
    number, buckets = found
    assert number == 2
    assert sum(bucket.total for bucket in buckets) == finished["round-2/scores"].rows
    assert buckets[-1].label == "unrated"
    assert buckets[-1].total == 6
    for bucket, point in zip(buckets[:-1], (5, 4, 3, 2, 1), strict=True):
        assert len(bucket.pairs) == min(bucket.total, reading.PAIRS_PER_SCORE)
        assert all(pair.score is not None and nearest(pair.score) == point for pair in bucket.pairs)
        assert all(pair.instruction.shown and pair.response.shown and pair.replies for pair in bucket.pairs)


def test_kept_and_rejected_pairs_say_so(finished: Manifests) -> None:
    found = reading.pairs_to_read(finished)
    assert found is not None
    for bucket in found[1]:
        for pair in bucket.pairs:
            if pair.score is None:
                assert pair.fate == "unrated_unparsed"
            else:
                assert pair.fate == ("kept" if pair.score >= 4.5 else "below_threshold")


def test_the_choice_depends_on_the_ids_alone() -> None:
    ids = [record_id(index) for index in range(500)]
    forwards, backwards = reading.Lowest(5), reading.Lowest(5)
    for row_id in ids:
        forwards.add([(1, row_id)])
    backwards.add((1, row_id) for row_id in reversed(ids))
    assert forwards.ids(1) == backwards.ids(1)
    assert forwards.totals[1] == backwards.totals[1] == 500


def test_every_model_answers_the_same_prompts(finished: Manifests) -> None:
    found = reading.answers_to_read(finished)
    assert len(found) == reading.PROMPTS
    for prompt in found:
        assert list(prompt.answers) == ["m0", "m1", "m2"]
        assert all(answer and answer.output.shown for answer in prompt.answers.values())


def test_a_model_without_an_answer_to_a_prompt_leaves_a_gap(finished: Manifests) -> None:
    silent = replace(finished["evaluation/m2"], commits=())
    found = reading.answers_to_read({**finished, "evaluation/m3": silent})
    assert all(prompt.answers["m3"] is None and prompt.answers["m0"] for prompt in found)


def test_without_ratings_answers_or_seed_there_is_nothing_to_read() -> None:
    assert reading.pairs_to_read({}) is None
    assert reading.answers_to_read({}) == []
    assert reading.seed_to_read({}) == []


def test_a_cut_text_says_how_long_it_was() -> None:
    found = reading.text("x" * 5000, 100)
    assert (len(found.shown), found.chars, found.cut) == (100, 5000, True)
    assert not reading.text("short").cut
    assert reading.text(None) == reading.Text("", 0)


def test_characters_that_control_a_terminal_or_reverse_text_become_visible() -> None:
    assert reading.text("a\x00b\x1b[31mc\u202ed\n\te").shown == "a\ufffdb\ufffd[31mc\ufffdd\n\te"
    assert reading.text("Grüße, 世界, \u200d").shown == "Grüße, 世界, \u200d"
