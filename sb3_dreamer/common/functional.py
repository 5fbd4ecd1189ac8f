"""
Faster versions of torch functions, and helpers for nested tensors.

torch runs matmuls in MKL and convolutions in oneDNN. On processors of other vendors than Intel, MKL does not use AVX-512,
but oneDNN does. Expressed as a 1x1 convolution, a large matmul runs twice as fast there.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch as th
from torch._compile import _disable_dynamo
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

MAX_IMAGES, MIN_IMAGES, MIN_ROWS, MIN_WIDTH = 64, 16, 256, 16


@lru_cache
def prefers_convolutions() -> bool:
    """:return: whether large matmuls run faster as convolutions on this processor"""
    has_both = th.backends.mkl.is_available() and th.backends.mkldnn.is_available()
    if not has_both or th.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    info = Path("/proc/cpuinfo")
    return info.exists() and "AuthenticAMD" in info.read_text()


USE_CONV_MATMUL = prefers_convolutions()


def use_conv_matmul(x: th.Tensor, n_rows: int, n_out: int) -> bool:
    """
    :param x: inputs (..., I)
    :param n_rows: number of rows of the inputs
    :param n_out: number of outputs per row
    :return: whether to compute the matmul as a convolution, which depends on its size, dtype and device
    """
    return (
        USE_CONV_MATMUL
        and x.dtype == th.float32
        and x.device.type == "cpu"
        and n_rows >= MIN_ROWS
        and n_rows % MIN_IMAGES == 0  # for fewer images, torch uses MKL
        and min(x.shape[-1], n_out) >= MIN_WIDTH
        and not th.is_autocast_enabled("cpu")
    )


def as_images(x: th.Tensor, n_rows: int) -> th.Tensor:
    """N rows (..., I) to (P, I, N / P, 1), a view if ``x`` is contiguous. Rows become pixels, columns channels."""
    return x.reshape(math.gcd(n_rows, MAX_IMAGES), -1, 1, x.shape[-1]).permute(0, 3, 1, 2)


def from_images(x: th.Tensor, *shape: int) -> th.Tensor:
    """(P, O, N / P, 1) to the shape of N rows, the inverse of :func:`as_images`."""
    return x.permute(0, 2, 3, 1).reshape(shape)


def linear(x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None = None) -> th.Tensor:
    """
    Same as ``torch.nn.functional.linear``.

    :param x: (..., I)
    :param weight: (O, I)
    :param bias: (O,)
    :return: (..., O)
    """
    n_rows = math.prod(x.shape[:-1])
    if not use_conv_matmul(x, n_rows, len(weight)):
        return F.linear(x, weight, bias)
    result = F.conv2d(as_images(x, n_rows), weight.unflatten(1, (-1, 1, 1)), bias)  # (P, O, N / P, 1)
    return from_images(result, *x.shape[:-1], len(weight))


def block_linear(x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None = None) -> th.Tensor:
    """
    One matmul for each block.

    :param x: (G, N, I/G)
    :param weight: (G, I/G, O/G)
    :param bias: (G, 1, O/G)
    :return: (G, N, O/G); as a convolution it is a view of (N, O), and should get ``x`` as a view of (N, I)
    """
    blocks, n_rows, _ = x.shape
    if not use_conv_matmul(x, n_rows, weight.shape[2]):
        return th.bmm(x, weight) if bias is None else th.baddbmm(bias, x, weight)
    rows = x.transpose(0, 1).flatten(1)  # (N, I)
    kernels = weight.mT.flatten(0, 1).unflatten(1, (-1, 1, 1))  # (O, I/G, 1, 1)
    result = F.conv2d(as_images(rows, n_rows), kernels, None if bias is None else bias.flatten(), groups=blocks)
    return from_images(result, n_rows, blocks, -1).transpose(0, 1)


def linear_weight_grad(x: th.Tensor, grad: th.Tensor) -> th.Tensor:
    """
    Gradient of the weight in :func:`linear`.

    :param x: inputs (N, I)
    :param grad: gradient of the outputs (N, O)
    :return: (O, I)
    """
    if not use_conv_matmul(x, len(x), grad.shape[1]):
        return grad.t() @ x
    size = (grad.shape[1], x.shape[1], 1, 1)
    return conv2d_weight(as_images(x, len(x)), size, as_images(grad, len(x))).flatten(1)


# ---- functions that do not synchronise with the device, and do not break compiled graphs ----

Result = TypeVar("Result")
# Same as `th.compiler.disable`, which would import the compiler: 1 s and 70 MB in each worker of a SubprocVecEnv.
never_compiled = _disable_dynamo


class compile_safe_cached_property(Generic[Result]):
    """
    ``functools.cached_property`` without its lock, which would break a compiled graph before Python 3.12.

    :param function: method that computes the value
    """

    def __init__(self, function: Callable[[Any], Result]):
        self.function, self.__doc__ = function, function.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Result:
        value = self.function(instance)
        instance.__dict__[self.name] = value  # found before this descriptor from now on
        return value


@never_compiled
@lru_cache
def device_constant(values: tuple[int, ...], device: th.device) -> th.Tensor:
    """A constant tensor, copied to the device once and cached, because each copy would wait for the device."""
    return th.tensor(values, device=device)


def one_hot(indices: th.Tensor, classes: int, dtype: th.dtype = th.float32) -> th.Tensor:
    """
    Same as ``torch.nn.functional.one_hot``, but without a check of the indices, which would wait for the device.

    :param indices: integers below ``classes`` (...)
    :param classes: K
    :param dtype: dtype of the result
    :return: (..., K)
    """
    zeros = th.zeros((*indices.shape, classes), dtype=dtype, device=indices.device)
    return zeros.scatter_(-1, indices.long().unsqueeze(-1), 1.0)


# ---- nested tensors ----


def tensors_of(value: Any) -> list[th.Tensor]:
    """:return: the tensors in nested tuples and dicts, in order; other values are ignored"""
    if isinstance(value, th.Tensor):
        return [value]
    parts = list(value.values()) if isinstance(value, dict) else value if isinstance(value, tuple) else ()
    return [tensor for part in parts for tensor in tensors_of(part)]


def clone_tensors(value: Any) -> Any:
    """:return: the same nested tuples and dicts, with copies of the tensors"""
    if isinstance(value, th.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: clone_tensors(part) for key, part in value.items()}
    if isinstance(value, tuple):
        parts = [clone_tensors(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value
