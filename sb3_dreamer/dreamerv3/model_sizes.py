"""Model sizes. Sizes named by numbers are those of the official code (2025), sizes named by letters are those of RLlib."""

import warnings
from dataclasses import dataclass, fields, replace
from numbers import Integral
from typing import Any


@dataclass(frozen=True)
class ModelSize:
    """
    Dimensions of all networks.

    :param deter: D, width of the deterministic state
    :param hidden: width of the RSSM's hidden layers
    :param stoch: S, groups of the stochastic state
    :param classes: K, classes per group
    :param blocks: G, blocks of the GRU and of the image decoder's input layer
    :param units: U, width of the MLPs
    :param depth: base number of channels of the convolutions
    :param cnn_multipliers: channels of each convolution stage in units of ``depth``, one entry per stage; None: (2, 3, 4, 4),
        shortened, or with the last entry repeated, to match the image size; ``"doubling"``: 4 in the last stage and half in
        each stage before it, at least 1, so that the first stages cost little
    :param encoder_layers: hidden layers of the vector encoder
    :param decoder_layers: hidden layers of the vector decoder
    :param dynamics_layers: hidden block layers of the GRU
    :param prior_layers: hidden layers of the prior
    :param posterior_layers: hidden layers of the posterior
    :param reward_layers: hidden layers of the reward head
    :param continue_layers: hidden layers of the continue head
    :param actor_layers: hidden layers of the actor
    :param critic_layers: hidden layers of the critic
    :param bins: bins of the two-hot distributions of reward and value
    :param unimix: share of the uniform distribution in prior and posterior
    :param actor_unimix: share of the uniform distribution in discrete policies; 0 as in the official code
    """

    deter: int = 8192
    hidden: int = 1024
    stoch: int = 32
    classes: int = 64
    blocks: int = 8
    units: int = 1024
    depth: int = 64
    cnn_multipliers: tuple[int, ...] | str | None = None
    encoder_layers: int = 3
    decoder_layers: int = 3
    dynamics_layers: int = 1
    prior_layers: int = 2
    posterior_layers: int = 1
    reward_layers: int = 1
    continue_layers: int = 1
    actor_layers: int = 3
    critic_layers: int = 3
    bins: int = 255
    unimix: float = 0.01
    actor_unimix: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("unimix", "actor_unimix"):
                if not 0.0 <= value < 1.0:
                    raise ValueError(f"`{field.name}` must lie in [0, 1), got {value}")
            elif field.name == "cnn_multipliers":
                if value not in (None, "doubling") and (isinstance(value, str) or len(value) == 0 or min(value) < 1):
                    raise ValueError(f"`cnn_multipliers` must be positive integers or 'doubling', got {value!r}")
            elif not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
                raise ValueError(f"`{field.name}` must be a positive integer, got {value!r}")
        if self.deter % self.blocks:
            raise ValueError(f"`deter` must be a multiple of `blocks`, got deter={self.deter} and blocks={self.blocks}")

    @property
    def features_dim(self) -> int:
        """F = D + S * K, input width of all heads."""
        return self.deter + self.stoch * self.classes

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(D, S, K) of one latent state."""
        return self.deter, self.stoch, self.classes


def _size(deter: int, width: int, stoch: int, classes: int, depth: int, blocks: int = 8) -> ModelSize:
    return ModelSize(deter=deter, hidden=width, stoch=stoch, classes=classes, blocks=blocks, units=width, depth=depth)


MODEL_SIZES: dict[str, ModelSize] = {
    #                 deter  width  S   K  depth
    "debug": _size(8, 8, 2, 4, 2, blocks=4),
    "nano": _size(16, 16, 4, 4, 2, blocks=4),
    "micro": _size(32, 32, 8, 8, 2),
    "mini": _size(64, 64, 16, 16, 4),
    "XXS": _size(128, 128, 32, 32, 8),
    "XS": _size(256, 256, 32, 32, 12),
    "S": _size(512, 512, 32, 32, 16),
    "M": _size(1024, 640, 32, 32, 24),
    "L": _size(2048, 768, 32, 32, 32),
    "XL": _size(4096, 1024, 32, 32, 48),
    "1m": _size(512, 64, 32, 4, 4),
    "12m": _size(2048, 256, 32, 16, 16),
    "25m": _size(3072, 384, 32, 24, 24),
    "50m": _size(4096, 512, 32, 32, 32),
    "100m": _size(6144, 768, 32, 48, 48),
    "200m": _size(8192, 1024, 32, 64, 64),
    "400m": _size(12288, 1536, 32, 96, 96),
}

SIZE_FIELDS = frozenset(field.name for field in fields(ModelSize))
MAIN_FIELDS = frozenset({"deter", "hidden", "stoch", "classes", "units"})  # what a size is, apart from convolutions


def resolve_model_size(name: str, has_images: bool = False, **overrides: Any) -> ModelSize:
    """
    :param name: a key of ``MODEL_SIZES``, optionally with the prefix ``size``, or ``"auto"``: 1m without images, 12m with
        images
    :param has_images: whether the model reads images, for ``"auto"``
    :param overrides: values of single dimensions
    :return: the dimensions
    :raises ValueError: if the name is unknown or a dimension is out of range
    """
    requested = name
    if name == "auto":
        name = "12m" if has_images else "1m"
    key = name.removeprefix("size") if isinstance(name, str) else name
    if key not in MODEL_SIZES:
        raise ValueError(f"`model_size` must be 'auto' or one of {', '.join(MODEL_SIZES)}, got {name!r}")
    if not isinstance(overrides.get("cnn_multipliers"), (str, type(None))):
        overrides["cnn_multipliers"] = tuple(overrides["cnn_multipliers"])
    # `debug` is for tests, which set dimensions as they need them.
    if requested not in ("auto", "debug") and MAIN_FIELDS <= overrides.keys():
        warnings.warn(f"`model_size`={name!r} changes little: `policy_kwargs` sets {', '.join(sorted(MAIN_FIELDS))} itself")
    return replace(MODEL_SIZES[key], **overrides)
