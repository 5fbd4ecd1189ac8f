"""Packaging of sb3_dreamer. Version ranges here are honest; tested pins live in ``constraints.txt``."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

EXTRAS = {
    # The stock ``rl_zoo3`` command imports its plotting modules and ``requests``, which nothing else installs.
    "zoo": ["rl_zoo3[plots]>=2.9,<3", "sb3-contrib>=2.9,<3", "requests"],
    "atari": ["ale-py>=0.10", "opencv-python"],
    "dmc": ["shimmy[dm-control]>=2.0"],
    "video": ["imageio[ffmpeg]", "moviepy>=2.0"],
    "wandb": ["wandb"],
    "docs": ["mkdocs", "mkdocs-material"],
    "tests": ["pytest>=8", "pytest-xdist", "ruff>=0.5.6", "black>=26.1,<27", "mypy>=1.9", "psutil", "hypothesis>=6"],
}

setup(
    name="sb3_dreamer",
    version=(ROOT / "sb3_dreamer" / "version.txt").read_text().strip(),
    description="DreamerV3 as a first-class Stable-Baselines3 algorithm",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="MIT",
    keywords="reinforcement-learning model-based world-model dreamer dreamerv3 stable-baselines3 gymnasium pytorch",
    python_requires=">=3.10",
    packages=find_packages(include=["sb3_dreamer", "sb3_dreamer.*"]),
    package_data={"sb3_dreamer": ["py.typed", "version.txt"]},
    install_requires=[
        "stable-baselines3>=2.9,<3",
        "gymnasium>=1.0,<2",
        "torch>=2.8,<3",
        "numpy>=1.24",
        "tensorboard>=2.9.1",
        "tqdm",
        "rich",
    ],
    extras_require=EXTRAS,
    classifiers=[
        "License :: OSI Approved :: MIT License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
