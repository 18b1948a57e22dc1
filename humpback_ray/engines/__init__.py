"""Engines that generate text: a closed union on `kind`, behind one protocol (`base.py`)."""

from typing import Annotated

from pydantic import Field

from humpback_ray.engines.base import NO_REPLY, Completion, Engine, Request, generate_all
from humpback_ray.engines.echo import EchoEngine
from humpback_ray.engines.transformers import TransformersEngine
from humpback_ray.engines.vllm import VllmEngine

EngineConfig = Annotated[TransformersEngine | VllmEngine | EchoEngine, Field(discriminator="kind")]

__all__ = [
    "NO_REPLY", "Completion", "EchoEngine", "Engine", "EngineConfig", "Request", "TransformersEngine", "VllmEngine",
    "generate_all",
]  # fmt: skip
