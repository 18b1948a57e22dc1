"""Ray on this machine alone, for a job that does not join a cluster: check the run's placements, then start Ray."""

import logging
import os
import tempfile
from collections.abc import Iterator, Mapping

from humpback_ray.config import Config, ConfigError
from humpback_ray.placement import PoolPlacement, TaskPlacement, TrainPlacement
from humpback_ray.runconfig import RunConfig
from humpback_ray.stages import warm

LOCAL_RAY = {
    **warm.VARIABLES,
    "RAY_worker_niceness": "0",  # at Ray's 15, another busy process leaves a run a thirtieth of a core
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # this machine is not preempted while its own driver runs
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how long the end of a training may go unnoticed
}
"""Environment of a Ray that a job starts on its own machine."""


def start_local_ray(config: RunConfig, trains: bool = True) -> None:
    """Start Ray on this machine, and warm processes for a pool and, if the job trains, for a training.

    Raises:
        ConfigError: this machine has less than a placement asks for, so work would wait forever.
    """
    import ray

    check_directories()
    for name, value in LOCAL_RAY.items():
        os.environ.setdefault(name, value)
    cpus = max(os.cpu_count() or 1, 2)  # the demo asks for two; on one core they take turns
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    check_local(config, {"CPU": cpus, "GPU": ray.cluster_resources().get("GPU", 0)})
    warm.keep(actors=1, training_workers=config.train.placement.least_and_most[0] if trains else 0)


SOCKET_BYTES = 107
"""The longest path of a Unix socket."""


def check_directories() -> None:
    """Check that Ray can start with this machine's temporary and home directories.

    Raises:
        ConfigError: one of them cannot be written to, or its path is too long for Ray's sockets.
    """
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), "TMPDIR")
    room, home = os.environ.get(name) or "/tmp", os.path.expanduser("~")
    for variable, directory in ((name, room), ("HOME", home if os.path.isdir(home) else room)):
        try:
            with tempfile.TemporaryFile(dir=directory):
                pass
        except OSError as error:
            raise ConfigError(
                f"{directory} ({variable}) cannot be written to: {error.strerror}; set {variable} to another one"
            ) from error
    longest = SOCKET_BYTES - len(f"/ray/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store")
    if len(os.fsencode(room)) > longest:
        raise ConfigError(
            f"the path {room} ({name}) is {len(os.fsencode(room))} bytes long; it may have at most {longest}, because "
            f"Ray's sockets in it must have paths of at most {SOCKET_BYTES} bytes; set RAY_TMPDIR to a shorter path"
        )


def check_local(config: RunConfig, have: Mapping[str, float]) -> None:
    """Refuse a placement that this machine alone cannot fulfill; work would wait forever.

    Raises:
        ConfigError: it asks for more CPUs or GPUs than this machine has, or for labels.
    """
    for field, placement in placements(config):
        needs = placement.needs()
        for name in [name for name, count in needs.items() if count > have[name]]:
            raise ConfigError(f"{field} asks for {needs[name]:g} {name}s at once; this machine has {have[name]:g}")
        if placement.labels:
            labels = ", ".join(f"{name}={value}" for name, value in placement.labels.items())
            raise ConfigError(
                f"{field}.labels asks for nodes with {labels}, but Ray started on this machine has no labels; submit "
                "to a cluster that has such nodes, or remove the labels"
            )


def placements(section: Config, path: str = "") -> Iterator[tuple[str, PoolPlacement | TaskPlacement | TrainPlacement]]:
    """Yield every placement of a configuration with its key."""
    for name in type(section).model_fields:
        value, key = getattr(section, name), f"{path}.{name}".lstrip(".")
        if isinstance(value, PoolPlacement | TaskPlacement | TrainPlacement):
            yield key, value
        elif isinstance(value, Config):
            yield from placements(value, key)
