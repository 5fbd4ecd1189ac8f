"""Numbers that are not finite: the update is skipped, the environment is not stepped. Extreme numbers do no harm."""

import json
from copy import deepcopy

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.logger import configure

from sb3_dreamer import DreamerV3
from sb3_dreamer.common.metrics import MetricAverager, UnstableTrainingError
from sb3_dreamer.common.optimizers import LaProp
from sb3_dreamer.dreamerv3.fast.captured import CapturedUpdate
from sb3_dreamer.dreamerv3.update import TrainingUpdate
from tests.support.helpers import TINY, VECTOR, counter_model, make_loss, make_policy, random_batch, randomize_outputs
from tests.support.python_graph import PythonGraph

BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)


def everything(policy):
    """Copies of all tensors and numbers that an update can change."""
    optimizer = policy.optimizer
    tensors = {**dict(policy.named_parameters()), **dict(policy.named_buffers())}
    for i, state in enumerate(optimizer.state.values()):
        tensors |= {f"{name} {i}": value for name, value in state.items()}
    copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    return copies | {"step": th.tensor([float(group.get("step", 0)) for group in optimizer.param_groups])}


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert [name for name, tensor in theirs.items() if not th.equal(ours[name], tensor)] == []


def poison(batch, field, value=float("nan")):
    tensor = getattr(batch, field).clone()
    tensor.view(-1)[3] = value
    return batch._replace(**{field: tensor})


class Setup:
    """A policy with its update, captured (so that the optimiser skips by a flag) or not, and a gradient that can be NaN."""

    def __init__(self, is_captured, is_fused, loss_scales):
        self.policy = make_policy(VECTOR, BOX)
        randomize_outputs(self.policy)
        for group in self.policy.optimizer.param_groups:
            group["lr"] = 1e-2
        loss = make_loss(self.policy, fused="auto" if is_fused else False, loss_scales=loss_scales)
        update = TrainingUpdate(loss, agc_clip=0.3, tau=0.02)
        self.update = CapturedUpdate(update, PythonGraph) if is_captured else update
        self.has_bad_gradient = False
        self.policy.critic.output.weight.register_hook(lambda grad: grad * np.nan if self.has_bad_gradient else None)

    def __call__(self, seed, where=None):
        th.manual_seed(seed)
        batch = random_batch(self.policy, seed=seed)
        self.has_bad_gradient = where == "gradient"
        result = self.update(batch if where in (None, "gradient") else poison(batch, where))
        return bool(result.is_finite), dict(zip(self.update.metric_names, result.metrics.tolist(), strict=True))


@pytest.mark.parametrize("where", ["rewards", "observations", "gradient"])
@pytest.mark.parametrize("is_captured", [False, True], ids=["eager", "captured"])
@pytest.mark.parametrize(("is_fused", "loss_scales"), [(True, "harmony"), (False, None)], ids=["fused, harmony", "plain"])
def test_an_update_that_is_not_finite_changes_nothing(is_fused, loss_scales, is_captured, where):
    """Also if it is the first one of all. Afterwards the model goes on like one that never saw it."""
    ours, theirs = (Setup(is_captured, is_fused, loss_scales) for _ in range(2))
    if is_captured:  # creates the optimiser's state, as capturing does
        ours.policy.optimizer.make_capturable()
    for seed in range(3):
        before = everything(ours.policy)
        is_finite, metrics = ours(seed, where)
        assert not is_finite
        assert np.isfinite(metrics["train/loss"]) == (where == "gradient") and not np.isfinite(metrics["train/grad_norm"])
        assert_equal(everything(ours.policy), before)
        assert ours(seed)[0] and theirs(seed)[0]
        after = everything(ours.policy)
        assert_equal(after, everything(theirs.policy))
        assert not th.equal(after["return_normalizer.high"], before["return_normalizer.high"])
        assert float(after["step"]) == seed + 1
        assert int(ours.policy.loss_weights.n_updates) == (seed + 1 if loss_scales else 0)


def test_buffers_of_custom_networks_are_kept():
    class Encoder(th.nn.Module):
        features_dim = 5

        def __init__(self, observation_space):
            super().__init__()
            self.norm = th.nn.BatchNorm1d(5)

        def forward(self, obs):
            return self.norm(obs.flatten(0, -2)).view_as(obs)

    policy = make_policy(VECTOR, BOX, encoder_class=Encoder)
    update = TrainingUpdate(make_loss(policy), agc_clip=0.3, tau=0.02)
    update(random_batch(policy))
    before = everything(policy)
    assert not update(poison(random_batch(policy), "rewards")).is_finite
    assert_equal(everything(policy), before)
    assert update(random_batch(policy)).is_finite
    name = "world_model.encoder.norm.running_mean"
    assert not th.equal(everything(policy)[name], before[name])


def test_an_infinite_gradient_with_another_optimiser():
    policy = make_policy(VECTOR, BOX, optimizer_class=th.optim.Adam)
    update = TrainingUpdate(make_loss(policy), agc_clip=0.3, tau=0.02)
    update(random_batch(policy))
    before = everything(policy)
    handle = policy.actor.output.weight.register_hook(lambda grad: grad + np.inf)
    assert not update(random_batch(policy)).is_finite
    assert_equal(everything(policy), before)
    handle.remove()
    assert update(random_batch(policy)).is_finite


@pytest.mark.parametrize("dtype", [th.float32, th.float64, th.bfloat16])
def test_a_step_with_a_flag(dtype):
    """With the flag it is the step without one, except for rounding; without the flag nothing changes, whatever is in it."""
    th.manual_seed(0)
    start = [th.randn(4, 3).t(), th.randn(5)]
    gradients = [[th.randn_like(p).to(dtype) for p in start] for _ in range(3)]
    results = []
    for is_flagged in (False, True):
        params = [th.nn.Parameter(p.to(dtype)) for p in start]
        optimizer = LaProp(params, lr=0.1, betas=(0.8, 0.95))
        optimizer.make_capturable()
        for grads in gradients:
            if is_flagged:
                for bad in (np.nan, np.inf, 1.0):
                    for p in params:
                        p.grad = th.full_like(p, bad)
                    before = deepcopy([params, optimizer.state_dict()])
                    optimizer.step_if(th.tensor(False))
                    assert all(map(th.equal, params, before[0])) and str(optimizer.state_dict()) == str(before[1])
            for p, grad in zip(params, grads, strict=True):
                p.grad = grad.clone()
            optimizer.step_if(th.tensor(True)) if is_flagged else optimizer.step()
        results.append(params)
    for one, other in zip(*results, strict=True):
        th.testing.assert_close(one, other)
    with pytest.raises(AssertionError, match="make_capturable"):
        LaProp(params, lr=0.1).step_if(th.tensor(True))


# ---- in a run ----


def poisoned(model, which):
    """The model, whose updates with these numbers get a batch with a NaN reward."""
    sample = model.replay_buffer.sample
    model.replay_buffer.sample = lambda *args, **kwargs: (
        poison(sample(*args, **kwargs), "rewards") if which(model._n_updates) else sample(*args, **kwargs)
    )
    return model


def test_a_run_goes_on_after_skipped_updates(tmp_path):
    model = poisoned(counter_model(training_ratio=8, loss_scales="harmony"), lambda n: n in (0, 3, 4))
    written, write = [], model.replay_buffer.update_latents
    model.replay_buffer.update_latents = lambda indices, latents: (
        written.append(latents.deter.shape[1] > 1),
        write(indices, latents),
    )
    model.set_logger(configure(str(tmp_path), ["json"]))
    model.learn(120, log_interval=2)
    assert model._n_updates > 15
    assert sum(written) == model._n_updates - 3  # those of acting have one row each
    lines = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    assert sum(line.get("train/skipped_updates", 0) for line in lines) == 3
    assert all(np.isfinite(value) for line in lines for value in line.values())
    assert int(model.policy.loss_weights.n_updates) == model._n_updates - 3
    assert np.isfinite(model.replay_buffer.deter).all()


@pytest.mark.parametrize("reads", ["after each train", "at the dump"])
def test_ten_skipped_updates_end_the_run_and_leave_the_model_intact(reads, tmp_path):
    model = counter_model(training_ratio=8)
    model.learn(60)
    n_updates, before = model._n_updates, everything(model.policy)
    poisoned(model, lambda n: n >= n_updates)
    model.set_logger(configure(str(tmp_path), ["json"]))
    if reads == "at the dump":  # as on CUDA
        model._log_interval, model.log_every_updates = 4, 12
        model._metrics.flush()
    with pytest.raises(UnstableTrainingError, match=r"became nan: lower `learning_rate`.*skipped_batch_\w+\.npz") as error:
        model.train(100) if reads == "at the dump" else model.learn(400, reset_num_timesteps=False)
    assert model._n_updates - n_updates == (12 if reads == "at the dump" else MetricAverager.MAX_SKIPPED)
    assert_equal(everything(model.policy), before)
    (path,) = tmp_path.glob("*.npz")
    assert str(path) in str(error.value) and "train/grad_norm" in str(error.value)
    with np.load(path, allow_pickle=False) as arrays:
        assert np.isnan(arrays["rewards"]).sum() == 1 and arrays["observations"].shape == (4, 8, 3)
        assert {"prev_actions", "is_first", "initial/deter", "indices/steps"} <= set(arrays)
    del model.replay_buffer.sample
    assert model.learn(30, reset_num_timesteps=False)._n_updates > n_updates + 12
    assert model._metrics.means()["train/loss"] > 0


class Steps(gym.Env):
    """
    Counts its steps.

    :param reward: of each step
    :param scale: of the observations, which are noise; None: constant observations
    :param length: of an episode; None: it never ends
    """

    observation_space = VECTOR

    def __init__(self, action_space=BOX, reward=1.0, scale=1.0, length=7):
        self.action_space, self.reward, self.scale, self.length = action_space, reward, scale, length
        self.n_steps, self.rng = 0, np.random.default_rng(0)

    def observe(self):
        noise = self.rng.normal(size=5) if self.scale is not None else np.full(5, 3.0)
        return (noise * (self.scale or 1.0)).astype(np.float32)

    def reset(self, *, seed=None, options=None):
        self.age = 0
        return self.observe(), {}

    def step(self, action):
        self.n_steps, self.age = self.n_steps + 1, self.age + 1
        return self.observe(), self.reward, self.age == self.length, False, {}


@pytest.mark.parametrize(
    ("action_space", "broken", "message"),
    [(BOX, "actor.output", "actor's output"), (spaces.Discrete(3), "world_model.rssm.core.gates", "recurrent state")],
    ids=["box", "discrete"],
)
def test_nan_from_the_networks_is_stopped_before_the_environment(action_space, broken, message):
    model = DreamerV3("MlpPolicy", Steps(action_space), seed=0, **TINY)
    model.learn(30)
    (env,) = (env.unwrapped for env in model.env.envs)
    n_steps, n_rows = env.n_steps, model.replay_buffer.counts.copy()
    kept = deepcopy(model.policy.state_dict())
    with th.no_grad():
        model.policy.get_submodule(broken).weight.fill_(th.nan)
    with pytest.raises(ValueError, match=f"The {message} is NaN or infinite, so there is no action"):
        model.learn(30, reset_num_timesteps=False)
    assert env.n_steps == n_steps and (model.replay_buffer.counts == n_rows).all()
    for deterministic in (False, True):
        with pytest.raises(ValueError, match=f"The {message} is NaN"):
            model.predict(np.zeros((1, 5), np.float32), episode_start=np.ones(1), deterministic=deterministic)
    model.policy.load_state_dict(kept)
    assert model.learn(30, reset_num_timesteps=False).num_timesteps == 60


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_predict_names_observations_that_are_not_finite(value):
    observation = np.zeros((2, 5), np.float32)
    observation[1, 3] = value
    model = DreamerV3("MlpPolicy", Steps(), **TINY)
    with pytest.raises(ValueError, match=rf"`obs`\[3\] of environment 1 is {value}: all values must be finite"):
        model.predict(observation)


# ---- extremes ----

EXTREMES = {
    "rewards of 1e6": dict(reward=1e6),
    "rewards of 1e-6": dict(reward=1e-6),
    "constant observations": dict(scale=None),
    "observations of 1e8": dict(scale=1e8),
    "episodes of one step": dict(length=1),
    "episodes longer than the buffer": dict(length=70),
    "no end": dict(length=None),
}


def check_extreme(kind, action_space, n_updates):
    """Updates at a high learning rate: none is skipped, and the model and the buffer stay finite."""
    settings = dict(buffer_size=50, training_ratio=32, learning_rate=1e-3, lr_warmup_steps=0)  # an update per step
    model = DreamerV3("MlpPolicy", Steps(action_space, **EXTREMES[kind]), seed=0, **{**TINY, **settings})
    model.learn(24 + n_updates, log_interval=None)
    assert model._n_updates >= n_updates - 1
    assert model._metrics._n_made == model._metrics.count == model._n_updates
    assert all(np.isfinite(value) for value in model._metrics.means().values())
    assert all(tensor.isfinite().all() for tensor in everything(model.policy).values())
    assert np.isfinite(model.replay_buffer.deter).all()
    actions, _ = model.predict(model.env.reset(), episode_start=np.ones(1))
    assert np.isfinite(actions).all()


@pytest.mark.parametrize("kind", EXTREMES)
def test_extremes(kind):
    check_extreme(kind, BOX, n_updates=30)


@pytest.mark.slow
@pytest.mark.parametrize("action_space", [BOX, spaces.Discrete(3)], ids=["box", "discrete"])
@pytest.mark.parametrize("kind", EXTREMES)
def test_extremes_for_500_updates(kind, action_space):
    check_extreme(kind, action_space, n_updates=500)
