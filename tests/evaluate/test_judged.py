"""Which side of a row is the model, and which rows belong together."""

import math
from collections import Counter
from pathlib import Path

import pytest

from humpback_ray.config import ConfigError
from humpback_ray.evaluate.judged import read_all, references
from tests.evaluate.made import annotations, judged_in, row, written


def test_generator_1_is_the_reference(tmp_path: Path) -> None:
    judged = judged_in(tmp_path, row(2, "m1", "m2"))
    assert (judged.model, judged.reference, judged.values, judged.swapped) == ("m2", "m1", [1], 0)


def test_a_file_of_several_models_has_one_entry_for_each(tmp_path: Path) -> None:
    path = written(tmp_path, row(2, "base", "m1"), row(1, "base", "m2"), row(1.5, "base", "m1"))
    assert [(one.model, list(one.values)) for one in read_all([path])] == [("m1", [1, 0.5]), ("m2", [0])]


def test_swapped_sides_of_several_models_are_turned_around(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        row(1.75, "m1", "base", output_1="long", output_2="r", glm_preference=0.75),
        row(1, "m2", "base", output_1="lon", output_2="r", glm_preference=0.25),
    )
    m1, m2 = read_all([path])
    assert (m1.model, m1.reference, list(m1.values), m1.swapped) == ("m1", "base", [0.25], 1)
    assert (m2.model, list(m2.values), list(m2.fitted)) == ("m2", [1], [0.75])
    assert (list(m1.characters), list(m1.reference_characters)) == ([4], [1])


def test_the_same_answers_in_either_order_give_the_same_figures(tmp_path: Path) -> None:
    straight = annotations(reference="text_davinci_003")
    turned = [
        {**one, "generator_1": one["generator_2"], "generator_2": one["generator_1"], "output_1": one["output_2"],
         "output_2": one["output_1"], "preference": one["preference"] and 3 - one["preference"]}
        for one in straight
    ]  # fmt: skip
    for rows in (turned, turned[:7] + straight[7:]):
        a, b = (read_all([written(tmp_path, *each)])[0] for each in (straight, rows))
        assert (b.model, b.reference) == ("m1", "text_davinci_003")
        assert b.values == pytest.approx(a.values, nan_ok=True)
        assert list(b.characters) == list(a.characters)


@pytest.mark.parametrize(
    ("pairs", "reference"),
    [
        ({("base", "m1"): 9}, "base"),
        ({("base", "m1"): 9, ("m1", "base"): 4}, "base"),
        ({("base", "base"): 9}, "base"),
        ({("m1", "text_davinci_003"): 9}, "text_davinci_003"),
        ({("text_davinci_003", "gpt4_1106_preview"): 9}, "text_davinci_003"),
        ({("gpt4_1106_preview", "text_davinci_003"): 9}, "gpt4_1106_preview"),
        ({("m1", "base"): 9, ("m2", "base"): 9}, "base"),
        ({("base", "m1"): 9, ("base", "text_davinci_003"): 9, ("base", "base"): 1}, "base"),
    ],
)
def test_the_reference_is_decided_by_the_generators(pairs: dict[tuple[str, str], int], reference: str) -> None:
    assert set(references(Counter(pairs)).values()) == {reference}


def test_pairs_without_a_common_generator_are_decided_one_by_one() -> None:
    found = references(Counter({("a", "b"): 3, ("c", "d"): 3, ("d", "c"): 1}))
    assert found == {frozenset("ab"): "a", frozenset("cd"): "c"}


def test_a_reference_that_nothing_decides_must_be_named(tmp_path: Path) -> None:
    rows = [row(2, "m1", "m2"), row(1, "m2", "m1")]
    with pytest.raises(ConfigError, match="add --reference m1, or --reference m2"):
        judged_in(tmp_path, *rows)
    judged = judged_in(tmp_path, *rows, named=("m1",))
    assert (judged.model, list(judged.values), judged.swapped) == ("m2", [1, 1], 1)
    with pytest.raises(ConfigError, match="the reference m3 is in no row; the generators are m1, m2"):
        judged_in(tmp_path, *rows, named=("m3",))


def test_rows_of_several_annotators_are_kept_apart(tmp_path: Path) -> None:
    path = written(tmp_path, row(2, annotator="gpt4"), row(1, annotator="claude"))
    assert [(one.annotator, list(one.values)) for one in read_all([path])] == [("gpt4", [1]), ("claude", [0])]


def test_lengths_are_unknown_only_where_no_output_is_in_the_file(tmp_path: Path) -> None:
    assert math.isnan(judged_in(tmp_path, row()).characters[0])
    assert not judged_in(tmp_path, row()).empty.any()
    judged = judged_in(tmp_path, row(output_1="r", output_2=None), row(output_1="r"), row(output_1="r", output_2=" \n"))
    assert list(judged.characters) == [0, 0, 2]
    assert judged.empty.all()


def test_an_argument_that_is_given_twice_counts_once(tmp_path: Path) -> None:
    path = written(tmp_path, row())
    assert len(read_all([path, path])) == 1


def test_rows_without_a_verdict_that_name_no_annotator_belong_to_the_only_one(tmp_path: Path) -> None:
    judged = judged_in(tmp_path, row(2, annotator="gpt4"), row(None, annotator=None), row(math.nan))
    assert (judged.annotator, len(judged.values)) == ("gpt4", 3)
    path = written(tmp_path, row(2, annotator="gpt4"), row(None), row(1, annotator="claude"))
    assert [len(each.values) for each in read_all([path])] == [1, 1, 1]


def test_rows_that_name_no_generator_belong_to_the_only_one(tmp_path: Path) -> None:
    judged = judged_in(tmp_path, row(2), {**row(1), "generator_1": None}, {**row(1), "generator_2": ""})
    assert (judged.model, judged.reference, len(judged.values)) == ("m1", "base", 3)
    judged = judged_in(tmp_path, {"preference": 2}, {"preference": 1})
    assert (judged.model, judged.reference) == ("model", "reference")
    assert judged_in(tmp_path, {"preference": 2, "generator": "m9"}).model == "m9"
