"""The errors that storage raises, and how to say one in a line."""


class StorageError(OSError):
    """Storage answered something that the caller cannot act on; the message says which URI and what to do."""


class NoLinks(StorageError):
    """A local file system does not make hard links; the message says what to use instead."""


class Damaged(StorageError):
    """The content of a file is not what was recorded of it."""


class InputChanged(Damaged):
    """A file from outside is no longer the one that the run took stock of."""


def words(error: OSError) -> str:
    """Return an error as one line: a storage error's message alone, any other with the file's name."""
    said = error.strerror if isinstance(error, StorageError) and error.strerror else error
    return " ".join(str(said).split())
