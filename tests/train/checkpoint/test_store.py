import dataclasses
import itertools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from humpback_ray import storage
from humpback_ray.train.checkpoint import store
from humpback_ray.train.checkpoint.contents import Contents, Incomplete
from humpback_ray.train.checkpoint.fragments import Fragment
from humpback_ray.train.job import StepMetrics, TrainingStopped
from tests.conftest import Said

ROW = StepMetrics(1, 2.5, 1e-5, 0.5, 10, 4, 0.1)
BAD_ROW = StepMetrics(2, math.nan, 1e-5, math.inf, 10, 4, 0.1, skipped=True, validation_loss=math.nan)
IDENTITY = {"model": "m0", "recipe": {"seed": 0, "betas": (0.9, 0.95)}}
SIZES = {"layer.weight": 10, "layer.bias": 4}
HALVES = {"layer.weight": [0, 6, 10], "layer.bias": [0, 0, 4]}
"""Where rank 0's part, rank 1's part and the parameter end; rank 0 has no part of the bias."""


def values(kind: str, name: str) -> Any:
    """Return three tensors per parameter; all elements differ."""
    import torch

    base = 100 * list(SIZES).index(name) + 1000 * ["weight", "exp_avg", "exp_avg_sq"].index(kind)
    return torch.arange(SIZES[name]).float() + base


def held(rank: int, ends: dict[str, list[int]], blank: bool = False) -> list[Fragment]:
    """Return a rank's fragments of both parameters, or empty ones of that size."""
    cuts = ((name, cut[rank], cut[rank + 1]) for name, cut in ends.items())
    kinds = ("weight", "exp_avg", "exp_avg_sq")
    made = [
        Fragment(name, low, {kind: values(kind, name)[low:high].clone() * (0 if blank else 1) for kind in kinds})
        for name, low, high in cuts
        if low < high
    ]
    return made


def history(steps: int) -> list[StepMetrics]:
    return [dataclasses.replace(ROW, step=step) for step in range(1, steps + 1)]


def contents(uri: Path | str) -> Contents:
    """Read a complete checkpoint."""
    return store.read(str(uri), {entry.name: entry.bytes for entry in storage.listing(str(uri))})


def newest(checkpoints: Path) -> str | None:
    found = store.newest(str(checkpoints))
    return found and found.uri


def write(target: Path | str, step: int = 1, ranks: tuple[int, ...] = (0, 1), workers: int = 2) -> str:
    """Write a checkpoint of two workers, or only the parts of some of them."""
    for rank in ranks:
        state = store.state_of(IDENTITY, history(step), workers)
        store.write(held(rank, HALVES), rank, str(target), state)
    return str(target)


def written(at: Path, attempt: str, step: int, ranks: tuple[int, ...] = (0, 1)) -> Path:
    return Path(write(at / "checkpoints" / attempt / f"step-{step:06d}-3fa9c1", step, ranks))


def test_a_complete_checkpoint_gives_its_steps_back(tmp_path: Path) -> None:
    found = contents(write(tmp_path))
    store.check_identity(found, IDENTITY)
    assert found.state.history == [ROW]
    assert found.state.step == 1


def test_a_skipped_step_may_have_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    store.write(held(0, HALVES), 0, str(tmp_path), store.state_of(IDENTITY, [ROW, BAD_ROW], 1))
    assert vars(contents(tmp_path).state.history[1]).items() >= {"gradient_norm": math.inf, "skipped": True}.items()


def test_another_recipe_is_refused_with_both_values(tmp_path: Path) -> None:
    with pytest.raises(TrainingStopped, match=r"recipe\.seed = 0 and this run has 7"):
        store.check_identity(contents(write(tmp_path)), IDENTITY | {"recipe": {"seed": 7, "betas": (0.9, 0.95)}})


def cuts(size: int) -> st.SearchStrategy[list[int]]:
    """Draw where the parts of up to four workers end; some are empty."""
    inner = st.lists(st.integers(0, size), max_size=3)
    return inner.map(lambda ends: [0, *sorted(ends), size])


def layouts() -> st.SearchStrategy[dict[str, list[int]]]:
    whole = st.fixed_dictionaries({name: cuts(size) for name, size in SIZES.items()})
    return whole.filter(lambda ends: len({len(cut) for cut in ends.values()}) == 1)


@given(before=layouts(), after=layouts(), part_bytes=st.sampled_from([1, 60, 1 << 30]))
def test_a_checkpoint_written_under_any_split_is_read_under_any_other(
    tmp_path_factory: pytest.TempPathFactory, before: dict[str, list[int]], after: dict[str, list[int]], part_bytes: int
) -> None:
    import torch

    uri = str(tmp_path_factory.mktemp("any"))
    workers = len(before["layer.bias"]) - 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "PART_BYTES", part_bytes)
        for rank in range(workers):
            store.write(held(rank, before), rank, uri, store.state_of(IDENTITY, [ROW], workers))
    for rank in range(len(after["layer.bias"]) - 1):
        mine = held(rank, after, blank=True)
        source = store.fetch(contents(uri), mine)
        assert source is not None
        assert source.problem(mine) is None
        source.fill(mine)
        for found, wanted in zip(mine, held(rank, after), strict=True):
            assert all(torch.equal(found.tensors[kind], wanted.tensors[kind]) for kind in wanted.tensors)


def problem(uri: Path, rank: int) -> str | None:
    """Return what a worker finds wrong with the files that it needs."""
    mine = held(rank, HALVES)
    source = store.fetch(contents(uri), mine)
    assert source is not None
    return source.problem(mine)


def test_a_worker_reports_damage_to_what_it_reads_and_leaves_other_files_alone(tmp_path: Path) -> None:
    write(tmp_path)
    name = "rank-00001-000.safetensors"
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1] + b"x")
    assert problem(tmp_path, 0) is None
    assert problem(tmp_path, 1) == f"{name} does not match its digest"
    assert store.altered(contents(tmp_path)) is None
    (tmp_path / "state.json").write_text((tmp_path / "state.json").read_text().replace("2.5", "2.4"))
    assert store.altered(contents(tmp_path)) == "state.json does not match its digest"


def test_elements_that_no_rank_has_written_are_reported(tmp_path: Path) -> None:
    write(tmp_path, ranks=(0,), workers=1)
    assert problem(tmp_path, 1) == "it has 0 of the elements 6 to 10 of layer.weight"


@pytest.mark.parametrize(
    ("spans", "said"),
    [
        ([("layer.weight", 0, 5)], r"has 6 elements of layer\.weight from 0 on, not 5"),
        ([("layer.weight", 1, 6)], "does not hold what its list says"),
        ([("layer.weight", 0, 6), ("layer.weight", 0, 6)], "it has 12 of the elements 0 to 6 of layer.weight"),
        ([("layer.bias", 0, 6)], "it has 0 of the elements 0 to 6 of layer.weight"),
        ([], "it has 0 of the elements 0 to 6 of layer.weight"),
    ],
)
def test_a_list_that_does_not_say_what_its_file_holds_is_reported(tmp_path: Path, spans: Any, said: str) -> None:
    path = Path(write(tmp_path)) / "rank-00000.json"
    listed = json.loads(path.read_text())
    listed["rank-00000-000.safetensors"]["fragments"] = spans
    path.write_text(json.dumps(listed))
    assert re.search(said, str(problem(tmp_path, 0)))


def test_a_run_resumes_from_the_complete_checkpoint_with_the_most_steps_of_any_attempt(tmp_path: Path) -> None:
    assert store.newest(str(tmp_path / "checkpoints")) is None
    made = [written(tmp_path, "0001", 4), written(tmp_path, "0001", 8), written(tmp_path, "0002", 6)]
    (tmp_path / "checkpoints/0003").mkdir()
    (tmp_path / "checkpoints/0003/progress.json").write_text("{}")
    assert newest(tmp_path / "checkpoints") == str(made[1])


@pytest.mark.parametrize(
    "harm",
    [
        lambda at: (at / "rank-00001.json").unlink(),
        lambda at: (at / "state.json").unlink(),
        lambda at: (at / "rank-00001-000.safetensors").unlink(),
        lambda at: (at / "rank-00001-000.safetensors").write_bytes(b""),
    ],
    ids=["no list", "no state", "no tensors", "few tensors"],
)
def test_a_partly_uploaded_checkpoint_is_ignored(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    sound = written(tmp_path, "0001", 4)
    harm(written(tmp_path, "0001", 8))
    written(tmp_path, "0002", 8, ranks=(0,))
    written(tmp_path, "0003", 8, ranks=(1,))
    assert newest(tmp_path / "checkpoints") == str(sound)


def changed(name: str, change: Callable[[Any], object]) -> Callable[[Path], None]:
    """Return a function that changes the JSON of a file of a checkpoint."""

    def harm(at: Path) -> None:
        value = json.loads((at / name).read_text())
        change(value)
        (at / name).write_text(json.dumps(value))

    return harm


def replaced(name: str, body: str | bytes) -> Callable[[Path], None]:
    def harm(at: Path) -> None:
        (at / name).write_bytes(body if isinstance(body, bytes) else body.encode())

    return harm


def cut_state(at: Path) -> None:
    (at / "state.json").write_bytes((at / "state.json").read_bytes()[:-9])


FILE = "rank-00001-000.safetensors"
LIST = "rank-00001.json"

HARMS: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty state": (replaced("state.json", ""), "state.json: Invalid JSON"),
    "cut state": (cut_state, "state.json: Invalid JSON"),
    "binary state": (replaced("state.json", b"\xff\xfe\x00"), "state.json: Invalid JSON"),
    "deep state": (replaced("state.json", "[" * 100_000), "state.json: Invalid JSON"),
    "a list as state": (replaced("state.json", "[1, 2]"), "state.json: the file: "),
    "null as state": (replaced("state.json", "null"), "state.json: the file: "),
    "no workers": (changed("state.json", lambda it: it.pop("workers")), "workers: Field required"),
    "0 workers": (changed("state.json", lambda it: it.update(workers=0)), "workers: .*greater than 0, not '0'"),
    "-1 workers": (changed("state.json", lambda it: it.update(workers=-1)), "workers: "),
    "x workers": (changed("state.json", lambda it: it.update(workers="x")), "workers: .*valid integer, not 'x'"),
    "'2' workers": (changed("state.json", lambda it: it.update(workers="2")), "workers: "),
    "true workers": (changed("state.json", lambda it: it.update(workers=True)), "workers: "),
    "2.0 workers": (changed("state.json", lambda it: it.update(workers=2.5)), "workers: "),
    "many workers": (changed("state.json", lambda it: it.update(workers=10**18)), "rank-00002.json is missing"),
    "endless workers": (changed("state.json", lambda it: it.update(workers=10**400)), "is missing|workers: "),
    "another step": (changed("state.json", lambda it: it.update(step=7)), "step is 7, but the directory is named st"),
    "identity of text": (changed("state.json", lambda it: it.update(identity="m0")), "identity: "),
    "an unknown field": (changed("state.json", lambda it: it.update(more=1)), "more: Extra inputs"),
    "history of text": (changed("state.json", lambda it: it.update(history="x")), "history: "),
    "history cut": (changed("state.json", lambda it: it["history"].pop()), "the 7 rows of history are not"),
    "history doubled": (changed("state.json", lambda it: it["history"][3].update(step=3)), "rows of history are not"),
    "a row of text": (changed("state.json", lambda it: it["history"].insert(0, "x")), r"history\.0: "),
    "unknown metric": (changed("state.json", lambda it: it["history"][2].update(odd=1)), r"history\.2\.odd: Unexp"),
    "no loss": (changed("state.json", lambda it: it["history"][2].pop("loss")), r"history\.2\.loss: "),
    "loss of text": (changed("state.json", lambda it: it["history"][2].update(loss="2.5")), r"history\.2\.loss: "),
    "NaN loss": (changed("state.json", lambda it: it["history"][2].update(loss=math.nan)), "loss of step 3 is nan"),
    "NaN tokens": (changed("state.json", lambda it: it["history"][2].update(tokens=math.nan)), r"history\.2\.tokens"),
    "empty list": (replaced(LIST, ""), "rank-00001.json: Invalid JSON"),
    "a list of lists": (replaced(LIST, "[[]]"), "rank-00001.json: the file: "),
    "an entry of text": (changed(LIST, lambda it: it.update({FILE: "x"})), "rank-00001.json: rank-00001-000"),
    "bytes as text": (changed(LIST, lambda it: it[FILE].update(bytes="9")), r"bytes: .*not '9'"),
    "NaN bytes": (changed(LIST, lambda it: it[FILE].update(bytes=math.nan)), "bytes: "),
    "negative bytes": (changed(LIST, lambda it: it[FILE].update(bytes=-9)), "bytes: "),
    "no digest": (changed(LIST, lambda it: it[FILE].pop("sha256")), "sha256: Field required"),
    "null digest": (changed(LIST, lambda it: it[FILE].update(sha256=None)), "sha256: "),
    "short digest": (changed(LIST, lambda it: it[FILE].update(sha256="abc")), "sha256: "),
    "fragments of text": (changed(LIST, lambda it: it[FILE].update(fragments="abc")), "fragments: "),
    "a pair as fragment": (changed(LIST, lambda it: it[FILE].update(fragments=[["a", 1]])), "fragments.0"),
    "a fragment of texts": (changed(LIST, lambda it: it[FILE].update(fragments=[["a", "0", "4"]])), "fragments.0"),
    "a fragment backwards": (changed(LIST, lambda it: it[FILE].update(fragments=[["a", 4, 2]])), "elements 4 to 2 of"),
    "a file elsewhere": (changed(LIST, lambda it: it.update({"../x": it.pop(FILE)})), "'../x' is not a file of"),
    "a file of another": (changed(LIST, lambda it: it.update({"rank-00000-000.safetensors": it.pop(FILE)})), "is not"),
    "no state listed": (changed("rank-00000.json", lambda it: it.pop("state.json")), "state.json is not in it"),
}


@pytest.mark.parametrize("kind", HARMS)
def test_a_checkpoint_whose_json_is_damaged_is_skipped_with_a_warning_that_says_why(
    tmp_path: Path, kind: str, said: Said
) -> None:
    sound, damaged = written(tmp_path, "0001", 4), written(tmp_path, "0001", 8)
    harm, words = HARMS[kind]
    harm(damaged)
    assert newest(tmp_path / "checkpoints") == str(sound)
    ((level, message),) = said.records
    assert level == "WARNING"
    assert message.startswith(f"ignoring checkpoint {damaged}, which is ")
    assert re.search(words, message), message
    store.prune(str(tmp_path / "checkpoints/0001"), keep=1)
    assert newest(tmp_path / "checkpoints") == str(sound), "a damaged one does not count"


def test_a_checkpoint_that_cannot_be_read_is_skipped_unless_it_is_the_only_one(tmp_path: Path, said: Said) -> None:
    unread = written(tmp_path, "0001", 8)
    (unread / "state.json").unlink()
    (unread / "state.json").symlink_to("/proc/self/mem")  # reading its first byte is an input/output error
    with pytest.raises(OSError, match="Input/output error"):
        newest(tmp_path / "checkpoints")
    sound = written(tmp_path, "0001", 4)
    said.records.clear()
    assert newest(tmp_path / "checkpoints") == str(sound)
    ((level, message),) = said.records
    assert level == "WARNING"
    assert re.fullmatch(rf"ignoring checkpoint {unread}, which cannot be read: .*Input/output error", message)


def test_a_checkpoint_with_wrong_bytes_does_not_count_as_complete_when_old_ones_are_deleted(tmp_path: Path) -> None:
    sound, wrong = written(tmp_path, "0001", 4), written(tmp_path, "0001", 8)
    written(tmp_path, "0001", 2)
    store.prune(str(tmp_path / "checkpoints/0001"), 1, [str(wrong)])
    assert sorted(path.name for path in sound.parent.iterdir() if any(path.iterdir())) == [sound.name, wrong.name]


def test_a_checkpoint_that_is_deleted_while_it_is_fetched_does_not_stop_the_run(tmp_path: Path) -> None:
    target = written(tmp_path, "0001", 4)
    found = contents(target)
    (target / "rank-00001-000.safetensors").unlink()
    assert store.fetch(found, held(1, HALVES)) is None
    listed = {path.name: path.stat().st_size for path in target.iterdir()}
    (target / "rank-00001.json").unlink()
    with pytest.raises(Incomplete, match=r"rank-00001\.json was deleted after the listing"):
        store.read(str(target), listed)


@pytest.mark.s3
def test_on_object_storage_too(tmp_path: Path, s3_bucket: str) -> None:
    import torch

    uri = f"{s3_bucket}/{tmp_path.name}/checkpoints"
    for step, ranks in ((4, (0, 1)), (6, (0, 1)), (8, (0, 1)), (10, (0,))):
        write(f"{uri}/0001/step-{step:06d}-3fa9c1", step, ranks)
    found = store.newest(uri)
    assert found is not None
    assert (found.uri, found.state.history) == (f"{uri}/0001/step-000008-3fa9c1", history(8))
    whole = {name: [0, size] for name, size in SIZES.items()}
    for _ in range(2):  # a deleted local copy is fetched again
        mine = held(0, whole, blank=True)
        source = store.fetch(found, mine)
        assert source is not None
        assert source.problem(mine) is None
        source.fill(mine)
        assert torch.equal(mine[0].tensors["exp_avg"], values("exp_avg", "layer.weight"))
        source.forget()
        assert not any(path.exists() for path in source.paths.values())
    store.prune(f"{uri}/0001", keep=1)
    assert {name.split("/")[1] for name in storage.list_names(uri)} == {"step-000008-3fa9c1", "step-000010-3fa9c1"}


def test_old_checkpoints_of_this_attempt_are_deleted_once_enough_newer_ones_are_complete(
    tmp_path: Path,
) -> None:
    def left() -> list[str]:
        names = {entry.name.rsplit("-", 1)[0] for entry in storage.listing(str(tmp_path / "checkpoints"))}
        return sorted({"/".join(name.split("/")[:2]).rsplit("-3fa9c1", 1)[0] for name in names})

    written(tmp_path, "0001", 2)
    for step, ranks in ((4, (0, 1)), (6, (1,)), (8, (0, 1)), (10, (0,))):
        written(tmp_path, "0002", step, ranks)
    mine = str(tmp_path / "checkpoints/0002")
    store.prune(mine, keep=2)
    assert left() == [
        "0001/step-000002", "0002/step-000004", "0002/step-000006", "0002/step-000008", "0002/step-000010"
    ]  # fmt: skip
    written(tmp_path, "0002", 10)
    store.prune(mine, keep=2)
    assert left() == ["0001/step-000002", "0002/step-000008", "0002/step-000010"]


def test_a_part_of_a_fragment_and_a_copy_of_it() -> None:
    (fragment,) = held(0, {"layer.weight": [3, 9]})
    part = fragment.part(1, 5)
    assert (part.start, part.stop, part.tensors["weight"].tolist()) == (3, 5, [3.0, 4.0])
    copy = fragment.on_host()
    part.tensors["weight"].zero_()
    assert (fragment.tensors["weight"][0], copy.tensors["weight"][0]) == (0.0, 3.0)
    assert copy.bytes == 3 * 6 * 4
    assert [low == high for low, high in itertools.pairwise(HALVES["layer.bias"])] == [True, False]
