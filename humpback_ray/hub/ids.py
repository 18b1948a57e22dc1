"""Recognize a Hub id where a directory or a file is expected, and name the command that fetches it.

Nothing is downloaded here: a run reads only files on disk or in a bucket, so it computes the same tomorrow.
"""

import os
import re

from humpback_ray.config import ConfigError

_HUB = re.compile(r"(?:hf://|https?://(?:www\.)?(?:huggingface\.co|hf\.co)/)(?:datasets/)?", re.IGNORECASE)
_FILE = re.compile(r".*\.(jsonl?|gz|bz2|zst|xz|warc|parquet|arrow|csv|txt|html?|pdf)", re.IGNORECASE)
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def refuse_model(field: str, value: str) -> None:
    """Refuse a Hub id, or a local directory that does not exist, where a model directory is expected.

    Raises:
        ConfigError: says how to fetch the model; `field` is the configuration key to blame.
    """
    if (name := _hub_id(value)) is not None:
        target = f"models/{name.rpartition('/')[2]}"
        raise ConfigError(
            f"{field}: {value} is a Hub id, not a directory or an s3:// URI; `hf download {name} --local-dir {target}` "
            f"fetches it, then set {field}={target} (for a cluster, copy it to a bucket and name that)"
        )
    if "://" not in value and not os.path.exists(os.path.expanduser(value)):
        raise ConfigError(
            f"{field}: {value} is not a model directory: it does not exist; `hf download ORGANIZATION/NAME --local-dir "
            f"{value}` fetches a model from the Hub into it"
        )


def refuse_dataset(field: str, value: str) -> None:
    """Refuse a Hub id where files are expected.

    Raises:
        ConfigError: says how to fetch the data set; `field` is the configuration key to blame.
    """
    if (name := _hub_id(value)) is not None:
        target = f"data/{name.rpartition('/')[2]}"
        raise ConfigError(
            f"{field}: {value} is a Hub id, not a path or an s3:// URI; `hf download {name} --repo-type dataset "
            f"--local-dir {target}` fetches the data set, then name its files in {field}"
        )


def _hub_id(value: str) -> str | None:
    """Return the ORGANIZATION/NAME that a value spells, unless it is a path or its folder exists."""
    told = _HUB.match(value)
    name = "/".join(value[told.end() if told else 0 :].split("/")[:2])
    if told:
        return name if _ID.fullmatch(name) else None
    known = {"models", "data", "out"}  # folders of this project: a missing name under them is a path
    first = value.partition("/")[0]
    is_path = os.path.exists(value) or _FILE.fullmatch(value) is not None or os.path.isdir(first) or first in known
    return name if _ID.fullmatch(value) and not is_path else None
