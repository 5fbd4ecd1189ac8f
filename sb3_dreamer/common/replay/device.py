"""From replay rows in host memory to tensors on the device, without making the device wait."""

from functools import lru_cache

import numpy as np
import torch as th

STORAGES = ("host", "device")


def to_device(array: np.ndarray, device: th.device) -> th.Tensor:
    """
    :param array: a copy that is not used elsewhere; on the CPU it is not copied again
    :param device: where the tensor goes; to CUDA through pinned memory, so that the host does not wait
    :return: the tensor
    """
    tensor = th.as_tensor(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@lru_cache
def side_stream(device: th.device) -> "th.cuda.Stream":
    """:return: the stream on which batches are copied while the device computes"""
    return th.cuda.Stream(device)


class DeviceMirror:
    """
    A copy of the replay's observations on the device: written row by row and gathered there, so that a batch of images is not
    copied from the host. The arrays on the host stay what is saved.

    :param arrays: observations by key (rows, n_envs, ...)
    :param device: where the copy is
    """

    def __init__(self, arrays: dict[str, np.ndarray], device: th.device):
        self.device = device
        self.tensors = {key: th.as_tensor(array).to(device, copy=True) for key, array in arrays.items()}

    def write(self, rows: np.ndarray, envs: np.ndarray, arrays: dict[str, np.ndarray]) -> None:
        """
        :param rows: (n,)
        :param envs: (n,)
        :param arrays: the hosts' arrays, of which these rows are new
        """
        where = to_device(rows, self.device), to_device(envs, self.device)
        for key, tensor in self.tensors.items():
            tensor.index_put_(where, to_device(arrays[key][rows, envs], self.device))

    def gather(self, rows: np.ndarray, envs: np.ndarray) -> dict[str, th.Tensor]:
        """
        :param rows: (B, T)
        :param envs: (B, 1)
        :return: by key (B, T, ...)
        """
        where = to_device(rows, self.device), to_device(envs, self.device)
        return {key: tensor[where] for key, tensor in self.tensors.items()}
