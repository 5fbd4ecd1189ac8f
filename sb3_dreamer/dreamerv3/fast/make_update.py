"""Choose objective, training update and acting step for a model and its device. All other modules here are used from here."""

from collections.abc import Callable
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_dreamer.common.distributed.ranks import Ranks
from sb3_dreamer.common.optimizers import LaProp
from sb3_dreamer.common.type_aliases import PolicyState
from sb3_dreamer.dreamerv3.fast.captured import CapturedStep, CapturedUpdate
from sb3_dreamer.dreamerv3.fast.compiled import CompiledUpdate
from sb3_dreamer.dreamerv3.fast.cuda_graph import CudaGraph
from sb3_dreamer.dreamerv3.fast.loss import FusedDreamerLoss
from sb3_dreamer.dreamerv3.fast.weights import supports_fused
from sb3_dreamer.dreamerv3.losses import DreamerLoss
from sb3_dreamer.dreamerv3.policies import DreamerPolicy
from sb3_dreamer.dreamerv3.update import TrainingUpdate

Update = TrainingUpdate | CapturedUpdate
Acting = Callable[[PyTorchObs, PolicyState | None, th.Tensor], tuple[th.Tensor, PolicyState]]


def make_loss(policy: DreamerPolicy, fused: bool | str = "auto", verbose: int = 0, **settings: Any) -> DreamerLoss:
    """
    :param policy: owns the networks
    :param fused: ``"auto"``: fused loops if the model supports them; False: the step-by-step model
    :param verbose: 1 prints a line if the model does not support the fused loops
    :param settings: arguments of :class:`DreamerLoss`
    :return: the objective
    """
    if fused and supports_fused(policy.world_model.rssm, policy.actor):
        return FusedDreamerLoss(policy, **settings)
    if fused and verbose >= 1:
        print(
            "Using the step-by-step model: the fused loops need RSSM and ActorHead of this package, with dynamics_layers = "
            "posterior_layers = 1."
        )
    return DreamerLoss(policy, **settings)


def make_update(
    loss_module: DreamerLoss,
    agc_clip: float,
    tau: float,
    compile: bool | str,
    verbose: int = 0,
    ranks: Ranks | None = None,
    reduce_dtype: str = "fp32",
) -> Update:
    """
    :param loss_module: the objective; its policy owns networks and optimizer
    :param agc_clip: see :class:`TrainingUpdate`
    :param tau: see :class:`TrainingUpdate`
    :param compile: compile the steps of the fused loops; ``"auto"``: only on CUDA. On CUDA, unless it is False, the whole
        objective is compiled and the update is captured, too.
    :param verbose: 1 prints how long compiling and capturing took
    :param ranks: if a launcher has started several, gradients are averaged over them: in one flat buffer between captured
        pieces of the update, or by torch's DDP if ``compile`` is False or the optimizer is not :class:`LaProp`
    :param reduce_dtype: see :class:`~sb3_dreamer.dreamerv3.fast.pieces.PiecewiseUpdate`
    :return: the fastest update for this model and device
    """
    policy = loss_module.policy
    on_cuda = policy.device.type == "cuda"
    is_wanted = on_cuda if compile == "auto" else bool(compile)
    is_laprop = isinstance(policy.optimizer, LaProp)
    if isinstance(policy.optimizer, LaProp):
        policy.optimizer.make_eager()  # an update that was captured earlier is no longer used
    settings: dict[str, Any] = dict(agc_clip=agc_clip, tau=tau, verbose=verbose, compile_steps=is_wanted)
    make_graph = lambda: CudaGraph(policy.device)  # noqa: E731
    if ranks is not None and ranks.is_launched:
        if compile is False or not is_laprop:
            from sb3_dreamer.dreamerv3.fast.ddp import ParallelUpdate

            return ParallelUpdate(loss_module, ranks, **settings)
        from sb3_dreamer.dreamerv3.fast.pieces import CapturedPieces, PiecewiseUpdate

        pieces = PiecewiseUpdate(loss_module, ranks, reduce_dtype, compile_objective=on_cuda, **settings)
        return CapturedPieces(pieces, make_graph, verbose) if on_cuda else pieces
    if not is_wanted:
        return TrainingUpdate(loss_module, agc_clip=agc_clip, tau=tau)
    update = CompiledUpdate(loss_module, compile_objective=on_cuda, **settings)
    return CapturedUpdate(update, make_graph, verbose) if on_cuda and is_laprop else update


def make_acting(policy: DreamerPolicy, compile: bool | str) -> Acting:
    """
    :param policy: the policy that acts
    :param compile: see :func:`make_update`
    :return: :meth:`DreamerPolicy.step`, captured on CUDA unless ``compile`` is False
    """
    if policy.device.type == "cuda" and compile is not False:
        return CapturedStep(policy, lambda: CudaGraph(policy.device))
    return policy.step
