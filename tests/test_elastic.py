"""torchrun restarts: all ranks resume from the last complete checkpoint, with the same number of ranks or another one."""

import numpy as np
import pytest
import torch as th

from sb3_dreamer import DreamerV3
from sb3_dreamer.callbacks import DreamerCheckpointCallback
from sb3_dreamer.common.checkpoint import find_checkpoints, open_checkpoint
from tests.support.helpers import counter_envs, counter_model
from tests.support.replay import check_rows, stream
from tests.test_distributed import ONE_MACHINE, finish, start


def run(folder, n_ranks, *arguments):
    worker = ["-m", "tests.support.elastic_worker", folder, *arguments]
    status, output = finish(start(worker, *ONE_MACHINE, f"--nproc-per-node={n_ranks}", "--max-restarts=1"))
    assert status == 0, output
    return [th.load(folder / f"rank{rank}.pt") for rank in range(n_ranks)]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Two ranks, one of which was killed after 150 steps of both."""
    folder = tmp_path_factory.mktemp("elastic")
    return folder, run(folder, 2, 240, 150)


def test_a_killed_rank_is_restarted_and_the_run_finishes(killed):
    folder, ranks = killed
    for result in ranks:
        assert 120 <= result["resumed_at"] < 156 and result["steps"] == 240
        assert result["updates"] > result["updates_before"] > 0
        # No row is lost: 40 steps of each of three environments, and a row for the first observation of each episode.
        assert result["counts"] == [
            40 + -(-40 // length) + extra for length, extra in zip((7, 11, 13), (0, 0, 0), strict=True)
        ]
        at = result["resumed_at"] // 6
        assert result["rows_at_start"] == [at + -(-at // length) for length in (7, 11, 13)]
    for name, value in ranks[0]["weights"].items():
        assert th.equal(value, ranks[1]["weights"][name]), name
    open_checkpoint(folder / "checkpoints").verify()


def test_fewer_ranks_keep_the_rows_of_all(killed, tmp_path):
    """One process continues, with the rows of the second rank as older ones."""
    folder, ranks = killed
    model = DreamerV3.resume(folder / "checkpoints", counter_envs())
    assert model.n_ranks == 1 and model.num_timesteps == 240
    both = np.add(ranks[0]["counts"], ranks[1]["counts"])
    np.testing.assert_array_equal(model.replay_buffer.counts, both)
    for env, n_older in enumerate(ranks[1]["counts"]):
        rows = stream(model.replay_buffer, env)
        check_rows({name: part[: n_older - 1] for name, part in rows.items()}, env)
        check_rows({name: part[n_older:] for name, part in rows.items()}, env)
        assert rows["dones"][n_older - 1] and rows["is_first"][n_older]
    updates = model._n_updates
    model.learn(60, callback=DreamerCheckpointCallback(30, tmp_path / "alone"), reset_num_timesteps=False)
    assert model._n_updates > updates and model.num_timesteps == 300
    # The episodes of the remaining rank go on: 60 steps of each environment, and a row for each first observation.
    mine = [60 + -(-60 // length) for length in (7, 11, 13)]
    np.testing.assert_array_equal(model.replay_buffer.counts, np.add(ranks[1]["counts"], mine))
    again = DreamerV3.resume(tmp_path / "alone", counter_envs())
    np.testing.assert_array_equal(again.replay_buffer.counts, model.replay_buffer.counts)


def test_more_ranks_start_with_an_empty_buffer(killed):
    """Training waits until the new rank has a window."""
    folder, _ = killed
    ranks = run(folder, 3, 420)
    assert ranks[2]["rows_at_start"] == [0, 0, 0] and ranks[0]["rows_at_start"][0] > 40
    for result in ranks:
        assert result["resumed_at"] == 240 and result["steps"] >= 420 and result["updates"] > result["updates_before"]
    assert [folder.name for folder in find_checkpoints(folder / "checkpoints")][-1] >= "checkpoint_000000420"


def test_ranks_that_load_a_seeded_model_draw_different_numbers(tmp_path):
    counter_model().save(tmp_path / "model")
    first, second = run(tmp_path, 2, "load")
    assert not th.equal(first["torch"], second["torch"])
    assert set(first["seeds"]).isdisjoint(second["seeds"]) and len(set(first["seeds"])) == 3
