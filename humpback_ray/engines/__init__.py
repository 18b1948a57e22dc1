"""Who generates text: a closed union on `kind`. vLLM joins it through the same protocol (`base.py`)."""

from typing import Annotated

from pydantic import Field

from humpback_ray.engines.base import Completion, Engine, Request, generate_all
from humpback_ray.engines.echo import EchoEngine
from humpback_ray.engines.transformers import TransformersEngine

EngineConfig = Annotated[TransformersEngine | EchoEngine, Field(discriminator="kind")]

__all__ = ["Completion", "EchoEngine", "Engine", "EngineConfig", "Request", "TransformersEngine", "generate_all"]
