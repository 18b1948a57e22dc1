"""The settings of PyTorch's allocators that training workers start with."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from humpback_ray.stages import warm


def test_the_installed_pytorch_knows_every_setting_of_its_allocators() -> None:
    """A build without CUDA accepts unknown ones, so look at the names in its library."""
    spec = find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    library = next(Path(spec.origin).parent.glob("lib/libc10.*")).read_bytes()
    ((variable, settings),) = warm.ALLOCATOR.items()
    assert variable.encode() in library
    assert [name for name in re.findall(r"(\w+):", settings) if name.encode() not in library] == []


def test_training_workers_get_them_with_and_without_warm_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert warm.training_environment() == {"env_vars": warm.ALLOCATOR}
    asked: list[str] = []

    class Raylet:
        def prestart(self, job_id: bytes, environment: str, keep_s: int) -> None:
            asked.append(environment)

    raylet: Any = Raylet()
    memory = type("Memory", (), {"available": 100 * warm.PROCESS_BYTES})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(warm, "_reserve", warm.Reserve(raylet, b""))
    warm.took(training_workers=1)
    worker = asked[-1]
    for name, value in warm.training_environment()["env_vars"].items():
        assert f'"{name}":"{value}"' in worker
    assert warm.ALLOCATOR.items() <= warm.training_environment()["env_vars"].items()
    assert "ALLOC_CONF" not in str(warm.pool_environment())
