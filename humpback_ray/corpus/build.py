"""The corpus: web pages are cut into segments shard by shard, then exact duplicates are removed across all shards.

`segments` records every fate: a row per segment, and one for each document without segments. `corpus` has a row for
every segment kept there: kept again, or dropped as a duplicate.
"""

import itertools
from collections.abc import Sequence

import pyarrow as pa
from pydantic import Field

from humpback_ray.config import Config
from humpback_ray.corpus.dedup import duplicates
from humpback_ray.corpus.readers import Reader, default_readers, reader_for
from humpback_ray.corpus.segments import Segmenter, SegmentRecipe
from humpback_ray.placement import PoolPlacement, TaskPlacement
from humpback_ray.records import SEGMENT, record_id
from humpback_ray.stages.commits import Commit
from humpback_ray.stages.enough import keys_in, refuse_few
from humpback_ray.stages.ledger import Attempt
from humpback_ray.stages.manifest import Manifest
from humpback_ray.stages.outputs import TableWriter
from humpback_ray.stages.stage import Place, Stage
from humpback_ray.storage.inventory import Inventory


class DuplicatesRecipe(Config):
    """Definition of a duplicate: the same text after normalization. Near-duplicates are not removed here."""

    version: int = Field(default=1, ge=1)
    """Raised by hand when the meaning of duplicates changes."""


class CorpusRecipe(Config):
    """Which web pages become which segments."""

    inputs: list[str] | None = None
    """Paths, directories, globs or s3:// URIs of WARC, WET, JSONL and Parquet files, compressed or not; None: the
    sample's web."""

    readers: tuple[Reader, ...] = Field(default_factory=default_readers)
    """A file is read by the first reader whose suffix matches."""

    min_kept: int = Field(default=1, ge=0)
    """Fewer kept segments than this, before or after duplicates are removed, stop the run. Not hashed."""

    segments: SegmentRecipe = SegmentRecipe()
    duplicates: DuplicatesRecipe = DuplicatesRecipe()


class CorpusConfig(Config):
    """The `segments` and `corpus` stages."""

    recipe: CorpusRecipe = Field(default_factory=CorpusRecipe)
    placement: PoolPlacement = PoolPlacement(shards_in_flight=1)
    """Extraction is plain CPU work: more replicas help, more shards in flight do not."""

    duplicates_placement: TaskPlacement = TaskPlacement()

    def check_files(self, files: Inventory) -> None:
        """Raise ConfigError if no reader takes one of the input files."""
        for file in files.files:
            reader_for(file.uri, self.recipe.readers)


def make_segments(config: CorpusConfig, files: Inventory, place: Place, pilot: float | None = None) -> Manifest:
    """Cut every document of the input files into segments; a pilot cuts only its share of the documents.

    Raises:
        StageFailed: fewer segments than `min_kept` were kept.
    """
    if pilot is not None:
        config, files = sampled(config, files, pilot)
    recipe = config.recipe
    identity = {
        "readers": [reader.model_dump(mode="json") for reader in recipe.readers],
        "segments": recipe.segments.identity(),
    }
    stage = Stage(place, identity, {"files": files}, SEGMENT)
    made = stage.run(Segmenter, (recipe.segments, recipe.readers), config.placement, files)
    refuse_few(made, recipe.min_kept, "corpus.recipe.min_kept", lambda: keys_in(files.files))
    return made


def sampled(config: CorpusConfig, files: Inventory, share: float) -> tuple[CorpusConfig, Inventory]:
    """Return the configuration and the files of a pilot that takes a share of the corpus.

    Files are taken in the order of a hash of their names until they hold that share of the bytes. Then documents are
    sampled from them down to the share, so one large file is enough for a small pilot.
    """
    order = sorted(files.files, key=lambda file: record_id("pilot", file.name))
    wanted = share * sum(file.bytes for file in order)
    before = itertools.accumulate((file.bytes for file in order), initial=0)
    taken = {file for file, held in zip(order, before, strict=False) if held < wanted or not held}
    documents = min(1.0, wanted / max(sum(file.bytes for file in taken), 1))
    segments = config.recipe.segments.model_copy(update={"sample_share": documents})
    recipe = config.recipe.model_copy(update={"segments": segments})
    chosen = Inventory(tuple(file for file in files.files if file in taken))
    return config.model_copy(update={"recipe": recipe}), chosen


def make_corpus(config: CorpusConfig, segments: Manifest, place: Place) -> Manifest:
    """Keep one of all segments with the same normalized text.

    Raises:
        StageFailed: fewer segments than `min_kept` came in or were kept.
    """
    refuse_few(segments, config.recipe.min_kept, "corpus.recipe.min_kept", str)
    stage = Stage(place, config.recipe.duplicates, {"segments": segments}, SEGMENT, ids_of="segments")
    made = stage.once(remove_duplicates, (segments,), config.duplicates_placement)
    refuse_few(made, config.recipe.min_kept, "corpus.recipe.min_kept", str)
    return made


def remove_duplicates(attempt: Attempt, segments: Manifest) -> Commit:
    """Decide by ids and hashes alone, then copy the kept segments table by table, each with its fate."""
    keys = list(segments.tables(["id", "text_hash"]))
    empty = pa.schema([SEGMENT.field("id"), SEGMENT.field("text_hash")]).empty_table()
    together = pa.concat_tables([empty, *keys])
    reasons = duplicates(together["id"], together["text_hash"])
    writer, first = TableWriter(attempt, SEGMENT), 0
    for table in segments.tables():
        writer.write(dropped(table, reasons.slice(first, table.num_rows), ["text"]))
        first += table.num_rows
    return writer.commit()


def dropped(table: pa.Table, reasons: pa.Array, blank: Sequence[str]) -> pa.Table:
    """Set the drop reasons of a table's rows, and blank the named text columns of rows that have one."""
    import pyarrow.compute as pc

    table = table.set_column(table.column_names.index("drop_reason"), "drop_reason", reasons.cast(pa.string()))
    kept = table["drop_reason"].is_null()
    for name in blank:
        table = table.set_column(
            table.column_names.index(name), name, pc.call_function("if_else", [kept, table[name], pa.scalar("")])
        )
    return table
