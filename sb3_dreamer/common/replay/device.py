"""Copy replay rows from host memory to the device without making the device wait."""

from functools import lru_cache

import numpy as np
import torch as th


def to_device(array: np.ndarray, device: th.device) -> th.Tensor:
    """
    :param array: an array that nothing else uses; on the CPU the tensor shares its memory
    :param device: target device; CUDA copies use pinned memory, so that the host does not wait
    :return: tensor on the device
    """
    tensor = th.as_tensor(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@lru_cache
def side_stream(device: th.device) -> "th.cuda.Stream":
    """:return: the stream on which batches are copied while the device computes"""
    return th.cuda.Stream(device)


class DeviceMirror:
    """
    Copy of the replay buffer's observations on the device. Batches are gathered there, so that images are not copied from the
    host for each batch. Only the arrays on the host are saved.

    :param arrays: observations by key (rows, n_envs, ...)
    :param device: device of the copy
    """

    def __init__(self, arrays: dict[str, np.ndarray], device: th.device):
        self.device = device
        self.tensors = {key: th.as_tensor(array).to(device, copy=True) for key, array in arrays.items()}

    def write(self, rows: np.ndarray, envs: np.ndarray, arrays: dict[str, np.ndarray]) -> None:
        """
        Copy new rows to the device.

        :param rows: (n,)
        :param envs: (n,)
        :param arrays: the arrays on the host, with these rows already written
        """
        where = to_device(rows, self.device), to_device(envs, self.device)
        for key, tensor in self.tensors.items():
            tensor.index_put_(where, to_device(arrays[key][rows, envs], self.device))

    def gather(self, rows: np.ndarray, envs: np.ndarray) -> dict[str, th.Tensor]:
        """
        :param rows: (B, T)
        :param envs: (B, 1)
        :return: observations by key (B, T, ...)
        """
        where = to_device(rows, self.device), to_device(envs, self.device)
        return {key: tensor[where] for key, tensor in self.tensors.items()}
