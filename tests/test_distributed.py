"""Several ranks under torchrun on a CPU with gloo: updates equal those of one rank, ranks stay in sync and stop together."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch as th
import yaml
from stable_baselines3.common.monitor import load_results

from sb3_dreamer.common.distributed.ranks import Agreement, Ranks
from tests.support.rank_worker import N_UPDATES, updates

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
ONE_MACHINE = ["--standalone"]


def start(arguments, *options):
    """:return: a running launcher in its own process group"""
    command = [*TORCHRUN, *options, *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def finish(process, timeout=300):
    """:return: exit status and output, after all processes have ended"""
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    return process.returncode, output


def run_ranks(scenario, folder, n_ranks):
    """:return: the result of each rank, and the output"""
    worker = ["-m", "tests.support.rank_worker", scenario, folder]
    status, output = finish(start(worker, *ONE_MACHINE, f"--nproc-per-node={n_ranks}"))
    assert status == 0, output
    return [th.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(n_ranks)], output


# ---- exactness ----


@pytest.fixture(scope="module")
def one_rank():
    return updates(Ranks())


def largest_error(ours, theirs):
    return max(
        float((ours[name] - tensor).abs().max() / tensor.abs().max().clamp_min(1e-12)) for name, tensor in theirs.items()
    )


def assert_as_one_rank(ours, theirs):
    assert len(theirs["gradients"]) == N_UPDATES
    for mine, expected in zip(ours["gradients"], theirs["gradients"], strict=True):
        assert mine.keys() == expected.keys() == set(theirs["trained"])
        assert largest_error(mine, expected) < 1e-9
    for name, tensor in theirs["parameters"].items():
        th.testing.assert_close(ours["parameters"][name], tensor, rtol=1e-9, atol=1e-9, msg=name)
    for name in theirs["trained"]:
        assert (theirs["parameters"][name] - theirs["before"][name]).abs().max() > 1e-4, name
    th.testing.assert_close(ours["normalizer"], theirs["normalizer"], rtol=1e-12, atol=1e-12)
    for name, values in theirs["metrics"].items():
        th.testing.assert_close(ours["metrics"][name], values, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind, n_ranks", [("pieces", 1), ("pieces", 2), ("pieces", 4), ("ddp", 2)])
def test_ranks_that_share_a_batch_equal_one_rank(kind, n_ranks, one_rank, tmp_path):
    for result in run_ranks(kind, tmp_path, n_ranks)[0]:
        assert_as_one_rank(result, one_rank)


def test_without_the_reduction_ranks_differ(one_rank, tmp_path):
    """The comparison detects it: gradients differ by far more than rounding."""
    for result in run_ranks("unreduced", tmp_path, 2)[0]:
        assert largest_error(result["gradients"][0], one_rank["gradients"][0]) > 1e-2
        with pytest.raises(AssertionError):
            assert_as_one_rank(result, one_rank)


def test_two_machines_equal_one_rank(one_rank, tmp_path):
    """Two launchers that meet at a rendezvous, as on two machines."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        endpoint = f"localhost:{probe.getsockname()[1]}"
    meeting = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", "--rdzv-id=test"]
    machines = [start(["-m", "tests.support.rank_worker", "pieces", tmp_path], *meeting) for _ in range(2)]
    for status, output in map(finish, machines):
        assert status == 0, output
    for rank in range(2):
        assert_as_one_rank(th.load(tmp_path / f"rank{rank}.pt", weights_only=False), one_rank)


def test_ranks_skip_an_update_together(tmp_path):
    """Although the numbers of only one of them are not finite."""
    ours, theirs = run_ranks("skips", tmp_path, 2)[0]
    for results in (ours, theirs):
        assert [result["is_made"] for result in results] == [True, False, True, False, True]
        for i in (1, 3):
            assert all(map(th.equal, results[i]["state"], results[i - 1]["state"]))
        assert not all(map(th.equal, results[2]["state"], results[1]["state"]))
    assert all(map(th.equal, ours[-1]["state"], theirs[-1]["state"]))


@pytest.mark.parametrize("n_ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_captured_pieces_with_collectives_between_them(n_ranks, tmp_path):
    """
    Ranks capture again together although the tensors of only one have moved, which makes its updates without capturing until
    then. They fall back together although only one cannot capture. Nothing stale is read, and no collective runs inside of a
    captured piece.
    """
    results, _ = run_ranks("captured", tmp_path, n_ranks)
    expected, _ = run_ranks("uncaptured", tmp_path, n_ranks)
    for result in results:
        assert all(map(th.equal, result["state"], results[0]["state"]))
        # Rounding grows with the updates.
        for i, tolerance in ((0, 1e-12), (49, 1e-9), (61, 1e-8), (101, 1e-3)):
            np.testing.assert_allclose(result["trace"][i], expected[0]["trace"][i], rtol=tolerance, atol=tolerance)
        assert result["n_collectives"] == results[0]["n_collectives"] >= 2 * 200
        captures = result["captures"]
        assert [captures[i] for i in (0, 59, 60, 99, 100, 149)] == [3, 3, 6, 6, 9, 9]
    # At the failure the other ranks have captured three more pieces, which they drop.
    assert [result["captures"][-1] for result in results] == [12, 9, 12, 12][:n_ranks]
    for rank, result in enumerate(results):
        (message,) = result["warned"]
        assert ("this rank cannot capture" if rank == 1 else "it failed on another rank") in message


def test_captured_pieces_are_deleted_before_the_process_group(tmp_path):
    _, output = run_ranks("leave", tmp_path, 2)
    assert output.count("graph deleted, group exists: True") == 2 * 3 and "exists: False" not in output


def test_gradients_in_16_bits_are_close(one_rank, tmp_path):
    first, second = run_ranks("bf16", tmp_path, 2)[0]
    assert largest_error(first["gradients"][0], one_rank["gradients"][0]) < 1e-2
    assert largest_error(first["gradients"][0], one_rank["gradients"][0]) > 1e-6
    assert all(th.equal(first["parameters"][name], tensor) for name, tensor in second["parameters"].items())


# ---- a real run ----


@pytest.fixture(scope="module")
def real_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, *run_ranks("learn", folder, 2)


def test_a_run_with_callbacks_stays_in_sync_and_stops_together(real_run):
    _, (main, other), _ = real_run
    # Bit-equal: after a run that the main rank stopped in the middle of a rollout, after another run, and after loading.
    for name in (
        "fingerprint",
        "fingerprint_at_start",
        "fingerprint_later",
        "fingerprint_loaded",
        "fingerprint_ddp",
        "n_updates",
        "num_timesteps",
    ):
        assert main[name] == other[name], name
    # A rollout is 3 steps of 2 x 2 environments. The main rank stops at 896 steps, in the second step of rollout 75. The other
    # rank is informed after the rollout. The steps of both are counted.
    assert main["num_timesteps"] == 74 * 12 + 2 * 2 + 3 * 2
    assert (main["calls"], other["calls"]) == ((224, 224), (0, 225))
    # 16 trained time steps per environment step, 2 x 4 x 8 per update. Training starts with one update after 64 steps.
    assert main["n_updates"] == 1 + (74 * 12 - 72) * 16 // (2 * 4 * 8) > 200
    # Two ranks: sqrt(2) times the learning rate. Update number n has warm-up factor (n - 1) / 1000.
    assert main["rate"] == other["rate"] == pytest.approx(1e-3 * 2**0.5 * (main["n_updates"] - 1) / 1000, rel=1e-9)
    # Each rank has its own environments, rows and random states, and loads them.
    assert not np.array_equal(main["first_rows"], other["first_rows"])
    for result in (main, other):
        assert result["own_rows"] and result["random_goes_on"] and result["wrapper_is_gone"]
    assert main["rows"] > 0 and other["rows"] > 0
    # The statistics cover the observations of both ranks, including the first run of 12 steps and two resets of 2 x 2
    # environments.
    seen = np.concatenate([main["seen"], other["seen"]])
    assert len(seen) == main["num_timesteps"] + 12 + 2 * 4
    for mine, theirs, expected in zip(
        main["statistics"], other["statistics"], (seen.mean(0), seen.var(0), len(seen)), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)
        np.testing.assert_allclose(mine, expected, rtol=1e-3, atol=1e-6)


def test_files_and_output_are_the_main_ranks(real_run):
    folder, (main, other), output = real_run
    assert main["seconds"] > 6.0  # the evaluation took longer than the timeout of the gradients' process group
    assert (other["writers"], other["verbose"]) == ([], 0)
    assert main["writers"] == ["HumanOutputFormat", "TensorBoardOutputFormat"]
    assert len(list((folder / "board").iterdir())) == 5  # one run continued in its folder
    assert not (folder / "model_of_1.zip").exists()
    assert re.search(r"has not saved \S+model_of_1.zip within 2 s", output)
    monitors = sorted(path.name for path in (folder / "monitor").iterdir())
    assert monitors == ["0.monitor.csv", "1.monitor.csv"]
    results = load_results(str(folder / "monitor"))
    assert 300 < results["l"].sum() < 800  # one of two ranks
    saved = {path.name for path in (folder / "checkpoints").iterdir()}
    # A checkpoint is written at 400 and 800 steps. The other rank is informed after the rollout.
    for steps in (400, 800):
        for name in (
            "rl_model_{}_steps.zip",
            "rl_model_replay_buffer_{}_steps.pkl",
            "rl_model_replay_buffer_{}_steps_rank1.pkl",
        ):
            assert name.format(steps) in saved, saved
    assert (
        "2 ranks, distributed_scaling='sqrt': windows per update 4 -> 8, environments 2 -> 4, learning rate times 1.414"
        in output
    )
    assert output.count("2 ranks,") == 6  # once per run
    assert output.count("gradients in one all-reduce") == 4 and output.count("through torch's DDP") == 2
    assert "FutureWarning" not in output


@pytest.mark.parametrize("command", [["-m", "rl_zoo3.train"], ["-m", "sb3_dreamer.zoo", "train"]], ids=["stock", "ours"])
def test_other_algorithms_of_the_zoo_keep_their_files(command, tmp_path):
    """Each rank trains PPO independently in its own folder."""
    arguments = ["--algo", "ppo", "--env", "CartPole-v1", "-n", "64", "--eval-freq", "-1", "--log-folder", str(tmp_path)]
    environment = {**ENVIRONMENT, "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "x", "MASTER_PORT": "1"}
    subprocess.run(
        [sys.executable, *command, *arguments, "--hyperparams", "n_steps:32", "n_envs:1"],
        env=environment,
        check=True,
        capture_output=True,
    )
    assert len(list(tmp_path.glob("ppo/*/0.monitor.csv"))) == 1


def test_compiled_steps_and_a_load_right_after_a_save(tmp_path):
    (main, other), output = run_ranks("compiled", tmp_path, 2)
    assert main["is_compiled"] and other["is_compiled"]
    assert main["fingerprint"] == other["fingerprint"] == main["loaded"] == other["loaded"]
    assert output.count("Compiled one step") == 1
    assert output.count("Using cpu device") == 1  # printed once, by the main rank, for the verbose model


def test_zoo_trains_with_ranks(tmp_path):
    preset = {"CartPole-v1": {"n_timesteps": 400, "policy": "MlpPolicy", "distributed_scaling": "linear"}}
    preset["CartPole-v1"] |= {
        "model_size": "debug",
        "batch_size": 4,
        "batch_length": 8,
        "training_ratio": 8,
        "learning_starts": 64,
    }
    (tmp_path / "preset.yml").write_text(yaml.safe_dump(preset))
    command = "-m rl_zoo3.train --algo dreamerv3 --env CartPole-v1 --num-threads 1 -P"
    options = "--eval-freq 200 --eval-episodes 1 --save-replay-buffer"
    folders = ["--log-folder", tmp_path / "logs", "-conf", tmp_path / "preset.yml"]
    arguments = [*command.split(), *options.split(), *folders]
    status, output = finish(start(arguments, *ONE_MACHINE, "--nproc-per-node=2"))
    assert status == 0, output
    (folder,) = (tmp_path / "logs" / "dreamerv3").iterdir()
    names = {path.name for path in folder.iterdir()}
    assert {"CartPole-v1.zip", "best_model.zip", "evaluations.npz", "replay_buffer.pkl", "replay_buffer_rank1.pkl"} <= names
    assert list(np.load(folder / "evaluations.npz")["timesteps"]) == [200, 400]
    assert "learning rate times 2," in output
    assert yaml.unsafe_load((folder / "CartPole-v1" / "config.yml").read_text())


def test_the_example_trains_with_ranks(tmp_path):
    options = (
        "--steps 240 --model-size debug --batch-size 2 --training-ratio 64 --n-envs 2 --eval-freq 30 --scaling linear+priming"
    )
    arguments = [
        "examples/multi_gpu.py",
        "--env",
        "sb3_dreamer/PixelCatch16-v0",
        *options.split(),
        "--log-dir",
        tmp_path / "logs",
    ]
    status, output = finish(start(arguments, *ONE_MACHINE, "--nproc-per-node=2"))
    assert status == 0, output
    names = {path.name for path in (tmp_path / "logs").iterdir()}
    assert {"best_model.zip", "evaluations.npz", "model.zip", "rl_model_replay_buffer_240_steps_rank1.pkl"} <= names, names


# ---- failures ----


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("kill", "Signal 9 (SIGKILL)"),
        ("terminate", "Signal 15 (SIGTERM)"),
        ("error", "FileNotFoundError: the environment of rank 1 is gone"),
        ("script", "FileNotFoundError: the script of rank 1 failed"),
    ],
)
def test_a_failing_rank_ends_all(kind, message, tmp_path):
    status, output = finish(
        start(["-m", "tests.support.rank_worker", kind, tmp_path], *ONE_MACHINE, "--nproc-per-node=2"), timeout=90
    )
    assert status != 0
    assert time.time() - float((tmp_path / "accident").read_text()) < 30
    report = output[output.index("Root Cause (first observed failure)") :]
    assert message in report, output
    assert "rank      : 1 " in report


def test_ctrl_c_ends_all(tmp_path):
    process = start(["-m", "tests.support.rank_worker", "interrupt", tmp_path], *ONE_MACHINE, "--nproc-per-node=2")
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.1)
        assert process.poll() is None, process.communicate()
    begin = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # as from a terminal
    status, output = finish(process, timeout=60)
    assert status != 0
    assert time.monotonic() - begin < 30
    assert "KeyboardInterrupt" in output or "SignalException" in output, output


def test_ranks_that_differ_agree_or_raise(tmp_path):
    (main, other), _ = run_ranks("differ", tmp_path, 2)
    seeds = main.pop("seeds"), other.pop("seeds")
    assert (seeds[0][0], seeds[1][0]) == (7, 1007)
    assert seeds[0][1] != seeds[1][1]
    assert main == other
    assert main["steps"] == Agreement(7, True, True, [])
    assert main["stop"] == Agreement(2, False, True, [])
    assert main["short buffer"] == Agreement(2, True, False, [])
    assert main["batch_size"] == "`batch_size` must be the same on all ranks, got [4, 5]"
    # Training starts with one update after 26 steps. Each of the next 32 steps adds 32 / (2 x 4 x 8) updates. From step 60 on,
    # windows are 8 x 6 and a rollout is 4 steps, so it ends after 92, and 34 steps add 64 / (2 x 8 x 6) updates each.
    assert main["set on all"][:2] == (0.1, 1 + 16 + 22)
    hint = "a callback that changes settings needs `all_ranks = True`"
    assert main["set on one: ent_coef"] == f"`ent_coef` must be the same on all ranks, got [0.2, 0.1]: {hint}"
    assert main["set on one: training_ratio"] == f"`training_ratio` must be the same on all ranks, got [16, 64]: {hint}"
    assert main["set on one: learning_rate"] == f"`learning_rate` must be the same on all ranks, got [0.01, 0.001]: {hint}"
    assert main["after that"][0] > 39
    assert main["train_freq"] == "`train_freq` in episodes needs one rank, got 2: use (n, 'step')"


# ---- without a launcher ----


def test_one_process_does_not_use_torch_distributed():
    script = """
import sys, json
from sb3_dreamer import DreamerV3
from tests.support.helpers import TINY
model = DreamerV3("MlpPolicy", "CartPole-v1", **TINY, distributed_scaling="linear", learning_rate=1e-3, lr_warmup_steps=0)
model.learn(50)
import torch.distributed as dist
rate = model.policy.optimizer.param_groups[0]["lr"]
names = [name for name in sys.modules if name.startswith("sb3_dreamer") and ("torchrun" in name or "ddp" in name)]
print(json.dumps([names, dist.is_initialized(), rate, model._n_updates]))
"""
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    names, is_initialized, rate, n_updates = json.loads(result.stdout.splitlines()[-1])
    assert (names, is_initialized, rate) == ([], False, 1e-3)
    assert n_updates > 0
