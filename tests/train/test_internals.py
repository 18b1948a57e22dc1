"""Only the modules named for it use private parts of libraries, and a test fails when those parts move."""

from pathlib import Path

import humpback_ray.train
from tests.train.internals import moved, privates

TRAIN = Path(humpback_ray.train.__file__).parent
NAMED_FOR_THEM = {"ray_internals.py", "engine/deepspeed_internals.py", "engine/transformers_internals.py"}


def test_no_other_module_uses_private_parts_of_a_library() -> None:
    found = {str(path.relative_to(TRAIN)): privates(path) for path in TRAIN.rglob("*.py")}
    assert {name for name, used in found.items() if used} == NAMED_FOR_THEM, found


def test_private_parts_are_found_however_they_are_reached(tmp_path: Path) -> None:
    source = """
from ray.train.v2._internal.execution import context
from liger import _apply
class Mine:
    def run(self, model, row):
        return self._own, model._supports, getattr(model, "_ignored", None), model.x._mapping.y, row._replace(a=1)
"""
    (tmp_path / "m.py").write_text(source)
    assert privates(tmp_path / "m.py") == {"_internal", "_apply", "_supports", "_ignored", "_mapping"}


class Moved:
    """A class as in another version of a library."""

    kept = 1

    def step(self, group: int, closure: object = None) -> None:
        """Take a different first argument than before."""


def test_what_has_moved_is_named_with_both_versions() -> None:
    wanted = {"_gone": (), "kept": None, "step": ("number",)}
    gone, changed = moved("pytest", "0.19.8", Moved, wanted)
    assert gone.startswith("Moved._gone is gone from pytest ")
    assert gone.endswith(", while we were written against 0.19.8")
    assert changed.startswith("Moved.step takes ['group', 'closure'] in pytest ")
    assert changed.endswith("we pass ['number']")
    assert list(moved("pytest", "0.19.8", Moved(), {"kept": None, "step": ("group",)})) == []
