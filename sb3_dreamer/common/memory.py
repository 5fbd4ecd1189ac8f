"""Memory of the process and of the GPU, for the log."""

import torch as th
from stable_baselines3.common.logger import Logger

try:  # as in SB3, which has it among its extras
    import psutil
except ImportError:
    psutil = None

GB = 1e9


def record_memory(logger: Logger, device: th.device) -> None:
    """
    Record the memory of this process, without those of environments in processes of their own. On CUDA, also record the
    largest memory that tensors have used so far.

    :param logger: logger
    :param device: of the model
    """
    if psutil is not None:
        logger.record("memory/process_gb", psutil.Process().memory_info().rss / GB)
    if device.type == "cuda":
        logger.record("memory/gpu_peak_gb", th.cuda.max_memory_allocated(device) / GB)
