"""Scenarios of ``test_distributed.py`` with captured pieces, see ``rank_worker.py``."""

import copy
import os
import warnings
import weakref
from typing import Any

import numpy as np
import torch as th
import torch.distributed as dist
from gymnasium import spaces

from sb3_dreamer.common.distributed import torchrun as distributed
from sb3_dreamer.common.distributed.ranks import Ranks
from sb3_dreamer.dreamerv3.fast.make_update import make_update
from sb3_dreamer.dreamerv3.fast.pieces import CapturedPieces
from tests.support.helpers import MIXED, double, make_loss, make_policy, random_batch, randomize_outputs
from tests.support.python_graph import PythonGraph


class WatchedGraph(PythonGraph):
    """Knows whether a captured function runs, and fails if it is asked to."""

    running, n_captures, must_fail = False, 0, False

    def capture(self, function):
        def watched():
            WatchedGraph.running = True
            try:
                return function()
            finally:
                WatchedGraph.running = False

        if WatchedGraph.must_fail:
            raise RuntimeError("this rank cannot capture")
        WatchedGraph.n_captures += 1
        return super().capture(watched)


def captured(ranks: Ranks, is_captured: bool = True) -> dict[str, Any]:
    """
    Updates in blocks of ten, with captured pieces: within the block at 50 the optimizer of rank 1 gets new tensors, from 100
    on batches are smaller, and at 150 rank 1 cannot capture batches of the old size.
    """
    policy = make_policy(MIXED, spaces.Box(-1.0, 1.0, (2,), np.float32))
    randomize_outputs(policy)
    policy.double()
    for group in policy.optimizer.param_groups:
        group["lr"] = 1e-3
    inner = make_update(make_loss(policy, loss_scales="harmony"), 0.3, 0.02, "auto", 0, ranks)
    update = CapturedPieces(inner, WatchedGraph) if is_captured else inner
    n_collectives = 0

    def watch(function: Any) -> Any:
        def watched(*args: Any, **kwargs: Any) -> Any:
            nonlocal n_collectives
            n_collectives += 1
            assert not WatchedGraph.running, "a collective inside of a captured piece"
            return function(*args, **kwargs)

        return watched

    dist.all_reduce, distributed.ALL_GATHER = watch(dist.all_reduce), watch(distributed.ALL_GATHER)
    th.manual_seed(ranks.rank)
    captures, warned, trace = [], [], []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for i in range(200):
            if i % 10 == 0:
                ranks.sync_rollout(1, goes_on=True, can_sample=True)
            if i == 55 and ranks.rank == 1:
                policy.optimizer.load_state_dict(copy.deepcopy(policy.optimizer.state_dict()))
            WatchedGraph.must_fail = i == 150 and ranks.rank == 1
            for stale in (inner.gathered, inner.flat and inner.flat.buffer):
                if stale is not None:
                    stale.fill_(th.nan)  # it must be written again before it is read
            batch = double(random_batch(policy, 2 if 100 <= i < 150 else 4, 6, seed=10 * i + ranks.rank))
            assert bool(update(batch).is_finite), i
            captures.append(WatchedGraph.n_captures)
            trace.append([float(p.detach().sum()) for p in policy.parameters()])
        warned = [str(one.message) for one in caught if "Capturing" in str(one.message)]
    moments = [tensor for state in policy.optimizer.state.values() for tensor in state.values()]
    tensors = [tensor.detach().clone() for tensor in [*policy.parameters(), *policy.buffers(), *moments]]
    return {"captures": captures, "warned": warned, "n_collectives": n_collectives, "state": tensors, "trace": trace}


def leave(ranks: Ranks) -> None:
    """End with captured pieces, and print whether the process group exists when they are deleted."""
    policy = make_policy(MIXED, spaces.Box(-1.0, 1.0, (2,), np.float32))
    update = CapturedPieces(make_update(make_loss(policy), 0.3, 0.02, "auto", 0, ranks), PythonGraph)
    update(random_batch(policy, 4, 6))
    assert len(update.capture.graphs) == 3
    for graph in update.capture.graphs:
        said = weakref.finalize(graph, lambda: os.write(1, f"graph deleted, group exists: {dist.is_initialized()}\n".encode()))
        said.atexit = False  # not where the process ends, only where the graph is deleted
    global kept
    kept = update  # only deleted with the module
