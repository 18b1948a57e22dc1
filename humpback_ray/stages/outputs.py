"""Output of a global step: tables one after another, or a directory of other files."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from humpback_ray import storage
from humpback_ray.stages.commits import Commit, DataFile
from humpback_ray.stages.ledger import Attempt, write_table
from humpback_ray.stages.tables import conform, drop_counts


class TableWriter:
    """Writes the tables of a global step one after another and counts their rows."""

    def __init__(self, attempt: Attempt, schema: pa.Schema) -> None:
        self.attempt, self.schema = attempt, schema
        self.files: list[DataFile] = []
        self.drops: Counter[str] = Counter()

    def write(self, table: pa.Table) -> None:
        """Write one table as one Parquet file of the attempt."""
        table = conform(table, self.schema)
        name = f"{self.attempt.directory}/{len(self.files):06d}.parquet"
        self.files.append(write_table(self.attempt.ledger, name, table))
        self.drops.update(drop_counts(table))

    def commit(self, extra: Mapping[str, Any] | None = None) -> Commit:
        """Return the commit of the tables written so far."""
        return self.attempt.describe(self.files, self.drops, extra=extra)


def upload_files(attempt: Attempt, local: Path) -> list[DataFile]:
    """Upload a directory of files that are not tables (a model, a web) as files of an attempt."""
    entries = storage.upload_directory(local, attempt.ledger.at(attempt.directory))
    return [DataFile(f"{attempt.directory}/{entry.name}", entry.bytes, entry.sha256) for entry in entries]
