"""The training update: captured and compiled updates equal eager ones, and no update waits for the device."""

import warnings
from copy import deepcopy
from functools import partial

import pytest
import torch as th
from gymnasium import spaces
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.speed.workloads import VIEWS
from sb3_dreamer.dreamerv3.fast.captured import CapturedStep, CapturedUpdate
from sb3_dreamer.dreamerv3.fast.cells import maybe_compiled
from sb3_dreamer.dreamerv3.fast.compiled import CompiledUpdate
from sb3_dreamer.dreamerv3.fast.make_update import make_acting, make_update
from sb3_dreamer.dreamerv3.update import TrainingUpdate
from tests.support.helpers import IMAGE, MIXED, VECTOR, counter_model, double, make_loss, make_policy, random_batch
from tests.support.python_graph import PythonGraph


def make(space=VECTOR, action_space=None, **kwargs):
    policy = make_policy(space, action_space or spaces.Discrete(3), **kwargs)
    policy.double()  # in float32, rounding differs, and one different sample changes everything after it
    for group in policy.optimizer.param_groups:
        group["lr"] = 1e-2
    return TrainingUpdate(make_loss(policy), agc_clip=0.3, tau=0.02)


def run(update, policy, seeds, rates=None):
    """Make updates with batches of these seeds. The random state is reset first."""
    th.manual_seed(1)
    metrics = []
    for i, seed in enumerate(seeds):
        if rates is not None:
            for group in policy.optimizer.param_groups:
                group["lr"] = rates[i]
        metrics.append(update(double(random_batch(policy, seed=seed))).metrics.clone())
    return th.stack(metrics), {name: tensor.clone() for name, tensor in policy.state_dict().items()}


def assert_same(ours, theirs, tolerance=1e-6):
    th.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-6)
    for name, tensor in theirs[1].items():
        th.testing.assert_close(ours[1][name], tensor, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("space", [VECTOR, IMAGE, MIXED], ids=["vector", "image", "dict"])
def test_a_captured_update_equals_an_eager_one(space):
    """Warm-up and capture change nothing: parameters, optimiser, normaliser and random state equal those of eager updates."""
    rates = [1e-2, 3e-3, 0.0, 1e-2]
    plain, captured = make(space), make(space)
    expected = run(plain, plain.policy, range(4), rates)
    before = {name: tensor.clone() for name, tensor in captured.policy.state_dict().items()}
    ours = run(CapturedUpdate(captured, PythonGraph), captured.policy, range(4), rates)
    assert_same(ours, expected)
    moved = [not th.equal(before[name], tensor) for name, tensor in ours[1].items()]
    assert sum(moved) > 20
    assert int(captured.policy.optimizer.param_groups[0]["step"]) == 4


def test_a_new_shape_or_moved_memory_is_captured_again():
    update = CapturedUpdate(make(), PythonGraph)
    made = []
    update.capture.make_graph = lambda: (made.append(PythonGraph()), made[-1])[1]
    policy = update.update.policy
    batch = double(random_batch(policy))
    update(batch)
    update(batch)
    assert len(made) == 1
    policy.load_state_dict({name: 0.9 * tensor for name, tensor in policy.state_dict().items()})  # in place
    update(batch)
    assert len(made) == 1
    policy.optimizer.load_state_dict(policy.optimizer.state_dict())  # new tensors
    update(batch)
    assert len(made) == 2
    update(double(random_batch(policy, batch_size=2)))
    assert len(made) == 3
    policy.to(th.device("cpu"))  # no tensor moves
    update(double(random_batch(policy, batch_size=2)))
    assert len(made) == 3


def test_a_loaded_optimiser_continues_like_the_eager_update():
    plain, captured = make(), make()
    twin = CapturedUpdate(captured, PythonGraph)
    run(plain, plain.policy, range(3))
    run(twin, captured.policy, [7, 8])  # other batches, so that the weights differ
    captured.policy.load_state_dict(plain.policy.state_dict())
    captured.policy.optimizer.load_state_dict(deepcopy(plain.policy.optimizer.state_dict()))
    assert_same(run(twin, captured.policy, [3, 4]), run(plain, plain.policy, [3, 4]))


def test_a_failed_capture_falls_back_to_eager_with_a_warning():
    class Broken(PythonGraph):
        def capture(self, function):
            function()
            raise RuntimeError("no such luck")

    plain, captured, rates = make(), make(), [0.0, 1e-2, 3e-3]  # detects a frozen learning rate
    expected = run(plain, plain.policy, range(3), rates)
    twin = CapturedUpdate(captured, Broken)
    with pytest.warns(UserWarning, match="no such luck"):
        ours = run(twin, captured.policy, range(3), rates)
    assert_same(ours, expected)
    step = CapturedStep(captured.policy.float(), Broken)
    observations, starts = random_batch(captured.policy).observations[:, 0], th.ones(4)
    with pytest.warns(UserWarning, match="Capturing the acting step failed"):
        actions, state = step(observations, None, starts)
    assert actions.shape == (4, 1) and step(observations, state, starts)[0].shape == (4, 1)


def test_files_of_a_captured_optimiser_contain_numbers():
    """Numbers instead of tensors, so that files load on any device and ``param_groups`` sets the learning rate."""
    captured, plain = make(), make()
    run(CapturedUpdate(captured, PythonGraph), captured.policy, range(2), [1e-2, 0.0])
    state = deepcopy(captured.policy.optimizer.state_dict())
    (group,) = state["param_groups"]
    assert group["step"] == 2 and isinstance(group["step"], int) and "lr_tensor" not in group
    plain.policy.load_state_dict(captured.policy.state_dict())
    plain.policy.optimizer.load_state_dict(state)
    twin = make()
    twin.policy.load_state_dict(captured.policy.state_dict())
    twin.policy.optimizer.load_state_dict(deepcopy(state))
    expected = run(plain, plain.policy, [5, 6], [1e-2, 1e-3])
    assert_same(run(CapturedUpdate(twin, PythonGraph), twin.policy, [5, 6], [1e-2, 1e-3]), expected)
    assert not th.equal(expected[1]["actor.output.weight"], captured.policy.actor.output.weight)


def test_a_frozen_module_does_not_change():
    update = make()
    batch = double(random_batch(update.policy))
    update(batch)
    encoder = update.policy.world_model.encoder.requires_grad_(False)
    before = [parameter.clone() for parameter in encoder.parameters()]
    update(batch)
    assert all(map(th.equal, before, encoder.parameters()))


def test_added_parameters_have_separate_gradients():
    class Sum(th.nn.Module):
        features_dim = 5

        def __init__(self, observation_space):
            super().__init__()
            self.a, self.b = (th.nn.Parameter(scale * th.ones(5)) for scale in (1.0, 100.0))

        def forward(self, obs):
            return obs + (self.a + self.b)

    update = make(encoder_class=Sum)
    update(double(random_batch(update.policy)))
    encoder = update.policy.world_model.encoder
    assert encoder.a.grad.data_ptr() != encoder.b.grad.data_ptr()


class Waits(TorchDispatchMode):
    """Counts operations, and those that would synchronise with the device."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique", "aten.equal.")

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        is_mask = "aten.index" in str(func) and any(i is not None and i.dtype == th.bool for i in args[1])
        self.names.append("nonzero of a mask" if is_mask else str(func))
        return func(*args, **(kwargs or {}))

    @property
    def waiting(self):
        return [name for name in self.names if any(word in name for word in self.WAITING)]


@pytest.mark.parametrize("action_space", [spaces.Discrete(3), spaces.MultiDiscrete([2, 4]), spaces.Box(-1, 1, (2,))], ids=str)
@pytest.mark.parametrize("space", [VECTOR, MIXED], ids=["vector", "dict"])
def test_an_update_never_waits_for_the_device(space, action_space):
    update = make(space, action_space)
    batch = double(random_batch(update.policy))
    update(batch)
    update.policy.optimizer.make_capturable()
    with Waits() as waits:
        update(batch)
    assert len(waits.names) > 500 and not waits.waiting


def test_the_counter_detects_synchronisation():
    with Waits() as waits:
        bool(th.ones(3).sum() > 2)
    assert len(waits.waiting) == 1
    with Waits() as waits:
        numbers = th.ones(3)
        numbers[numbers > 2]
    assert len(waits.waiting) == 1


def test_an_update_of_the_1m_model_is_a_bounded_number_of_operations():
    """24 numbers, 6 actions, batch 16 x 64, horizon 15. Independent of the machine. Views are not counted."""
    policy = make_policy(spaces.Box(-9, 9, (24,)), spaces.Box(-1, 1, (6,)), model_size="1m")
    update = TrainingUpdate(make_loss(policy, imagination_horizon=15), agc_clip=0.3, tau=0.02)
    batch = random_batch(policy, 16, 64)
    update(batch)
    with Waits() as counter:
        update(batch)
    n_operations = len([name for name in counter.names if not any(view in name for view in VIEWS)])
    assert 1_000 < n_operations <= 10_000
    assert len(counter.names) <= 15_600


def test_gradients_have_the_strides_of_their_parameters():
    update = make(IMAGE)
    update(double(random_batch(update.policy)))
    for name, parameter in update.policy.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.stride() == parameter.stride(), name


def test_choice_of_the_update():
    loss = make_loss(make_policy(VECTOR, spaces.Discrete(2)))
    for switch in ("auto", False):
        assert type(make_update(loss, 0.3, 0.02, switch, 0)) is TrainingUpdate  # on a CPU
    assert make_update(loss, 0.3, 0.02, True, 0).needs_compile
    plain = make_loss(loss.policy, fused=False)
    assert not make_update(plain, 0.3, 0.02, True, 0).needs_compile  # no fused loops to compile


def test_an_eager_update_after_a_captured_one():
    captured = make()
    run(CapturedUpdate(captured, PythonGraph), captured.policy, range(2), [0.0, 0.0])
    before = captured.policy.actor.output.weight.clone()
    plain = make_update(captured.loss_module, 0.3, 0.02, False, 0)
    run(plain, captured.policy, [3], [1e-2])
    assert not th.equal(before, captured.policy.actor.output.weight)


def test_the_step_by_step_path_is_reported_once(capsys):
    model = counter_model(verbose=1, policy_kwargs=dict(dynamics_layers=2))
    model.learn(60)
    model.learn(60)
    assert capsys.readouterr().out.count("Using the step-by-step model") == 1
    counter_model(verbose=1).learn(60)
    assert "step-by-step" not in capsys.readouterr().out


def test_a_failed_compilation_falls_back_to_eager(monkeypatch):
    expected = counter_model(training_ratio=8).learn(60).policy.state_dict()

    def refuse(function, dynamic):
        def compiled(*args):
            raise RuntimeError("no compiler here")

        return compiled

    monkeypatch.setattr(th, "compile", refuse)
    maybe_compiled.cache_clear()
    with pytest.warns(UserWarning, match="no compiler here"):
        model = counter_model(training_ratio=8, compile=True).learn(60)
    maybe_compiled.cache_clear()
    for name, tensor in model.policy.state_dict().items():
        assert th.equal(tensor, expected[name]), name


@pytest.mark.parametrize("space", [VECTOR, spaces.Dict({**MIXED.spaces, "n": spaces.Discrete(4)})], ids=["vector", "dict"])
def test_the_compiled_objective_makes_the_same_updates(space, monkeypatch):
    """As on CUDA, but without inductor, which is slow. In float32, because changes of float64 scalars are dropped."""
    monkeypatch.setattr(th, "compile", partial(th.compile, backend="aot_eager"))
    maybe_compiled.cache_clear()
    th._dynamo.reset()
    th._dynamo.utils.counters.clear()
    plain, traced = make(space), make(space)
    for policy in (plain.policy, traced.policy):
        policy.float()
    settings = dict(agc_clip=0.3, tau=0.02, compile_steps=True, compile_objective=True)
    whole = CompiledUpdate(traced.loss_module, **settings)
    results = []
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "torch.compile failed")
        for update in (plain, whole):
            th.manual_seed(1)
            metrics = [update(random_batch(update.policy, seed=seed)).metrics for seed in range(3)]
            results.append((th.stack(metrics), th.nn.utils.parameters_to_vector(update.policy.parameters()).detach()))
        graphs = th._dynamo.utils.counters["stats"]["unique_graphs"]
        CompiledUpdate(make_loss(traced.policy), **settings)(random_batch(traced.policy))  # as in another learn
    maybe_compiled.cache_clear()
    th.testing.assert_close(results[0][0], results[1][0], rtol=1e-3, atol=1e-5)
    # Steps are as large as the learning rate, 1e-2. If a gradient is only rounding error, the sign of its step may differ.
    assert ((results[0][1] - results[1][1]).abs() > 1e-4).float().mean() < 0.01
    assert th._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    breaks = th._dynamo.utils.counters["graph_break"]
    assert 4 < graphs < 30 and all("marked as skipped" in reason for reason in breaks), (graphs, list(breaks))


@pytest.mark.slow
def test_compiled_steps_give_the_same_numbers_and_are_compiled_once():
    counters = th._dynamo.utils.counters
    plain = counter_model(training_ratio=8).learn(80)
    compiled = counter_model(training_ratio=8, compile=True, verbose=0).learn(60)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs >= 3
    compiled.learn(20, reset_num_timesteps=False)
    assert counters["stats"]["unique_graphs"] == graphs
    again = counter_model(training_ratio=8, compile=True).learn(80)  # another model of the same shapes
    assert counters["stats"]["unique_graphs"] == graphs
    for (name, ours), theirs in zip(again.policy.state_dict().items(), plain.policy.state_dict().values(), strict=True):
        th.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3, msg=name)


def test_other_optimisers_train_without_capture():
    before = counter_model(policy_kwargs=dict(optimizer_class=th.optim.Adam))
    start = before.policy.actor.output.weight.clone()
    model = before.learn(60)
    assert type(model._update) is TrainingUpdate and not th.equal(start, model.policy.actor.output.weight)


@pytest.mark.parametrize("space", [VECTOR, MIXED], ids=["vector", "dict"])
def test_a_captured_step_equals_the_policy(space):
    """Step by step, with new episodes, after a change of the parameters and of the number of environments."""
    policy = make_policy(space, spaces.Box(-1, 1, (2,)))
    made = []
    captured = CapturedStep(policy, lambda: (made.append(PythonGraph()), made[-1])[1])
    for n_envs in (3, 2):
        histories = []
        for step in (policy.step, captured):
            th.manual_seed(5)
            state, actions = None, []
            for t in range(6):
                observations = random_batch(policy, n_envs, 8).observations
                now = {k: v[:, t] for k, v in observations.items()} if isinstance(observations, dict) else observations[:, t]
                action, state = step(now, state, th.tensor([t in (0, 3)] * n_envs))
                actions.append(action.clone())
            histories.append((th.stack(actions), state.deter.clone()))
        assert th.equal(histories[0][0], histories[1][0]) and th.equal(histories[0][1], histories[1][1])
        with th.no_grad():
            policy.actor.output.weight.add_(0.1)
    assert len(made) == 2


def test_acting_on_a_cpu_is_not_captured():
    policy = make_policy(VECTOR, spaces.Discrete(2))
    assert make_acting(policy, True) == policy.step


@pytest.mark.parametrize("is_captured", [False, True], ids=["eager", "captured"])
def test_gradients_and_changes_by_part(is_captured):
    """Norms by part; the decoder is frozen, as a user may do, and counts nowhere."""
    plain = make()
    policy = plain.policy
    policy.world_model.decoder.requires_grad_(False)
    update = CapturedUpdate(plain, PythonGraph) if is_captured else plain
    parts = {name: getattr(policy, name) for name in ("world_model", "actor", "critic")}
    trained = {name: [p for p in part.parameters() if p.requires_grad] for name, part in parts.items()}
    for seed in range(2):
        before = {name: [p.detach().clone() for p in params] for name, params in trained.items()}
        result = update(double(random_batch(policy, seed=seed)))
        metrics = dict(zip(plain.metric_names, result.metrics.tolist(), strict=True))
        for name, params in trained.items():
            changes = [(p.detach() - old).norm() for p, old in zip(params, before[name], strict=True)]
            assert metrics[f"train/update_norm/{name}"] == pytest.approx(th.stack(changes).norm().item(), rel=1e-5)
    norms = [metrics[f"train/grad_norm/{name}"] for name in parts]
    assert metrics["train/grad_norm"] == pytest.approx(sum(norm**2 for norm in norms) ** 0.5, rel=1e-5)
    assert {name for name in metrics if name.startswith("train/clip_share")} == {f"train/clip_share/{name}" for name in parts}


@pytest.mark.parametrize(("agc_clip", "share"), [(1e-9, 1.0), (1e9, 0.0)])
def test_share_of_clipped_tensors(agc_clip, share):
    update = make()
    update.agc_clip = agc_clip
    result = update(double(random_batch(update.policy)))
    metrics = dict(zip(update.metric_names, result.metrics.tolist(), strict=True))
    # At first, gradients behind an output layer of zeros are zero, and cannot be clipped.
    assert metrics["train/clip_share/critic"] == (
        0.0 if share == 0.0 else pytest.approx(2 / len(list(update.policy.critic.parameters())))
    )
    assert metrics["train/clip_share/world_model"] == pytest.approx(share, abs=0.4 * share)
