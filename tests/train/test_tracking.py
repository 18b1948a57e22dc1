"""Reports of steps: Weights & Biases without a network and with its service down, and Ray's gauges."""

import time
import urllib.request
from pathlib import Path

import pytest

from humpback_ray.train.job import StepMetrics
from humpback_ray.train.tracking import WATCHED, Tracker, gauges
from tests.conftest import Said

STEP = StepMetrics(1, 2.5, 1e-4, 0.75, 100, 40, 0.5, mfu=0.4321, memory_bytes=123_456_789, padding_share=0.25)


def test_an_offline_run_is_written_without_a_network_and_kept(tmp_path: Path, said: Said) -> None:
    for attempt in ("first", "second"):
        said.records.clear()
        folder = tmp_path / attempt / "wandb"
        with Tracker("offline", "demo", "m0", str(folder)) as tracker:
            for step in range(1, 4):
                tracker(STEP.figures() | {"step": step, "validation_loss": 1.625 if step == 3 else None})
        # W&B parses Python; CPython 3.11 fails at that if another thread of this process parses at the same time.
        if not any("AST constructor recursion depth mismatch" in message for _, message in said.records):
            break
    assert not said.records
    (file,) = folder.glob("offline-run-*/run-*.wandb")
    held = file.read_bytes()
    for part in (b"demo", b"m0", b"output_tokens_per_s", b"0.4321", b"123456789", b"1.625"):
        assert part in held, part


def test_training_continues_with_a_warning_if_the_service_is_down(tmp_path: Path, said: Said) -> None:
    retries = {"x_graphql_retry_max": 1, "x_graphql_retry_wait_max_seconds": 0.1}
    away = {"base_url": "http://127.0.0.1:9", "api_key": "a" * 40, **retries}
    with Tracker("online", "demo", "m0", str(tmp_path), away) as tracker:
        started = time.monotonic()
        for step in range(1, 4):
            tracker(STEP.figures() | {"step": step})
        assert time.monotonic() - started < 1, "no step waits for the service"
    ((level, message),) = said.records
    assert level == "WARNING"
    assert message.startswith("m0: training continues, but is no longer tracked")


@pytest.mark.ray
def test_ray_serves_the_figures_of_the_last_step_by_run_and_model(local_ray: None) -> None:
    import ray

    gauges("demo", "m0")(STEP.figures())
    port = ray.nodes()[0]["MetricsExportPort"]
    deadline = time.monotonic() + 30
    line = "humpback_train_mfu{"
    while True:
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
        found = [text for text in page.splitlines() if line in text and not text.startswith("#")]
        if found:
            break
        assert time.monotonic() < deadline, "Ray's agent serves no such gauge"
        time.sleep(0.5)
    assert 'run="demo"' in found[0].lower()
    assert 'model="m0"' in found[0].lower()
    assert found[0].endswith(" 0.4321")
    assert {"loss", "mfu", "memory_bytes", "padding_share", "output_tokens_per_s"} <= set(WATCHED)
