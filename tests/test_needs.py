"""A worker's needs are expressed in Ray's names and in words, and fit the nodes that Ray would choose."""

import pytest

from humpback_ray.needs import Need
from humpback_ray.placement import PoolPlacement, TaskPlacement, TrainPlacement


@pytest.mark.parametrize(
    ("selector", "label", "fits"),
    [
        ("spot", "spot", True), ("spot", None, False), ("!spot", "spot", False), ("!spot", None, True),
        ("in(a, b)", "b", True), ("in(a, b)", "c", False), ("!in(a,b)", "b", False), ("!in(a,b)", "c", True),
    ],
)  # fmt: skip
def test_a_need_fits_nodes_by_their_labels(selector: str, label: str | None, fits: bool) -> None:
    need = Need(1, {"CPU": 1}, {"kind": selector})
    assert need.fits({"CPU": 1.0}, {"kind": label} if label else {}) is fits
    assert not need.fits({"CPU": 0.5}, {"kind": label} if label else {})


def test_a_placement_needs_what_one_worker_asks_for() -> None:
    labels = {"ray.io/market-type": "spot"}
    gpu: dict[str, float] = {"CPU": 2, "GPU": 0.5, "accelerator_type:H100": 0.001}
    pool = PoolPlacement(
        min_replicas=3, cpus_per_replica=2, gpus_per_replica=0.5, accelerator_type="H100", labels=labels
    )
    assert pool.need() == Need(3, gpu, labels)
    assert pool.need().words() == "2 CPUs and 0.5 GPUs (H100), ray.io/market-type=spot"
    train = TrainPlacement(workers=(2, 8), cpus_per_worker=2, gpus_per_worker=1, accelerator_type="H100")
    assert train.need() == Need(2, gpu | {"GPU": 1}, {})
    assert TaskPlacement(memory_bytes=10**9).need() == Need(1, {"CPU": 1, "memory": 10**9})
    assert TaskPlacement().need() == Need(1, {"CPU": 1}), "no GPU and no memory are asked for"
