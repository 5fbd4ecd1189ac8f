"""Optimiser of DreamerV3 (2025 version): adaptive gradient clipping per tensor, then LaProp."""

from collections.abc import Callable, Iterable
from typing import Any

import torch as th
from torch.optim import Optimizer


@th.no_grad()
def clip_grad_agc_(parameters: Iterable[th.Tensor], clip: float, min_norm: float = 1e-3) -> tuple[th.Tensor, th.Tensor]:
    """
    Adaptive gradient clipping per tensor: the norm of a gradient is limited to ``clip`` times the norm of its parameter, but
    not below ``clip * min_norm``. All tensors are clipped, including biases and norm scales.

    :param parameters: parameters; those without gradient are skipped
    :param clip: maximum ratio of gradient norm to parameter norm
    :param min_norm: lower limit for the norm of a parameter
    :return: norms of the gradients before clipping, and whether they were clipped, both on the device (P,)
    """
    with_grad = [p for p in parameters if p.grad is not None]
    grads = [p.grad for p in with_grad if p.grad is not None]
    grad_norms = th._foreach_norm(grads)
    limits = th._foreach_norm(with_grad)
    th._foreach_clamp_min_(limits, min_norm)
    th._foreach_mul_(limits, clip)
    ratios = th._foreach_div(grad_norms, limits)
    th._foreach_clamp_min_(ratios, 1.0)
    th._foreach_div_(grads, ratios)
    return th.stack(grad_norms), th.stack(ratios) > 1.0


# Integers as wide as a float, by bytes.
INTEGERS = {2: th.int16, 4: th.int32, 8: th.int64}


@th.no_grad()
def zero_unless_(tensors: list[th.Tensor], flag: th.Tensor) -> None:
    """
    Fill tensors with zeros, unless a flag is set, without reading the flag on the host.

    :param tensors: floats, may be NaN or infinite
    :param flag: a bool, a scalar on the device
    """
    # As integers: 0 times the bits of NaN is 0, while 0 times NaN is NaN. Once more the bits are unchanged.
    integers = [tensor.view(INTEGERS[tensor.element_size()]) for tensor in tensors]
    th._foreach_mul_(integers, flag.to(integers[0].dtype))


def scalar_like(value: th.Tensor, tensors: list[th.Tensor]) -> th.Tensor:
    """:return: the scalar in the dtype of the tensors, as torch's fast foreach operations need it"""
    return value.to(tensors[0].dtype)


class LaProp(Optimizer):
    """
    LaProp (Ziyin et al. 2020): momentum of RMS-normalised gradients, where Adam normalises the momentum of gradients. The
    momentum does not contain the learning rate, so that a new learning rate applies to the whole step at once.

    :param params: tensors or parameter groups
    :param lr: learning rate, 0 is allowed
    :param betas: decay of the momentum and of the squared gradient
    :param eps: added to the root, so that a parameter with zero gradient does not move
    :raises ValueError: if a setting is out of range

    For a step that is captured as a graph (between :meth:`make_capturable` and :meth:`make_eager`), the number of steps and
    the learning rates are stored in tensors, and :meth:`sync_lr` copies the learning rates of ``param_groups`` to them. Saved
    states contain numbers in both cases. Such an optimiser can also skip a step by a flag on the device, see :meth:`step_if`.
    """

    is_capturable = False

    def __init__(
        self,
        params: Iterable[th.Tensor] | Iterable[dict[str, Any]],
        lr: float = 4e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-20,
    ):
        if lr < 0.0:
            raise ValueError(f"`lr` must not be negative, got {lr}")
        if eps <= 0.0:
            raise ValueError(f"`eps` must be positive, got {eps}")
        if len(betas) != 2 or not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"`betas` must be two numbers in [0, 1), got {betas}")
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, step=0))

    @th.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """
        Update all parameters that have a gradient, with a few foreach calls per group.

        :param closure: re-evaluates the loss, as in torch's optimisers
        :return: result of ``closure``
        """
        loss = None
        if closure is not None:
            with th.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    @th.no_grad()
    def step_if(self, flag: th.Tensor) -> None:
        """
        :meth:`step` if a flag is set; otherwise parameters, moments and number of steps do not change. The flag is not read
        on the host, so that the step can be captured. Gradients are zero after a step that was skipped.

        :param flag: a bool, a scalar on the device
        """
        assert self.is_capturable, "step and learning rates must be stored on the device, see `make_capturable`"
        for group in self.param_groups:
            self._step_group(group, flag)

    def make_capturable(self) -> None:
        """Create all state now, and store step and learning rates in tensors on the device, as needed for a captured graph."""
        self.is_capturable = True
        for group in self.param_groups:
            device = group["params"][0].device
            for p in group["params"]:
                self._init_state(p)
            if not isinstance(group["step"], th.Tensor):
                # In float64: 1 - 0.999 in float32 is wrong in the fifth digit.
                group["step"] = th.tensor(group["step"], dtype=th.float64, device=device)
                group["lr_tensor"] = th.zeros((), dtype=th.float64, device=device)
        self.sync_lr()

    def make_eager(self) -> None:
        """Store step and learning rates as numbers again. Each step then reads the learning rate from ``param_groups``."""
        self.is_capturable = False
        for group in self.param_groups:
            group["step"] = int(group["step"])
            group.pop("lr_tensor", None)

    def state_dict(self) -> dict[str, Any]:
        """:return: same as in torch, with numbers instead of tensors for step and learning rates"""
        state = super().state_dict()
        for group in state["param_groups"]:
            group["step"] = int(group["step"])
            group.pop("lr_tensor", None)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """
        Same as in torch. A capturable optimiser stays capturable.

        :param state_dict: state of an optimiser with the same parameters
        """
        super().load_state_dict(state_dict)
        if self.is_capturable:
            self.make_capturable()

    @th.no_grad()
    def step_norms(self) -> dict[th.Tensor, th.Tensor]:
        """:return: norm of the last change of each parameter that has a gradient, by parameter, scalars on the device"""
        norms: dict[th.Tensor, th.Tensor] = {}
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            # A parameter has no state yet if the first step was skipped.
            lengths = th._foreach_norm([self.state[p]["exp_avg"] if self.state.get(p) else th.zeros_like(p) for p in params])
            if self.is_capturable:
                debias = 1.0 - group["betas"][0] ** group["step"].clamp_min(1)
                th._foreach_mul_(lengths, scalar_like(group["lr_tensor"] / debias, list(lengths)))
            else:
                th._foreach_mul_(lengths, float(group["lr"]) / (1.0 - group["betas"][0] ** max(group["step"], 1)))
            norms |= zip(params, lengths, strict=True)
        return norms

    def sync_lr(self) -> None:
        """Copy the learning rates of ``param_groups`` to the tensors."""
        for group in self.param_groups:
            group["lr_tensor"].fill_(float(group["lr"]))

    def _init_state(self, p: th.Tensor) -> None:
        if not self.state[p]:
            self.state[p]["exp_avg"] = th.zeros_like(p, memory_format=th.preserve_format)
            self.state[p]["exp_avg_sq"] = th.zeros_like(p, memory_format=th.preserve_format)

    def _step_group(self, group: dict[str, Any], flag: th.Tensor | None = None) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        for p in params:
            self._init_state(p)
        grads = [p.grad for p in params]
        momentum = [self.state[p]["exp_avg"] for p in params]
        squares = [self.state[p]["exp_avg_sq"] for p in params]
        beta1, beta2 = group["betas"]
        step = group["step"] + 1
        if flag is not None:
            zero_unless_(grads, flag)

        th._foreach_mul_(squares, beta2 if flag is None else scalar_like(beta2 ** flag.double(), squares))
        th._foreach_addcmul_(squares, grads, grads, value=1.0 - beta2)
        debias1, debias2 = 1.0 - beta1**step, 1.0 - beta2**step
        root = th._foreach_div(squares, scalar_like(debias2, squares) if self.is_capturable else debias2)
        th._foreach_sqrt_(root)
        th._foreach_add_(root, group["eps"])
        normalised = th._foreach_div(grads, root)
        if flag is None:
            th._foreach_lerp_(momentum, normalised, 1.0 - beta1)
        else:  # the same, but unchanged if the step is skipped: decay is 1, gradients are 0
            th._foreach_mul_(momentum, scalar_like(beta1 ** flag.double(), momentum))
            th._foreach_add_(momentum, normalised, alpha=1.0 - beta1)
        if self.is_capturable:
            rate = group["lr_tensor"] if flag is None else group["lr_tensor"] * flag
            th._foreach_add_(params, th._foreach_mul(momentum, scalar_like(-rate / debias1, params)))
            group["step"] += 1 if flag is None else flag
        else:
            th._foreach_add_(params, momentum, alpha=-float(group["lr"]) / debias1)
            group["step"] = step
