"""Packaging of sb3_dreamer. Version ranges here are honest; tested pins live in ``constraints.txt``."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
# Files that Python reads when it starts go beside the package, where they make RL Zoo's commands know DreamerV3.
STARTUP = sorted((ROOT / "sb3_dreamer" / "zoo" / "startup").glob("*sb3_dreamer_zoo*"))
PRESETS = sorted((ROOT / "hyperparams").rglob("*.yml"))


class BuildWithZoo(build_py):
    """Adds the start-up files to wheels and editable installs, and the presets to wheels (a checkout has its own)."""

    def zoo_files(self):
        """:return: pairs of source and target"""
        editable = self.editable_mode
        root = Path(self.get_finalized_command("install").install_lib if editable else self.build_lib)
        pairs = [(path, root / path.name) for path in STARTUP]
        if not editable:
            pairs += [(path, root / "sb3_dreamer" / path.relative_to(ROOT)) for path in PRESETS]
        return pairs

    def run(self):
        super().run()
        for source, target in self.zoo_files():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)

    def get_outputs(self, include_bytecode=True):
        ours = [] if self.editable_mode else [str(target) for _, target in self.zoo_files()]
        return [*super().get_outputs(include_bytecode), *ours]

    def get_source_files(self):
        return [*super().get_source_files(), *(str(path.relative_to(ROOT)) for path in STARTUP + PRESETS)]


DOCS = ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"]
EXTRAS = {
    # The stock ``rl_zoo3`` command imports its plotting modules and ``requests``, which nothing else installs; ``enjoy``
    # draws classic control with pygame, ``record_video`` writes with moviepy.
    "zoo": ["rl_zoo3[plots]>=2.9,<3", "sb3-contrib>=2.9,<3", "requests", "gymnasium[classic-control]", "moviepy>=2.0"],
    "atari": ["ale-py>=0.10", "opencv-python"],
    # dm_control 1.0.50 breaks with MuJoCo 4.
    "dmc": ["shimmy[dm-control]>=2.0", "mujoco>=3.17,<4"],
    # Every environment that has a preset.
    "envs": [
        "ale-py>=0.10",
        "opencv-python",
        "gymnasium[box2d]",
        "mujoco>=3.17,<4",
        "imageio",
        "shimmy[dm-control]>=2.0",
        "minigrid>=3",
        "crafter",
        "flappy-bird-gymnasium",
        "highway-env",
        "gymnasium-robotics>=1.4",
        "popgym",
    ],
    "docs": DOCS,
    "tests": [
        *DOCS,
        "pytest>=8",
        "pytest-xdist",
        "ruff>=0.5.6",
        "black>=26.1,<27",
        "mypy>=1.9",
        "psutil",
        "hypothesis>=6",
        "ale-py>=0.10",
        "opencv-python",
    ],
}

setup(
    name="sb3_dreamer",
    cmdclass={"build_py": BuildWithZoo},
    version=(ROOT / "sb3_dreamer" / "version.txt").read_text().strip(),
    description="DreamerV3 as a first-class Stable-Baselines3 algorithm",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="MIT",
    keywords="reinforcement-learning model-based world-model dreamer dreamerv3 stable-baselines3 gymnasium pytorch",
    python_requires=">=3.10",
    packages=find_packages(include=["sb3_dreamer", "sb3_dreamer.*"]),
    package_data={"sb3_dreamer": ["py.typed", "version.txt", "published_curves.csv"]},
    install_requires=[
        "stable-baselines3>=2.9,<3",
        "gymnasium>=1.0,<2",
        "torch>=2.8,<3",
        "numpy>=1.24",
        "tensorboard>=2.9.1",
        "matplotlib",
        "pillow>=10.1",
        "pyyaml",
        "tqdm",
        "rich",
    ],
    extras_require=EXTRAS,
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
