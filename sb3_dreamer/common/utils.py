"""Names under which classes are found in files that were saved before they moved."""

from sb3_dreamer.common.schedules import PiecewiseSchedule, TrainRatio

__all__ = ["PiecewiseSchedule", "TrainRatio"]
