"""
Time of a replay buffer of 64x64x3 images on disk, compared with one in memory that holds the same rows. Both take turns.

    python -m benchmarks.speed.replay_storage --env ALE/Breakout-v5 --folder /scratch

Prints lines of JSON. The first one: process CPU time of ``add`` per row and of ``sample`` (B=16, T=64), median over rounds,
and wall time of ``sample`` from disk if none of the rows are in the page cache of the system ("cold"). The other lines: what
lossless compression of each image would save, and what it would cost per row added and per batch sampled, for the libraries
that are installed (lz4, zstandard, blosc2; zlib always).
"""

import argparse
import importlib
import json
import mmap
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from benchmarks.speed.workloads import BATCH, LENGTH
from sb3_dreamer.common.buffers import SequenceReplayBuffer
from sb3_dreamer.common.preprocessing import as_array_dict
from sb3_dreamer.common.wrappers import atari
from sb3_dreamer.dreamerv3.model_sizes import resolve_model_size

ADDS = 500  # rows per round


def frames_of(env_id: str, n_frames: int) -> np.ndarray:
    """:return: frames of random play, uint8 (n_frames, 64, 64, 3)"""
    if env_id.startswith("ALE/"):
        gym.register_envs(importlib.import_module("ale_py"))
        env = atari(gym.make(env_id))
    else:
        env = gym.make(env_id)
    env.action_space.seed(0)
    frames = [env.reset(seed=0)[0]]
    while len(frames) < n_frames:
        observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
        frames.append(env.reset()[0] if terminated or truncated else observation)
    return np.stack(frames)


def adds(buffer: SequenceReplayBuffer, frames: np.ndarray) -> Iterator[None]:
    """Add one row at each ``next``: the frames in turn, with episodes of 500 steps."""
    zero, row = np.zeros(1), 0
    while True:
        now, then = frames[row % len(frames)], frames[(row + 1) % len(frames)]
        buffer.add(now, then, zero, zero, np.array([row % 500 == 499]), [{}])
        row += 1
        yield


def cpu_seconds(function: Callable[[], Any], calls: int) -> float:
    """:return: CPU time of one call in seconds"""
    start = time.process_time()
    for _ in range(calls):
        function()
    return (time.process_time() - start) / calls


def mapping_of(array: np.ndarray) -> mmap.mmap:
    """:return: the mapped file of an array on disk"""
    base: Any = array
    while not isinstance(base, mmap.mmap):
        base = base.base
    return base


def forget_pages(buffer: SequenceReplayBuffer, folder: str) -> None:
    """Write the rows to disk and drop them from the page cache."""
    for array in buffer._arrays().values():
        if array.size:
            mapping = mapping_of(array)
            mapping.flush()
            mapping.madvise(mmap.MADV_DONTNEED)
    for name in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{name}"
        if os.path.islink(path) and os.readlink(path).startswith(os.path.realpath(folder)):
            os.posix_fadvise(int(name), 0, 0, os.POSIX_FADV_DONTNEED)


def compare_storages(frames: np.ndarray, rows: int, rounds: int, folder: str) -> dict[str, Any]:
    """:return: times of both storages, in one line"""
    space, action_space = spaces.Box(0, 255, frames.shape[1:], np.uint8), spaces.Discrete(6)
    latent_shape = resolve_model_size("12m").latent_shape
    kwargs = dict(n_envs=1, batch_length=LENGTH, latent_shape=latent_shape, online_queue=False, storage_folder=folder)
    storages = ("memory", "disk")
    buffers = {name: SequenceReplayBuffer(rows, space, action_space, "cpu", storage=name, **kwargs) for name in storages}
    add = {name: adds(buffer, frames).__next__ for name, buffer in buffers.items()}
    times: dict[str, list[float]] = {f"{part}_{name}": [] for part in ("first_add", "add", "sample") for name in storages}
    for _ in range(rows // ADDS + 1):  # the last round overwrites the oldest rows
        for name in storages:
            times[f"first_add_{name}"].append(cpu_seconds(add[name], ADDS))
    for _ in range(rounds):
        for name in storages:
            times[f"add_{name}"].append(cpu_seconds(add[name], ADDS))
        for name in storages:
            np.random.seed(0)
            times[f"sample_{name}"].append(cpu_seconds(lambda name=name: buffers[name].sample(BATCH), 20))
    cold = []
    for _ in range(rounds):
        forget_pages(buffers["disk"], folder)
        start = time.perf_counter()
        buffers["disk"].sample(BATCH)
        cold.append(time.perf_counter() - start)
    medians = {name: float(np.median(values)) for name, values in times.items()}
    image_bytes = as_array_dict(buffers["disk"].observations)["obs"].nbytes
    return {
        "rows": rows,
        "gigabytes": round(buffers["disk"].nbytes / 1e9, 3),
        "image_gigabytes": round(image_bytes / 1e9, 3),
        **{f"{name}_us": round(1e6 * medians[name], 1) for name in medians if "add" in name},
        **{f"{name}_ms": round(1e3 * medians[name], 3) for name in medians if "sample" in name},
        **{
            f"{part}_ratio": round(medians[f"{part}_disk"] / medians[f"{part}_memory"], 3)
            for part in ("first_add", "add", "sample")
        },
        "sample_disk_cold_wall_ms": round(1e3 * float(np.median(cold)), 1),
    }


def codecs() -> dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]]:
    """:return: functions that compress and decompress, by name"""
    found: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
        "zlib level 1": (lambda data: zlib.compress(data, 1), zlib.decompress)
    }
    try:
        block = importlib.import_module("lz4.block")
        found["lz4"] = block.compress, block.decompress
    except ImportError:
        pass
    try:
        zstd = importlib.import_module("zstandard")
        found["zstd level 1"] = zstd.ZstdCompressor(level=1).compress, zstd.ZstdDecompressor().decompress
    except ImportError:
        pass
    try:
        blosc2 = importlib.import_module("blosc2")
        found["blosc2 lz4, bytes shuffled by 3"] = (
            lambda data: blosc2.compress(data, typesize=3, clevel=5, codec=blosc2.Codec.LZ4),
            blosc2.decompress,
        )
    except ImportError:
        pass
    return found


def try_compression(frames: np.ndarray, rounds: int) -> Iterator[dict[str, Any]]:
    """Compress each image separately, because rows are read and overwritten one at a time."""
    images = [frame.tobytes() for frame in frames[: BATCH * LENGTH]]
    for name, (compress, decompress) in codecs().items():
        packed = [compress(image) for image in images]
        out = np.empty((len(images), *frames.shape[1:]), np.uint8)

        def unpack(packed: list[bytes] = packed, out: np.ndarray = out, decompress: Callable = decompress) -> None:
            for index, data in enumerate(packed):
                out[index] = np.frombuffer(decompress(data), np.uint8).reshape(out.shape[1:])

        unpack()
        assert (out == frames[: len(out)]).all()
        compress_all = lambda compress=compress: [compress(image) for image in images]  # noqa: E731
        yield {
            "codec": name,
            "size_ratio": round(sum(map(len, images)) / sum(map(len, packed)), 1),
            "compress_us_per_row": round(1e6 * min(cpu_seconds(compress_all, 1) for _ in range(rounds)) / len(images), 1),
            "decompress_ms_per_batch": round(1e3 * min(cpu_seconds(unpack, 1) for _ in range(rounds)), 2),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--env", default="sb3_dreamer/PixelCatch-v0", help="environment of images, for the contents of the rows"
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--frames", type=int, default=2000, help="different frames, which are repeated")
    parser.add_argument("--iterations", type=int, default=20, help="rounds")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="folder of the disk")
    args = parser.parse_args()
    frames = frames_of(args.env, args.frames)
    print(json.dumps({"env": args.env, **compare_storages(frames, args.rows, args.iterations, args.folder)}), flush=True)
    for line in try_compression(frames, args.iterations):
        print(json.dumps({"env": args.env, **line}), flush=True)


if __name__ == "__main__":
    main()
