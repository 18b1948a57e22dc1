"""What a Hub id stands for where a directory or a file is wanted, and the command that fetches it.

Nothing is downloaded here: a run reads what is on disk or in a bucket, so that it computes the same tomorrow.
"""

import os
import re

from humpback_ray.config import ConfigError

_HUB = re.compile(r"(?:hf://|https?://(?:www\.)?(?:huggingface\.co|hf\.co)/)(?:datasets/)?", re.IGNORECASE)
_FILE = re.compile(r".*\.(jsonl?|gz|bz2|zst|xz|warc|parquet|arrow|csv|txt|html?|pdf)", re.IGNORECASE)
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def refuse_model(field: str, value: str) -> None:
    """Refuse a Hub id, or a local directory that is not there, where a model's directory is wanted.

    Raises:
        ConfigError: saying how the model is fetched; `field` is the configuration key to blame.
    """
    if (name := _hub_id(value)) is not None:
        target = f"models/{name.rpartition('/')[2]}"
        raise ConfigError(
            f"{field}: {value} is a Hub id, and a directory or an s3:// URI is wanted; `hf download {name} --local-dir "
            f"{target}` fetches it, then set {field}={target} (for a cluster, copy it to a bucket and name that)"
        )
    if "://" not in value and not os.path.exists(os.path.expanduser(value)):
        raise ConfigError(
            f"{field}: {value} is no model directory: there is none of that name; `hf download ORGANIZATION/NAME "
            f"--local-dir {value}` fetches a model of the Hub into it"
        )


def refuse_dataset(field: str, value: str) -> None:
    """Refuse a Hub id where files are wanted.

    Raises:
        ConfigError: saying how the data set is fetched; `field` is the configuration key to blame.
    """
    if (name := _hub_id(value)) is not None:
        target = f"data/{name.rpartition('/')[2]}"
        raise ConfigError(
            f"{field}: {value} is a Hub id, and files are wanted; `hf download {name} --repo-type dataset --local-dir "
            f"{target}` fetches the data set, then name its files in {field}"
        )


def _hub_id(value: str) -> str | None:
    """Return the ORGANIZATION/NAME that a value spells, unless it is a path that is there or whose folder is."""
    told = _HUB.match(value)
    name = "/".join(value[told.end() if told else 0 :].split("/")[:2])
    if told:
        return name if _ID.fullmatch(name) else None
    known = {"models", "data", "out"}  # folders of this project, for which what is missing is a path
    first = value.partition("/")[0]
    is_path = os.path.exists(value) or _FILE.fullmatch(value) is not None or os.path.isdir(first) or first in known
    return name if _ID.fullmatch(value) and not is_path else None
