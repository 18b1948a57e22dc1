import pytest

from humpback_ray.config import ConfigError
from humpback_ray.corpus.readers import JsonlReader, WarcReader, default_readers, reader_for


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("s3://bucket/CC-MAIN-1.warc.gz", WarcReader),
        ("/data/a.WARC", WarcReader),
        ("a.jsonl", JsonlReader),
        ("a.jsonl.gz", JsonlReader),
        ("a.warc.zst", WarcReader),
        ("CC-MAIN-1.warc.wet.gz", WarcReader),
        ("a.jsonl.zst", JsonlReader),
        ("a.parquet", JsonlReader),
    ],
)
def test_the_suffix_selects_the_reader(name: str, kind: type) -> None:
    assert isinstance(reader_for(name, default_readers()), kind)


def test_a_file_that_no_reader_takes_is_an_error_that_names_the_suffixes() -> None:
    with pytest.raises(ConfigError, match=r"a\.arc.*\.warc\.gz"):
        reader_for("a.arc", default_readers())
