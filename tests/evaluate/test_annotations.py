"""Reading annotation files: every coding of a preference, every kind of file, sides, and errors that say where."""

import gzip
import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from humpback_ray import storage
from humpback_ray.config import ConfigError
from humpback_ray.evaluate.judged import read_all
from tests.evaluate.made import annotations, judged_in, row


@pytest.mark.parametrize(
    ("preference", "value"),
    [
        (1, 0), (2, 1), (1.5, 0.5), (0, 0.5), (0.0, 0.5), (1.0000003, 0.0000003), (1.25, 0.25), (1.9999997, 0.9999997),
        ("2", 1), ("1.0", 0), (" 1.5 ", 0.5), ("0", 0.5), ("1.25", 0.25),
        (None, math.nan), (math.nan, math.nan), ("", math.nan), ("nan", math.nan), ("NaN", math.nan),
        ("null", math.nan), (-1, math.nan), ("-1", math.nan), (-1.0, math.nan),
    ],
)  # fmt: skip
def test_a_preference_in_every_coding(tmp_path: Path, preference: object, value: float) -> None:
    judged = judged_in(tmp_path, row(preference))
    assert judged.values == pytest.approx([value], abs=1e-12, nan_ok=True)


@pytest.mark.parametrize(
    "preference", [3, -2, 0.5, 2.0000001, 0.999, "better", "m", True, False, [2], {}, "inf", "1,5", 10**400]
)
def test_any_other_value_is_refused_with_its_file_row_field_and_value(tmp_path: Path, preference: object) -> None:
    with pytest.raises(ConfigError) as error:
        judged_in(tmp_path, row(1), row(preference))
    assert f"{tmp_path}/annotations.json, record 2: preference is " in str(error.value)
    assert repr(preference)[:50] in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("output_2", 7), ("output_1", ["a"]), ("generator_2", {"name": "x"}), ("instruction", 3), ("glm_preference", 1.2),
     ("glm_preference", "x"), ("annotator", 4)],
)  # fmt: skip
def test_another_field_that_is_no_text_or_number_is_refused(tmp_path: Path, field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"record 2: {field} is "):
        judged_in(tmp_path, row(), {**row(), field: value})


def test_a_row_without_the_field_has_no_verdict_but_a_file_without_it_is_refused(tmp_path: Path) -> None:
    without = {"instruction": "Why?", "output": "So.", "generator": "m1"}
    assert math.isnan(judged_in(tmp_path, row(), {**row(), "preference": None}).values[1])
    assert math.isnan(judged_in(tmp_path, row(), {k: v for k, v in row().items() if k != "preference"}).values[1])
    with pytest.raises(ConfigError, match="no row has the field preference; the first one has instruction, output"):
        judged_in(tmp_path, without)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no annotations"), ("[]", "holds no annotations"), ("[1]", "a int, not an object"),
        ('[{"preference": 1}, 2]', "record 2: a int"), ('{"preference": 1}\nnot json\n', "line 2: bad json"),
        ('[{"preference": 1}, {"preference"', "archive truncated"), (",win_rate\nm1,50\n", "bad json"),
    ],
)  # fmt: skip
def test_a_file_that_holds_something_else_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_all([str(tmp_path / "a.json")])


def test_no_such_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file matches .*none\.json"):
        read_all([str(tmp_path / "none.json")])


def test_json_lines_gzip_and_parquet_hold_the_same_as_json(tmp_path: Path) -> None:
    rows = [
        {**one, "preference": None if one["preference"] != one["preference"] else one["preference"]}
        for one in annotations()
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps(rows, indent=2).encode()))
    (tmp_path / "wrapped.json").write_text(json.dumps({"data": rows}))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = [read_all([str(path)])[0] for path in sorted(tmp_path.iterdir())]
    assert len(found) == 5
    for judged in found[1:]:
        assert judged.prompts == found[0].prompts
        assert judged.values == pytest.approx(found[0].values, nan_ok=True)
        assert judged.characters == pytest.approx(found[0].characters)
        assert judged.groups == found[0].groups


@pytest.mark.s3
def test_files_on_s3_are_read_by_glob(s3_bucket: str) -> None:
    for model in ("m1", "m2"):
        uri = storage.join(s3_bucket, "results", model, "annotations.json")
        storage.write_bytes(uri, json.dumps([row(2, second=model)]).encode())
    assert [one.model for one in read_all([storage.join(s3_bucket, "results/*/annotations.json")])] == ["m1", "m2"]
