"""A finished model is copied out of its run, every file is checked against its commit; the job says how to serve it."""

import json
from pathlib import Path

import pytest

from humpback_ray import storage
from humpback_ray.stages.commits import Commit
from humpback_ray.stages.ledger import Attempt
from humpback_ray.stages.outputs import upload_files
from humpback_ray.stages.stage import Place, Stage
from jobs.export import main

FILES = {"config.json": b"{}", "model-00001-of-00001.safetensors": b"w" * 5000, "adapter/adapter_config.json": b"[]"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The finished stage `models/m0` of a run."""
    for name, content in FILES.items():
        (tmp_path / "made" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "made" / name).write_bytes(content)

    def work(attempt: Attempt) -> Commit:
        extra = {"model": attempt.directory}
        return attempt.describe(upload_files(attempt, tmp_path / "made"), {}, extra=extra)

    stage = tmp_path / "run" / "models" / "m0"
    Stage(Place("models/m0", str(stage), "test"), {}, {}).leased(work)
    return stage


def held(directory: str) -> dict[str, bytes]:
    return {name: storage.read_bytes(storage.join(directory, name)) for name in storage.list_names(directory)}


def test_a_model_is_copied_completely_and_nothing_is_copied_a_second_time(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = str(tmp_path / "out")
    assert main([str(model), target]) == 0
    assert held(target) == FILES
    assert f"serve it: vllm serve {target}" in capsys.readouterr().out
    assert main([str(model), target]) == 0
    assert capsys.readouterr().out.count("already there") == len(FILES)
    Path(target, "config.json").write_bytes(b"[]")
    assert main([str(model), target]) == 0
    assert held(target) == FILES
    assert capsys.readouterr().out.count("already there") == len(FILES) - 1


@pytest.mark.s3
def test_a_model_is_copied_to_object_storage_and_back(model: Path, tmp_path: Path, s3_bucket: str) -> None:
    there = f"{s3_bucket}/{tmp_path.name}/m0"
    assert main([str(model), there]) == 0
    assert held(there) == FILES
    for name, content in FILES.items():
        storage.copy_file(f"{there}/{name}", str(tmp_path / "back" / name), storage.sha256_of(f"{there}/{name}"))
        assert (tmp_path / "back" / name).read_bytes() == content


def test_a_damaged_file_is_reported_and_does_not_appear(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (weights,) = model.rglob("*.safetensors")
    weights.write_bytes(b"v" * 5000)
    assert main([str(model), str(tmp_path / "out")]) == 1
    assert "was recorded; it was not copied" in capsys.readouterr().out
    assert not list((tmp_path / "out").glob("*.safetensors"))
    assert storage.listing(str(tmp_path / "out")) == [
        entry for entry in storage.listing(str(tmp_path / "out")) if not storage.is_temporary(entry.name)
    ]


def test_stages_without_a_model_and_directories_in_use_are_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(attempt: Attempt) -> Commit:
        return attempt.describe([], {})

    seed = tmp_path / "run" / "seed"
    Stage(Place("seed", str(seed), "test"), {}, {}).leased(work)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "model.safetensors").write_bytes(b"other")
    refused = {
        (str(seed), str(tmp_path / "out")): "is the stage seed, which does not make a model",
        (str(tmp_path / "run"), str(tmp_path / "out")): "is not a finished stage",
        (str(model), str(tmp_path / "used")): "holds model.safetensors, which is not a file of",
    }
    for arguments, said in refused.items():
        assert main([*arguments]) == 2
        assert said in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_weights_of_another_model_are_not_replaced(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out"
    assert main([str(model), str(target)]) == 0
    weights = target / "model-00001-of-00001.safetensors"
    weights.write_bytes(b"v" * 5000)
    (target / "config.json").unlink()
    assert main([str(model), str(target)]) == 2
    assert "is damaged or another model's" in capsys.readouterr().out
    assert weights.read_bytes() == b"v" * 5000
    assert not (target / "config.json").exists()


@pytest.mark.parametrize("name", ["data/all.1-abc/../../../x.txt", "../x", "/etc/passwd", "data//x", "data/./x"])
def test_a_manifest_that_names_a_file_outside_its_stage_is_refused(
    model: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((model / "manifest.json").read_text())
    manifest["commits"][0]["files"][0]["name"] = name
    (model / "manifest.json").write_text(json.dumps(manifest))
    (model.parent / "x.txt").write_text("evil")
    assert main([str(model), str(tmp_path / "deep/er/target")]) == 1
    assert f"the file name {name!r} leads out of the stage's directory" in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "deep").exists()
