"""One golden file: its arrays, and which of them were read or compared."""

import numpy as np
import torch as th


class Golden:
    """The arrays of one file, with a record of which were read as inputs and which were compared."""

    def __init__(self, name: str, arrays: dict[str, np.ndarray]):
        self.name = name
        self.arrays = arrays
        self.inputs: set[str] = set()
        self.outputs: set[str] = set()
        self.read: set[str] = set()  # arrays that our numbers may depend on
        self.ours: dict[str, tuple[np.ndarray, float, float]] = {}  # our numbers and their tolerances

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def names(self, prefix: str) -> list[str]:
        return [name for name in self.arrays if name.startswith(prefix)]

    def input(self, name: str) -> np.ndarray:
        self.inputs.add(name)
        self.read.add(name)
        return self.arrays[name]

    def tensor(self, name: str) -> th.Tensor:
        return th.as_tensor(self.input(name))

    def with_prefix(self, prefix: str) -> dict[str, np.ndarray]:
        return {name.removeprefix(prefix): self.input(name) for name in self.names(prefix)}

    def expect(self, name: str, ours: th.Tensor | np.ndarray | float, rtol: float = 1e-4, atol: float = 1e-5) -> None:
        """Fail unless |ours - golden| <= atol + rtol * max|golden|, entry by entry."""
        self.outputs.add(name)
        self.inputs.discard(name)  # teacher-forced samples are both
        value = np.asarray(ours.detach() if isinstance(ours, th.Tensor) else ours, dtype=np.float64)
        self.ours[name] = value, rtol, atol
        self.compare(name, self.arrays[name])

    def compare(self, name: str, array: np.ndarray) -> None:
        """Compare ``array`` with our numbers for ``name``."""
        ours, rtol, atol = self.ours[name]
        golden = np.asarray(array, dtype=np.float64)
        assert ours.shape == golden.shape, f"{self.name}: {name} has shape {ours.shape} instead of {golden.shape}"
        error = np.abs(ours - golden)
        limit = atol + rtol * np.abs(golden).max(initial=0.0)
        assert np.all(error <= limit), f"{self.name}: {name} is off by {error.max():.3g}, allowed {limit:.3g}"

    def expect_where(self, name: str, ours: th.Tensor, limit: np.ndarray) -> None:
        """Fail unless |ours - golden| <= limit, entry by entry."""
        self.outputs.add(name)
        error = np.abs(ours.detach().double().numpy() - self.arrays[name])
        assert np.all(error <= limit), f"{self.name}: {name} is off by {(error - limit).max():.3g} more than allowed"

    def finish(self) -> None:
        """Fail unless every array was read or compared."""
        untouched = set(self.arrays) - self.inputs - self.outputs
        assert not untouched, f"{self.name}: arrays that no check uses: {sorted(untouched)}"
