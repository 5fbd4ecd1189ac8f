"""RL Zoo under torchrun: steps are counted over all ranks, and only the main rank writes files."""

import atexit
from pathlib import Path

import pytest

from sb3_dreamer.zoo.ranks import adapt_to_rank


def adapted(rank: int, monkeypatch, **kwargs):
    """:return: arguments of ``ExperimentManager`` on this rank of four"""
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "4")
    arguments = dict(optimize_hyperparameters=False, eval_freq=1000, save_freq=-1, log_folder="logs", tensorboard_log="board")
    arguments |= dict(verbose=1, show_progress=True, n_timesteps=5000) | kwargs
    adapt_to_rank(arguments)
    return arguments


def test_the_main_rank_evaluates_after_as_many_steps_of_all(monkeypatch):
    ours = adapted(0, monkeypatch, eval_freq=1000, save_freq=2002)
    assert (ours["eval_freq"], ours["save_freq"]) == (250, 500) and ours["n_timesteps"] == 5000
    assert (ours["log_folder"], ours["tensorboard_log"], ours["verbose"], ours["show_progress"]) == ("logs", "board", 1, True)
    ours = adapted(0, monkeypatch, eval_freq=3, save_freq=-1)
    assert (ours["eval_freq"], ours["save_freq"]) == (1, -1)  # -1 (never) is unchanged


def test_other_ranks_are_silent_and_write_nothing(monkeypatch):
    at_exit = []
    monkeypatch.setattr(atexit, "register", lambda *args, **kwargs: at_exit.append((args, kwargs)))
    ours = adapted(2, monkeypatch, save_freq=500)
    assert (ours["eval_freq"], ours["save_freq"], ours["verbose"], ours["show_progress"]) == (-1, -1, 0, False)
    folder = Path(ours["log_folder"])
    assert ours["tensorboard_log"] == "" and folder.is_dir() and not list(folder.iterdir())
    (folder / "model.zip").write_text("")
    (((remove, *args), kwargs),) = at_exit
    remove(*args, **kwargs)
    assert not folder.exists()


def test_a_search_needs_one_process(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="`-optimize` must run in one process"):
        adapt_to_rank({"optimize_hyperparameters": True})
