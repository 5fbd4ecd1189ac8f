"""Which training update and which step of acting serve a model on its device."""

from collections.abc import Callable
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_dreamer.common.optimizers import LaProp
from sb3_dreamer.common.ranks import Ranks
from sb3_dreamer.common.recorders import CudaRecorder
from sb3_dreamer.common.type_aliases import PolicyState
from sb3_dreamer.dreamerv3.fused_weights import is_covered
from sb3_dreamer.dreamerv3.losses import DreamerLoss
from sb3_dreamer.dreamerv3.policies import DreamerPolicy
from sb3_dreamer.dreamerv3.update import RecordedStep, RecordedUpdate, TrainingUpdate

Update = TrainingUpdate | RecordedUpdate


def make_update(
    loss_module: DreamerLoss, agc_clip: float, tau: float, compile: bool | str, verbose: int, ranks: Ranks | None = None
) -> Update:
    """
    :param loss_module: the objective; its policy owns networks and optimiser
    :param agc_clip: see :class:`TrainingUpdate`
    :param tau: see :class:`TrainingUpdate`
    :param compile: compile the steps; ``"auto"``: on CUDA. There, unless False, the rest is compiled and the update is
        recorded, too.
    :param verbose: 1 prints what is done
    :param ranks: where a launcher started several, gradients are those of all of them
    :return: the fastest update for this model and device
    """
    policy = loss_module.policy
    on_cuda = policy.device.type == "cuda"
    is_wanted = on_cuda if compile == "auto" else bool(compile)
    policy.world_model.rssm.is_compiled &= is_wanted
    if isinstance(policy.optimizer, LaProp):
        policy.optimizer.stop_recording()  # of an earlier update, which nobody replays any more
    settings: dict[str, Any] = dict(agc_clip=agc_clip, tau=tau, is_compiled=is_wanted, verbose=verbose)
    if verbose >= 1 and not is_covered(policy.world_model.rssm):
        print("This model takes the plain path, step by step: the fused loops know one hidden layer in core and posterior.")
    if ranks is not None and ranks.is_launched:
        from sb3_dreamer.dreamerv3.parallel import ParallelUpdate

        return ParallelUpdate(loss_module, ranks, **settings)
    update = TrainingUpdate(loss_module, is_whole=on_cuda, **settings)
    if on_cuda and is_wanted and isinstance(policy.optimizer, LaProp):
        return RecordedUpdate(update, lambda: CudaRecorder(policy.device))
    return update


Acting = Callable[[PyTorchObs, PolicyState | None, th.Tensor], tuple[th.Tensor, PolicyState]]


def make_acting(policy: DreamerPolicy, compile: bool | str) -> Acting:
    """
    :param policy: acts
    :param compile: as for :func:`make_update`
    :return: :meth:`DreamerPolicy.step`; on CUDA, unless ``compile`` is False, recorded
    """
    if policy.device.type == "cuda" and compile is not False:
        return RecordedStep(policy, lambda: CudaRecorder(policy.device))
    return policy.step
