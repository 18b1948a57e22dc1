"""Plan a run before anything starts: whether it fits, how long it takes, what it costs."""

from humpback_ray.operate.plan.build import Plan, StagePlan, TrainingPlan, base_shape, plan_run
from humpback_ray.operate.plan.measured import Measured, measured

__all__ = ["Measured", "Plan", "StagePlan", "TrainingPlan", "base_shape", "measured", "plan_run"]
