"""Several processes that train one model."""

from sb3_dreamer.common.distributed.ranks import RankLostError

__all__ = ["RankLostError"]
