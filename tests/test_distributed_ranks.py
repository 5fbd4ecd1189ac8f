"""The interface of ranks for a single process, and that several ranks have the same interface."""

import inspect

import torch as th

from sb3_dreamer.common.distributed.ranks import Agreement, Ranks
from sb3_dreamer.common.distributed.torchrun import ManyRanks


def public_methods(cls) -> dict[str, list[str]]:
    """:return: names of the parameters of each method"""
    methods = inspect.getmembers(cls, inspect.isfunction)
    return {name: list(inspect.signature(method).parameters) for name, method in methods if not name.startswith("_")}


def test_ranks_of_a_launcher_have_the_methods_of_one_process():
    assert issubclass(ManyRanks, Ranks)
    one, many = public_methods(Ranks), public_methods(ManyRanks)
    assert {name: many[name] for name in one} == one
    inherited = {name for name in one if name not in vars(ManyRanks)}
    assert not inherited, inherited  # each must be overridden for several ranks


def test_one_process_agrees_with_itself():
    ranks = Ranks()
    assert (ranks.rank, ranks.size, ranks.is_main, ranks.is_launched) == (0, 1, True, False)
    assert ranks.sync_rollout(7, False, True) == Agreement(7, False, True, [], False)
    assert ranks.sync_rollout(7, True, False, has_changes=True) == Agreement(7, True, False, [], True)
    tensor, callback = th.ones(3), object()
    assert ranks.mean(tensor) is ranks.gather(tensor) is tensor
    assert ranks.callback(callback, True) == (callback, True)
    for name in ("device", "seed", "file"):
        assert getattr(ranks, name)("anything") == "anything"
    assert ranks.random_states() is None and ranks.shared_paths() == []
    with ranks.learning({"a": 1}):
        ranks.check_equal({"a": 1})
        ranks.broadcast([tensor])
    saved = []
    ranks.main_saves(saved.append, "path", (0, 0))
    ranks.request_buffer_save("path")
    ranks.save_follower_buffers([], saved.append)
    assert saved == ["path"] and th.equal(tensor, th.ones(3))
