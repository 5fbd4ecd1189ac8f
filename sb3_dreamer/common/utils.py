"""Names that users import, or that files name, from before they moved."""

from sb3_dreamer.common.metrics import MetricAverager, UnstableTrainingError
from sb3_dreamer.common.schedules import PiecewiseSchedule, TrainRatio, make_schedule, warmup_factor

__all__ = ["MetricAverager", "PiecewiseSchedule", "TrainRatio", "UnstableTrainingError", "make_schedule", "warmup_factor"]
