"""
Time, size and memory of saving and loading a model with a replay buffer of 64x64x3 images: a checkpoint of
``DreamerCheckpointCallback``, complete and after some more rows, next to SB3's ``save_replay_buffer``. Linux only.

    python -m benchmarks.speed.checkpoints --rows 100000 --folder /scratch

Prints one line of JSON. Memory is the peak of the process above what it used before the call.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.env_util import make_vec_env

from sb3_dreamer import DreamerV3
from sb3_dreamer.common.checkpoint import open_checkpoint
from sb3_dreamer.dreamerv3.resume import load_content

MORE_ROWS = 1000


def status(field: str) -> float:
    """:return: a memory figure of this process in GB"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e9


def measure(function: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """:return: result, CPU and wall time in seconds, and peak of the memory above the present one in GB"""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    before, cpu, wall = status("VmRSS"), time.process_time(), time.perf_counter()
    result = function()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return result, {"cpu_s": round(cpu, 2), "wall_s": round(wall, 2), "extra_gb": round(max(0, status("VmHWM") - before), 3)}


def make_model(rows: int) -> DreamerV3:
    """:return: a model whose replay buffer has room for so many rows"""
    env = make_vec_env("sb3_dreamer/PixelCatch-v0", 1, seed=0)
    return DreamerV3("CnnPolicy", env, model_size="debug", buffer_size=rows, seed=0, device="cpu", batch_length=16)


def add_rows(model: DreamerV3, n_rows: int) -> None:
    """Add random images to the replay buffer, in one long episode."""
    rng, zero = np.random.default_rng(int(model.replay_buffer.counts[0])), np.zeros(1)
    images = rng.integers(0, 256, (256, 1, 3, 64, 64), dtype=np.uint8)
    for row in range(n_rows):
        model.replay_buffer.add(images[row % 256], images[(row + 1) % 256], zero, zero, zero, [{}])
    model.num_timesteps += n_rows


def measure_saving(rows: int, folder: Path) -> tuple[dict[str, Any], Path]:
    """:return: figures of all but loading a checkpoint, and the last checkpoint"""
    model, line, pkl = make_model(rows), {}, folder / "replay.pkl"
    add_rows(model, rows - 2 * MORE_ROWS)
    _, line["save_replay_buffer"] = measure(lambda: model.save_replay_buffer(pkl))
    line["save_replay_buffer"]["gb"] = round(pkl.stat().st_size / 1e9, 3)
    _, line["load_replay_buffer"] = measure(lambda: model.load_replay_buffer(pkl))
    pkl.unlink()
    for name in ("complete", "after_more_rows"):
        checkpoint, line[name] = measure(lambda: model.save_checkpoint(folder / "checkpoints"))
        written = [path for path in checkpoint.rglob("*") if path.is_file() and path.stat().st_nlink == 1]
        line[name]["gb"] = round(sum(path.stat().st_size for path in written) / 1e9, 3)
        add_rows(model, MORE_ROWS)
    return line, checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--folder", help="where to write; default: the system's folder for temporary files")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        line, path = measure_saving(args.rows, Path(folder))
        checkpoint = open_checkpoint(path)
        model = make_model(args.rows)
        _, line["load_checkpoint"] = measure(lambda: load_content(model, checkpoint, checkpoint.content()))
    sizes = {"rows": args.rows, "more_rows": MORE_ROWS, "buffer_gb": round(model.replay_buffer.nbytes / 1e9, 3)}
    print(json.dumps(sizes | line))


if __name__ == "__main__":
    main()
