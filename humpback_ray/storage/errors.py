"""The errors that storage raises, and how to write one in a line."""


class StorageError(OSError):
    """Storage failed in a way that the caller cannot handle; the message names the URI and says what to do."""


class NoLinks(StorageError):
    """A local file system does not support hard links; the message says what to use instead."""


class Damaged(StorageError):
    """The content of a file differs from what was recorded."""


class InputChanged(Damaged):
    """An external file is no longer the one that the run recorded."""


def words(error: OSError) -> str:
    """Return an error as one line: a storage error's message alone, any other with the file's name."""
    said = error.strerror if isinstance(error, StorageError) and error.strerror else error
    return " ".join(str(said).split())
