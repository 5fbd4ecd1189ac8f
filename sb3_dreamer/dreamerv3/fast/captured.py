"""The training update and the acting step, captured as CUDA graphs and replayed."""

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_dreamer.common.functional import clone_tensors, tensors_of
from sb3_dreamer.common.optimizers import LaProp
from sb3_dreamer.common.type_aliases import PolicyState, SequenceBatch
from sb3_dreamer.dreamerv3.fast.cuda_graph import Graph, capture_warm
from sb3_dreamer.dreamerv3.policies import DreamerPolicy
from sb3_dreamer.dreamerv3.update import TrainingUpdate, UpdateResult


class GraphCapture:
    """
    Captures functions for the shapes of their inputs, then replays their operations on the same memory. They are captured
    again if the shapes change, or if a tensor of their state has moved in memory (after ``.to()``, or after a file was loaded
    into the optimizer). If capturing fails, there is one warning, and the functions are called directly from then on.

    :param name: what is captured, for the warning
    :param functions: called one after another; the first one takes the inputs, nested tuples and dicts of tensors, and the
        result is that of the last one
    :param make_graph: makes a new graph
    :param state: returns the tensors that the functions read and write in addition to the inputs
    :param keeps_state: restore the values of the state after capturing; needed if the functions change it
    :param between: called after each replayed function but the last one; never captured
    """

    def __init__(
        self,
        name: str,
        functions: Sequence[Callable[..., Any]],
        make_graph: Callable[[], Graph],
        state: Callable[[], list[th.Tensor]],
        keeps_state: bool,
        between: Sequence[Callable[[], Any]] = (),
    ):
        assert len(between) == len(functions) - 1
        self.name = name
        self.functions = functions
        self.make_graph = make_graph
        self.state = state
        self.keeps_state = keeps_state
        self.between = between
        self.graphs: list[Graph] = []
        self.key: tuple[Any, ...] | None = None
        self.is_possible = True

    def prepare(
        self,
        inputs: tuple[Any, ...],
        before: Callable[[], None] = lambda: None,
        any_rank: Callable[[bool], bool] = bool,
    ) -> bool:
        """
        Capture the functions, unless they have been captured for such inputs already.

        :param inputs: inputs of the next call
        :param before: called before capturing
        :param any_rank: returns whether a flag is set on any rank; all capture and fall back together
        :return: whether the next call can be replayed
        """
        if self.is_possible and any_rank(not self.is_current(inputs)):
            failure = None
            try:
                before()
                self._capture(inputs)
            except Exception as error:
                failure = error
            if any_rank(failure is not None):
                self.drop()
                self.is_possible = False
                reason = repr(failure) if failure else "it failed on another rank"
                warnings.warn(f"Capturing {self.name} failed, continuing without (compile=False silences this): {reason}")
        return self.is_possible

    def is_current(self, inputs: tuple[Any, ...]) -> bool:
        """:return: whether the functions have been captured for such inputs, and no tensor has moved since"""
        return self.key is not None and self.key == self._key(inputs)

    def replay(self, inputs: tuple[Any, ...]) -> Any:
        """
        Run the captured functions.

        :param inputs: copied to the memory of the captured inputs
        :return: the result, valid until the next call
        """
        for mine, theirs in zip(tensors_of(self.inputs), tensors_of(inputs), strict=True):
            mine.copy_(theirs, non_blocking=True)
        for i, graph in enumerate(self.graphs):
            if i > 0:
                self.between[i - 1]()
            graph.replay()
        return self.result

    def drop(self) -> None:
        """Delete the graphs."""
        self.graphs, self.key, self.result = [], None, None

    def _key(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        shapes = [(tuple(tensor.shape), tensor.dtype) for tensor in tensors_of(inputs)]
        return tuple(shapes), tuple((tensor.data_ptr(), tensor.requires_grad) for tensor in self.state())

    def _capture(self, inputs: tuple[Any, ...]) -> None:
        self.inputs = clone_tensors(inputs)
        graph = self.make_graph()
        state = self.state() if self.keeps_state else []
        before = [tensor.detach().clone() for tensor in state]
        first, *others = self.functions
        try:
            self.graphs, self.result = capture_warm(graph, [lambda: first(*self.inputs), *others])
        finally:
            graph.synchronize()
            with th.no_grad():
                for tensor, kept in zip(state, before, strict=True):
                    tensor.copy_(kept)
        self.key = self._key(inputs)


class CapturedUpdate:
    """
    A training update that is captured at its first batch and replayed from then on. Capturing leaves parameters, optimizer
    and random state unchanged.

    :param update: the update to capture; its optimizer must be :class:`LaProp`
    :param make_graph: makes a new graph
    :param verbose: 1 prints how long capturing took
    """

    def __init__(self, update: TrainingUpdate, make_graph: Callable[[], Graph], verbose: int = 0):
        self.update = update
        self.verbose = verbose
        self.capture = GraphCapture("the training update", [update.run], make_graph, self.state, keeps_state=True)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the metrics, see :class:`TrainingUpdate`."""
        return self.update.metric_names

    @property
    def optimizer(self) -> LaProp:
        """Optimizer of the policy."""
        assert isinstance(self.update.policy.optimizer, LaProp)
        return self.update.policy.optimizer

    def __call__(self, batch: SequenceBatch) -> UpdateResult:
        """
        :param batch: B windows of T rows
        :return: result of the update, valid until the next call
        """
        start, key = time.perf_counter(), self.capture.key
        if not self.prepare(batch):
            return self.update(batch)
        if self.verbose >= 1 and self.capture.key is not key:
            print(f"Captured the training update in {time.perf_counter() - start:.0f} s. It is replayed from now on.")
        self.optimizer.sync_lr()
        return self.capture.replay((batch,))

    def prepare(self, batch: SequenceBatch) -> bool:
        """:return: whether the next update, with this batch, can be replayed"""
        return self.capture.prepare((batch,), before=self.optimizer.make_capturable)

    def state(self) -> list[th.Tensor]:
        """:return: all tensors that an update reads and writes"""
        policy = self.update.policy
        tensors = [*policy.parameters(), *policy.buffers()]
        for state in self.optimizer.state.values():
            tensors += tensors_of(dict(state))
        for group in self.optimizer.param_groups:
            tensors += [group[name] for name in ("step", "lr_tensor") if isinstance(group.get(name), th.Tensor)]
        return tensors


class CapturedStep:
    """
    :meth:`DreamerPolicy.step` for acting, captured once for each number of environments and replayed. The graph reads the
    parameters from their memory, so in-place updates take effect.

    :param policy: the policy that acts
    :param make_graph: makes a new graph
    """

    def __init__(self, policy: DreamerPolicy, make_graph: Callable[[], Graph]):
        self.policy = policy
        state = lambda: [*policy.parameters(), *policy.buffers()]  # noqa: E731
        self.capture = GraphCapture("the acting step", [policy.step], make_graph, state, keeps_state=False)

    def __call__(
        self, observations: PyTorchObs, state: PolicyState | None, episode_start: th.Tensor
    ) -> tuple[th.Tensor, PolicyState]:
        """Same as :meth:`DreamerPolicy.step`. The result is valid until the next call, which may take the returned state."""
        state = self.policy.initial_state(len(episode_start)) if state is None else state
        inputs = (observations, state, episode_start.float())
        return self.capture.replay(inputs) if self.capture.prepare(inputs) else self.policy.step(*inputs)
