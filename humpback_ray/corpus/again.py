"""Cut segments again from their input files, to prove that none is lost and none occurs twice."""

from collections import Counter

from pydantic import TypeAdapter

from humpback_ray import storage
from humpback_ray.corpus.readers import Reader, reader_for
from humpback_ray.corpus.segments import SegmentRecipe, rows_of
from humpback_ray.stages.commits import Commit
from humpback_ray.stages.manifest import Manifest
from humpback_ray.stages.proof import Difference, EachFile
from humpback_ray.storage import InputFile


def refusal(manifest: Manifest) -> str:
    """Say why segments cannot be cut again; "" if they can."""
    cut, now = SegmentRecipe.model_validate(manifest.recipe["segments"]).version, SegmentRecipe().version
    return "" if cut == now else f"they are of version {cut} and this is version {now}, so they were not cut again"


def check_documents(manifest: Manifest, commit: Commit, file: InputFile, lost: frozenset[str]) -> int:
    """Check that cutting an input file again gives each document its rows and no others; return the document count.

    Args:
        manifest: of the stage.
        commit: of the file's shard.
        file: as the stage read it.
        lost: documents in quarantine, which are not cut again.

    Raises:
        Difference: a document has other rows.
    """
    recipe = SegmentRecipe.model_validate(manifest.recipe["segments"])
    readers = TypeAdapter(tuple[Reader, ...]).validate_python(manifest.recipe["readers"])
    expected: dict[str, Counter[str]] = {}
    with storage.reading(file) as stream:
        for row in rows_of(reader_for(file.uri, readers).read(stream), recipe, lost):
            expected.setdefault(row.document_id, Counter())[row.id] += 1
    found: dict[str, Counter[str]] = {}
    for data in commit.files:
        table = storage.read_table(storage.join(manifest.uri, data.name), ["document_id", "id"])
        for document, id_ in zip(table["document_id"].to_pylist(), table["id"].to_pylist(), strict=True):
            found.setdefault(document, Counter())[id_] += 1
    where = f"{manifest.uri}: shard {commit.shard} ({file.uri}): document"
    for document in expected.keys() | found.keys():
        if document in lost and document in found:
            continue
        cut, kept = expected.get(document, Counter()), found.get(document, Counter())
        if not kept:
            raise Difference(f"{where} {document} was read but has no row")
        if not cut:
            raise Difference(f"{where} {document} has rows but is not in the file")
        if cut != kept:
            lost_rows, surplus = (cut - kept).total(), (kept - cut).total()
            raise Difference(
                f"{where} {document} has {kept.total()} rows but gives {cut.total()} when cut again: {lost_rows} are "
                f"lost, {surplus} too many"
            )
    return len(expected)


CUT_AGAIN = EachFile(check_documents, refusal)
