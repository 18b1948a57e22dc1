"""Rules of the package: modules import only those above them in the front's list; local paths need no S3 client."""

import ast
import re
import subprocess
import sys
from pathlib import Path

from humpback_ray import storage

ROOM = Path(storage.__file__).parent
LISTED = re.findall(r"^    (\w+)  ", storage.__doc__ or "", re.M)


def test_the_front_lists_every_module_and_none_imports_the_front_or_one_below() -> None:
    assert sorted(LISTED) == sorted(path.stem for path in ROOM.glob("*.py") if path.stem != "__init__")
    for number, name in enumerate(LISTED):
        for node in ast.walk(ast.parse((ROOM / f"{name}.py").read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
            for imported in (module, *names, *(f"{module}.{one}" for one in names)):
                assert imported != "humpback_ray.storage", f"{name} imports the front"
                found = re.fullmatch(r"humpback_ray\.storage\.(\w+)", imported)
                assert not found or found[1] in LISTED[:number], f"{name} imports {found[1]}, which is not above it"


LOCAL = """
import sys
from pathlib import Path
from humpback_ray import storage
from humpback_ray.storage.inventory import Hashes, resolve
root = sys.argv[1]
storage.check_writable(root)
storage.create(f"{root}/in/a", b"1")
storage.upload_directory(Path(root, "in"), f"{root}/out")
(file,) = resolve("inputs", [f"{root}/in"], Hashes(f"{root}/hashes.json")).files
with storage.reading(file) as stream:
    assert stream.read() == b"1"
assert storage.local_directory(storage.Directory(f"{root}/in", (file,))) == Path(root, "in")
assert storage.requests().total() == 0
print({"aiobotocore", "aiohttp", "botocore", "s3fs"} & set(sys.modules))
"""


def test_local_paths_import_nothing_of_s3(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOCAL, str(tmp_path)], capture_output=True, text=True, check=False, cwd=ROOM.parents[1]
    )
    assert (done.returncode, done.stdout) == (0, "set()\n"), done.stderr
