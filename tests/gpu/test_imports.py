"""Imports on a bare GPU machine: training, engines and plan need neither Ray nor the corpus's libraries."""

import subprocess
import sys
from pathlib import Path

from tests.gpu.check import ABSENT

REPOSITORY = Path(__file__).parents[2]

THERE = {
    "torch", "transformers", "accelerate", "safetensors", "peft", "pyarrow", "psutil", "numpy", "yaml", "jinja2",
    "pydantic", "pydantic_core", "annotated_types", "typing_inspection", "typing_extensions", "deepspeed",
    "regex",  # transformers needs it
}  # fmt: skip
"""Packages of a GPU machine (docs/gpu.md): torch and its companions, and the wheels that are copied there."""

IMPORT_ALL = f"""
import importlib, pkgutil, sys, traceback
sys.modules.update(dict.fromkeys({ABSENT!r}))

def foreign():
    found = [(name, getattr(module, "__file__", None) or "") for name, module in sys.modules.items()]
    return {{name.split(".")[0] for name, file in found if "site-packages" in file}}

before, failed = foreign() | {THERE!r}, []
for package in ("train", "engines", "operate.plan"):
    inside = pkgutil.walk_packages(["humpback_ray/" + package.replace(".", "/")], "humpback_ray." + package + ".")
    for name in ["humpback_ray." + package, *(found.name for found in inside)]:
        try:
            importlib.import_module(name)
        except ImportError as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            failed.append(f"{{name}}: {{error}} ({{place.filename}}:{{place.lineno}})")
        if others := foreign() - before:
            failed.append(f"{{name}}: imports {{', '.join(sorted(others))}}")
            before |= others
print(*failed, sep="\\n")
sys.exit(bool(failed))
"""
"""Imports every module of the three packages; prints those that fail or import other packages."""


def test_training_engines_and_plan_import_on_a_bare_gpu_machine() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"these modules need packages that a GPU machine lacks:\n{done.stdout}{done.stderr}"
