"""Builds our networks from the arrays of a golden file and maps their parameters to the official names."""

import math
from collections.abc import Iterator

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_dreamer.common.torch_layers import BlockLinear
from sb3_dreamer.dreamerv3.model_sizes import ModelSize
from sb3_dreamer.dreamerv3.networks import ConvDecoder, MultiDecoder, MultiEncoder
from sb3_dreamer.dreamerv3.policies import DreamerPolicy
from sb3_dreamer.dreamerv3.rssm import RSSM

# A parameter and its official name.
Named = Iterator[tuple[str, nn.Parameter]]


def to_official(name: str, tensor: th.Tensor) -> np.ndarray:
    """Convert a weight or gradient to the official layout: linear [in, out], conv [kh, kw, in, out]."""
    array = tensor.detach().numpy()
    if name.endswith("kernel"):
        return {2: lambda: array.T, 3: lambda: array, 4: lambda: array.transpose(2, 3, 1, 0)}[array.ndim]()
    return array


def from_official(name: str, array: np.ndarray) -> th.Tensor:
    if name.endswith("kernel"):
        array = {2: lambda: array.T, 3: lambda: array, 4: lambda: array.transpose(3, 2, 0, 1)}[array.ndim]()
    return th.as_tensor(np.ascontiguousarray(array))


def layer(name: str, module: nn.Module) -> Named:
    assert isinstance(module, (nn.Linear, nn.Conv2d, BlockLinear))
    yield f"{name}.kernel", module.weight
    yield f"{name}.bias", module.bias


def scale(name: str, module: nn.Module) -> Named:
    yield f"{name}.scale", module.weight


def flat_mlp(prefix: str, mlp: nn.Sequential) -> Named:
    """Hidden layers named prefix0, prefix0norm, prefix1, ... as inside the RSSM and the encoder."""
    for i, hidden in enumerate(mlp):
        yield from layer(f"{prefix}{i}", hidden[0])
        yield from scale(f"{prefix}{i}norm", hidden[1])


def head_mlp(prefix: str, mlp: nn.Sequential) -> Named:
    """Hidden layers named prefix.mlp.linear0, prefix.mlp.norm0, ... as inside the heads."""
    for i, hidden in enumerate(mlp):
        yield from layer(f"{prefix}.mlp.linear{i}", hidden[0])
        yield from scale(f"{prefix}.mlp.norm{i}", hidden[1])


def rssm_names(rssm: RSSM) -> Named:
    for i, branch in enumerate([rssm.core.from_deter, rssm.core.from_stoch, rssm.core.from_action]):
        yield from layer(f"dyn.dynin{i}", branch[0])
        yield from scale(f"dyn.dynin{i}norm", branch[1])
    for i in range(len(rssm.core.hidden) // 3):
        yield from layer(f"dyn.dynhid{i}", rssm.core.hidden[3 * i])
        yield from scale(f"dyn.dynhid{i}norm", rssm.core.hidden[3 * i + 1])
    yield from layer("dyn.dyngru", rssm.core.gates)
    yield from flat_mlp("dyn.prior", rssm.prior_net[0])
    yield from layer("dyn.priorlogit", rssm.prior_net[1])
    yield from flat_mlp("dyn.obs", rssm.posterior_net[0])
    yield from layer("dyn.obslogit", rssm.posterior_net[1])


def encoder_names(encoder: MultiEncoder) -> Named:
    if encoder.mlp is not None:
        yield from flat_mlp("enc.mlp", encoder.mlp)
    for tower in encoder.towers:
        for i, stage in enumerate(tower.stages):
            yield from layer(f"enc.cnn{i}", stage[0])
            yield from scale(f"enc.cnn{i}norm", stage[2])


def image_decoder_names(decoder: ConvDecoder) -> Named:
    yield from layer("dec.sp0", decoder.from_deter)
    yield from layer("dec.sp1", decoder.from_stoch[0][0])
    yield from scale("dec.sp1norm", decoder.from_stoch[0][1])
    yield from layer("dec.sp2", decoder.from_stoch[1])
    yield from scale("dec.spnorm", decoder.norm)
    for j, stage in enumerate(decoder.stages):
        i = len(decoder.stages) - 1 - j
        yield from layer(f"dec.conv{i}", stage[0])
        yield from scale(f"dec.conv{i}norm", stage[1])
    yield from layer("dec.imgout", decoder.output)


def decoder_names(decoder: MultiDecoder) -> Named:
    for tower in decoder.towers:
        yield from image_decoder_names(tower)
    if decoder.mlp is not None:
        yield from head_mlp("dec", decoder.mlp)
    for key, output in zip(decoder.vector_keys, decoder.vector_outputs, strict=True):
        is_value = isinstance(decoder.spaces[key], spaces.Box)
        yield from layer(f"dec.vec.{key}.{'pred' if is_value else 'logits'}", output)


def policy_names(policy: DreamerPolicy) -> Named:
    """All trained parameters of the agent."""
    world_model = policy.world_model
    yield from encoder_names(world_model.encoder)
    yield from rssm_names(world_model.rssm)
    yield from decoder_names(world_model.decoder)
    yield from head_mlp("rew", world_model.reward_head.mlp)
    yield from layer("rew.head.logits", world_model.reward_head.output)
    yield from head_mlp("con", world_model.continue_head.mlp)
    yield from layer("con.head.logit", world_model.continue_head.output)
    yield from head_mlp("pol", policy.actor.mlp)
    if policy.actor.output_std is None:
        yield from layer("pol.head.action.logits", policy.actor.output)
    else:
        yield from layer("pol.head.action.mean", policy.actor.output)
        yield from layer("pol.head.action.stddev", policy.actor.output_std)
    yield from head_mlp("val", policy.critic.mlp)
    yield from layer("val.head.logits", policy.critic.output)


def target_names(policy: DreamerPolicy) -> Named:
    yield from head_mlp("slowval", policy.critic_target.mlp)
    yield from layer("slowval.head.logits", policy.critic_target.output)


def load_weights(names: Named, weights: dict[str, np.ndarray]) -> None:
    """Copy golden weights (official names and layouts) into our parameters."""
    for name, parameter in names:
        value = from_official(name, weights[name])
        assert value.shape == parameter.shape, f"{name}: {tuple(value.shape)} in the file, {tuple(parameter.shape)} in ours"
        parameter.data.copy_(value)


def count_layers(weights: dict[str, np.ndarray], pattern: str) -> int:
    """Count pattern.format(0), pattern.format(1), ..."""
    n = 0
    while pattern.format(n) in weights:
        n += 1
    return n


def size_from_weights(weights: dict[str, np.ndarray], **known: int) -> ModelSize:
    """Read all dimensions from the shapes of the weights; those that the file does not contain are in ``known``."""
    values = dict(known)
    if "dyn.dyngru.kernel" in weights:
        values["blocks"] = weights["dyn.dyngru.kernel"].shape[0]
        values["hidden"] = weights["dyn.dynin0.kernel"].shape[1]
        values["deter"] = weights["dyn.dynin0.kernel"].shape[0]
        values["dynamics_layers"] = count_layers(weights, "dyn.dynhid{}.kernel")
        values["prior_layers"] = count_layers(weights, "dyn.prior{}.kernel")
        values["posterior_layers"] = count_layers(weights, "dyn.obs{}.kernel")
    elif "dec.sp0.kernel" in weights:
        values["blocks"] = weights["dec.sp0.kernel"].shape[0]
    for name in ("rew.mlp.linear0.kernel", "enc.mlp0.kernel", "dec.mlp.linear0.kernel"):
        if name in weights:
            values["units"] = weights[name].shape[1]
    if "units" not in values and "dec.sp1.kernel" in weights:
        values["units"] = weights["dec.sp1.kernel"].shape[1] // 2
    if "rew.head.logits.bias" in weights:
        values["bins"] = len(weights["rew.head.logits.bias"])
    layers = {
        "encoder_layers": "enc.mlp{}.kernel",
        "decoder_layers": "dec.mlp.linear{}.kernel",
        "reward_layers": "rew.mlp.linear{}.kernel",
        "continue_layers": "con.mlp.linear{}.kernel",
        "actor_layers": "pol.mlp.linear{}.kernel",
        "critic_layers": "val.mlp.linear{}.kernel",
    }
    values |= {field: n for field, pattern in layers.items() if (n := count_layers(weights, pattern))}
    n_stages = count_layers(weights, "enc.cnn{}.kernel")
    channels = tuple(weights[f"enc.cnn{i}.kernel"].shape[-1] for i in range(n_stages))
    return ModelSize(**values, depth=1, cnn_multipliers=channels or None)


def observation_space(arrays: dict[str, np.ndarray], weights: dict[str, np.ndarray]) -> spaces.Dict:
    """Spaces of observation arrays [batch, time, ...]: images by dtype and rank, integer classes from the decoder."""
    result: dict[str, spaces.Space] = {}
    for key, array in arrays.items():
        shape = array.shape[2:]
        if array.dtype == np.uint8 and array.ndim == 5:
            result[key] = spaces.Box(0, 255, (shape[2], shape[0], shape[1]), np.uint8)
        elif array.dtype.kind in "iub":
            n_elements = math.prod(shape)
            n_classes = len(weights[f"dec.vec.{key}.logits.bias"]) // n_elements
            result[key] = spaces.MultiDiscrete(np.full(shape, n_classes)) if shape else spaces.Discrete(n_classes)
        else:
            result[key] = spaces.Box(-np.inf, np.inf, shape, np.float32)
    return spaces.Dict(result)


def action_space(action: np.ndarray, weights: dict[str, np.ndarray]) -> spaces.Space:
    """Space of the action array [batch, time(, dims)]."""
    if action.dtype.kind == "f":
        return spaces.Box(-1.0, 1.0, action.shape[2:], np.float32)
    n_logits = len(weights["pol.head.action.logits.bias"])
    if action.ndim == 2:
        return spaces.Discrete(n_logits)
    return spaces.MultiDiscrete([n_logits // action.shape[2]] * action.shape[2])


def to_tensor(array: np.ndarray) -> th.Tensor:
    """Observation array [batch, time, ...] -> tensor; images become channels first."""
    if array.dtype == np.uint8 and array.ndim == 5:
        array = array.transpose(0, 1, 4, 2, 3)
    return th.as_tensor(np.ascontiguousarray(array))
