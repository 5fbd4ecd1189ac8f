from sb3_dreamer.dreamerv3.dreamerv3 import DreamerV3
from sb3_dreamer.dreamerv3.policies import CnnPolicy, DreamerPolicy, MlpPolicy, MultiInputPolicy

__all__ = ["CnnPolicy", "DreamerPolicy", "DreamerV3", "MlpPolicy", "MultiInputPolicy"]
