"""Errors of a failed stage: a driver shows them as they are, without a traceback."""


class ShardExhausted(RuntimeError):
    """A shard was tried as often as its placement allows; the message holds its last error."""


class StageFailed(RuntimeError):
    """A stage cannot be finished; the message says why, with numbers."""
