"""Callbacks that stop a run or call a function at a given step."""

from typing import Any

from stable_baselines3.common.callbacks import BaseCallback


class StopAt(BaseCallback):
    """Stops, or raises, at the n-th call of ``env.step``."""

    def __init__(self, n: int, error: type[BaseException] | None = None):
        super().__init__()
        self.n, self.error = n, error

    def _on_step(self) -> bool:
        if self.n_calls == self.n and self.error is not None:
            raise self.error
        return self.n_calls != self.n


class CallAt(BaseCallback):
    """Calls functions of the model: ``step_6`` after 6 environment steps, ``step_0`` when training starts."""

    def __init__(self, **functions: Any):
        super().__init__()
        self.functions = {int(name.removeprefix("step_")): function for name, function in functions.items()}

    def _on_training_start(self) -> None:
        self._call(0)

    def _on_step(self) -> bool:
        return self._call(self.num_timesteps) is not False

    def _call(self, step: int) -> Any:
        return self.functions.get(step, lambda model: None)(self.model)
