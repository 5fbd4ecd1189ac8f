"""The golden files: where they are, read, and changed a little."""

import os
from pathlib import Path

import numpy as np

FOLDER = Path(os.environ.get("GOLDEN_DIR", Path(__file__).parent))
FILES = sorted(FOLDER.glob("*.npz"))


def load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def perturb(array: np.ndarray) -> np.ndarray:
    """Two percent more, zeros become 0.02; in flags, integers and one-hots one entry is flipped."""
    changed = array.copy()
    if array.dtype.kind in "iub":
        middle = changed.flat[array.size // 2]
        changed.flat[array.size // 2] = middle - 1 if middle > 0 else 1
    elif array.size > 1 and set(np.unique(array)) == {0.0, 1.0}:
        changed.flat[array.size // 2] = 1.0 - changed.flat[array.size // 2]
    else:
        changed = np.where(array == 0.0, np.asarray(0.02, array.dtype), array * np.asarray(1.02, array.dtype))
    return changed
