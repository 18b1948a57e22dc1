"""A Hub id where a directory or files are expected is refused with the command that fetches it."""

from pathlib import Path

import pytest

from humpback_ray.config import ConfigError
from humpback_ray.hub.ids import refuse_dataset, refuse_model


@pytest.mark.parametrize(
    "value",
    [
        "meta-llama/Llama-3.1-8B",
        "hf://meta-llama/Llama-3.1-8B",
        "https://huggingface.co/meta-llama/Llama-3.1-8B",
        "https://huggingface.co/meta-llama/Llama-3.1-8B/tree/main",
    ],
)
@pytest.mark.parametrize("field", ["base_model", "rewrite.model"])
def test_a_hub_id_is_refused_with_the_command_that_fetches_the_model(field: str, value: str) -> None:
    with pytest.raises(ConfigError) as error:
        refuse_model(field, value)
    said = str(error.value)
    assert said.startswith(f"{field}: {value} is a Hub id")
    assert "`hf download meta-llama/Llama-3.1-8B --local-dir models/Llama-3.1-8B`" in said
    assert "\n" not in said


def test_a_data_set_of_the_hub_is_refused_likewise() -> None:
    for value in ("OpenAssistant/oasst1", "https://huggingface.co/datasets/OpenAssistant/oasst1"):
        with pytest.raises(
            ConfigError, match="`hf download OpenAssistant/oasst1 --repo-type dataset --local-dir data/"
        ):
            refuse_dataset("seed.recipe.inputs", value)


def test_a_path_that_is_missing_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    for value in ("models/llama-7b", "weights/llama", str(tmp_path / "nowhere")):
        with pytest.raises(
            ConfigError, match=f"{value} is not a model directory: .* --local-dir {value}` fetches a model"
        ):
            refuse_model("base_model", value)


def test_what_is_there_or_in_a_bucket_is_left_to_whoever_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "meta-llama/Llama").mkdir(parents=True)
    for value in ("meta-llama/Llama", "s3://bucket/llama", str(tmp_path)):
        refuse_model("base_model", value)
    for value in (
        "pages/*.warc.gz",
        "data/trees.jsonl",
        "s3://bucket/web",
        "trees.jsonl.gz",
        "pages/a.warc.gz",
        "nowhere/b.jsonl",
    ):
        refuse_dataset("corpus.recipe.inputs", value)
