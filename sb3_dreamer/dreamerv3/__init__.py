from sb3_dreamer.dreamerv3.dreamerv3 import DreamerV3
from sb3_dreamer.dreamerv3.policies import CnnPolicy, MlpPolicy, MultiInputPolicy

__all__ = ["CnnPolicy", "DreamerV3", "MlpPolicy", "MultiInputPolicy"]
