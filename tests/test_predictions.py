"""Predictions of the world model as arrays."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dreamer import DreamerV3, audit_world_model
from sb3_dreamer.callbacks import DreamCallback
from sb3_dreamer.common.images import named_layout
from sb3_dreamer.common.preprocessing import encode_actions
from sb3_dreamer.common.type_aliases import LatentState
from tests.support.envs import NoiseEnv
from tests.support.helpers import ACTION_SPACES, MIXED, TINY, VECTOR, counter_envs, counter_model, randomize_outputs

OBSERVATIONS = spaces.Dict(
    {
        "camera": spaces.Box(0, 255, (16, 20, 3), np.uint8),
        "kind": spaces.Discrete(4, start=3),
        "flags": spaces.MultiBinary(3),
        "level": spaces.Box(-5, 5, (2, 2), np.int16),
        "speed": spaces.Box(-np.inf, np.inf, (3,), np.float64),
        "unit": spaces.Box(-1, 1, (16, 16, 1), np.float32),
    }
)


def make_model(space: spaces.Space = OBSERVATIONS, action: str = "box", **kwargs) -> DreamerV3:
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    model = DreamerV3(policy, NoiseEnv(space, ACTION_SPACES[action]), seed=0, **{**TINY, **kwargs})
    randomize_outputs(model.policy)
    th.nn.init.normal_(model.policy.actor.output.weight)
    return model


def sample(space: spaces.Space, *lead: int, seed: int = 0):
    """Observations (\\*lead, ...) as an environment returns them."""
    if isinstance(space, spaces.Dict):
        return {key: sample(one, *lead, seed=seed + i) for i, (key, one) in enumerate(space.spaces.items())}
    space.seed(seed)
    flat = np.stack([np.asarray(space.sample()) for _ in range(int(np.prod(lead)))])
    return flat.reshape(*lead, *flat.shape[1:])


def random_state() -> list:
    return [th.get_rng_state().tolist(), np.random.get_state()[1].tolist()]


def test_decoded_observations_belong_to_their_space():
    model = make_model()
    imagined = model.imagine(sample(OBSERVATIONS, 2), horizon=3)
    assert list(imagined.observations) == sorted(OBSERVATIONS.spaces)
    for key, space in model.observation_space.spaces.items():
        array = imagined.observations[key]
        assert array.shape == (2, 4, *space.shape) and array.dtype == space.dtype, key
        assert all(space.contains(one) for one in array.reshape(8, *space.shape)), key
    assert imagined.observations["camera"].shape[2:] == (3, 16, 20)  # SB3 moves the channels of uint8 images
    assert imagined.observations["unit"].shape[2:] == (16, 16, 1)
    again = model.decode(imagined.latents)
    assert all(np.array_equal(again[key], imagined.observations[key]) for key in again)
    assert np.ptp(imagined.observations["camera"]) > 0


def test_the_layout_of_images_is_undone():
    for shape in ((5, 9), (3, 8, 9), (8, 9, 3), (4, 8, 9, 3), (3, 8, 9, 4)):
        layout = named_layout(spaces.Box(0, 255, shape, np.uint8))
        images = th.arange(2 * int(np.prod(shape))).reshape(2, *shape)
        assert th.equal(layout.undo(layout.channels_first(images), shape), images)


@pytest.mark.parametrize("action", sorted(ACTION_SPACES))
def test_imagine_is_the_prior_with_the_actions(action):
    model = make_model(VECTOR, action)
    observation = sample(VECTOR, 3)
    _, state = model.predict(sample(VECTOR, 3, seed=1), deterministic=True)
    imagined = model.imagine(observation, state, horizon=4, deterministic=True)
    rssm, policy = model.policy.world_model.rssm, model.policy
    with th.no_grad():
        _, after = policy.predict(observation, state, np.zeros(3), deterministic=True)
        latent = LatentState(*(th.as_tensor(part) for part in after[:2]))
        actions = []
        for t in range(5):
            for part, expected in zip(imagined.latents, latent, strict=True):
                np.testing.assert_allclose(part[:, t], expected, atol=1e-6)
            features = rssm.features(latent)
            np.testing.assert_allclose(imagined.values[:, t], policy.critic(features).mean(), rtol=1e-4)
            np.testing.assert_allclose(imagined.rewards[:, t], policy.world_model.reward_head(features).mean(), rtol=1e-4)
            continues = policy.world_model.continue_head(features).mean() / model.gamma
            np.testing.assert_allclose(imagined.continues[:, t], continues.clamp(max=1), atol=1e-5)
            actions.append(policy.actor(features).mode())
            deter = rssm.core(*latent, encode_actions(actions[-1], model.action_space))
            prior = rssm.prior(deter)
            latent = LatentState(deter, prior.straight_through(prior.mode()))
    assert imagined.actions.shape == (3, 4, *model.action_space.shape)
    assert all(model.action_space.contains(one) for row in imagined.actions for one in row)
    # The actions as the environment gets them lead to the same trajectory.
    same = model.imagine(observation, state, actions=imagined.actions, deterministic=True)
    np.testing.assert_allclose(same.latents.deter, imagined.latents.deter, atol=1e-5)
    other = model.imagine(observation, state, actions=sample(model.action_space, 3, 4), deterministic=True)
    assert np.abs(other.latents.deter[:, 1:] - imagined.latents.deter[:, 1:]).max() > 1e-5
    # From a state instead of an observation.
    same = model.imagine(state=after, actions=imagined.actions, deterministic=True)
    np.testing.assert_allclose(same.latents.deter, imagined.latents.deter, atol=1e-5)


def test_open_loop_observes_then_imagines():
    model = make_model(MIXED, "discrete")
    observations, actions = sample(MIXED, 2, 6), sample(model.action_space, 2, 5)
    starts = np.zeros((2, 6))
    starts[0, 2] = starts[1, 4] = 1
    result = model.predict_open_loop(observations, actions, starts, burn_in=3, deterministic=True)
    state = None
    for t in range(3):  # as acting does, with the actions of the sequences
        row = {key: array[:, t] for key, array in observations.items()}
        _, state = model.predict(row, state, starts[:, t] if t else np.ones(2), deterministic=True)
        np.testing.assert_allclose(result.latents.deter[:, t], state[0], atol=1e-6)
        np.testing.assert_array_equal(result.latents.stoch[:, t].argmax(-1), state[1].argmax(-1))
        state = (*state[:2], np.eye(3, dtype=np.float32)[actions[:, t]])
    imagined = model.imagine(state=state, actions=actions[:, 2:], deterministic=True)
    np.testing.assert_allclose(result.latents.deter[:, 2:], imagined.latents.deter, atol=1e-6)
    np.testing.assert_allclose(result.values[:, 2:], imagined.values, rtol=1e-4)
    for key, array in imagined.observations.items():
        np.testing.assert_allclose(result.predicted[key][:, 2:], array, atol=1)
    # The start in row 2 was observed, that in row 4 was not.
    assert result.is_valid.tolist() == [[True] * 6, [True] * 4 + [False] * 2]
    assert result.true_rewards is None and result.burn_in == 3
    reconstructed = model.reconstruct(observations, actions, starts, deterministic=True)
    for key, array in reconstructed.items():
        np.testing.assert_allclose(result.predicted[key][:, :3], array[:, :3], atol=1e-6)


def test_value_is_the_critic_at_the_posterior():
    model = make_model(VECTOR)
    observation = sample(VECTOR, 3)
    _, state = model.predict(observation, deterministic=True)
    start = model.imagine(observation, horizon=1, deterministic=True)
    np.testing.assert_allclose(model.value(observation), start.values[:, 0], rtol=1e-4)
    later = model.value(observation, state, np.array([True, False, False]))
    assert later[0] == pytest.approx(model.value(observation)[0]) and later[1] != pytest.approx(model.value(observation)[1])
    assert model.value(observation[0]).shape == (1,)


def test_replayed_sequences():
    model = counter_model().learn(200)
    result = model.predict_open_loop(burn_in=4, horizon=9, n_sequences=7)
    assert result.observations.shape == result.predicted.shape == (7, 13, 3)
    steps = result.observations[..., 1]
    np.testing.assert_array_equal(result.true_rewards, np.where(steps > 0, 1000 * result.observations[..., 0] + steps, 0))
    assert set(np.diff(steps)[np.diff(steps) > 0]) == {1.0}
    assert (result.true_continues == 0).any() and result.is_valid[:, :4].all() and not result.is_valid.all()
    for row, valid in zip(steps, result.is_valid, strict=True):
        new = [t for t in range(4, 13) if row[t] == 0]
        assert valid.tolist() == [t < (new[0] if new else 13) for t in range(13)]
    other = model.predict_open_loop(burn_in=4, horizon=9, n_sequences=7, seed=1)
    assert not np.array_equal(other.observations, result.observations)
    same = model.predict_open_loop(burn_in=4, horizon=9, n_sequences=7)
    assert all(np.array_equal(a, b) for a, b in zip(same[:5], result[:5], strict=True))
    observed = model.predict_open_loop(burn_in=13, horizon=0, n_sequences=7)
    assert np.array_equal(observed.observations, result.observations) and observed.is_valid.all()
    np.testing.assert_array_equal(observed.predicted[:, :4], result.predicted[:, :4])
    assert not np.array_equal(observed.predicted[:, 4:], result.predicted[:, 4:])


class Look(BaseCallback):
    """Calls every function once per 30 steps."""

    def _on_step(self) -> bool:
        if self.n_calls % 30 == 0 and self.n_calls > 60:
            obs = self.locals["new_obs"]
            self.model.predict_open_loop(burn_in=2, horizon=5)
            self.model.imagine(obs, horizon=3)
            self.model.decode(self.model.imagine(obs).latents)
            self.model.value(obs)
        return True


def test_looking_does_not_change_training():
    (plain, before), (looked_at, after) = (
        (counter_model(training_ratio=8).learn(300, callback=callback), random_state()) for callback in (None, Look())
    )
    assert after == before and plain._n_updates == looked_at._n_updates > 50
    for name, tensor in plain.policy.state_dict().items():
        assert th.equal(tensor, looked_at.policy.state_dict()[name]), name


def test_a_loaded_model_needs_no_environment(tmp_path):
    model = make_model(VECTOR)
    model.save(tmp_path / "model")
    loaded = DreamerV3.load(tmp_path / "model", device="cpu")
    observation = sample(VECTOR, 2)
    for a, b in zip(model.imagine(observation)[:5], loaded.imagine(observation)[:5], strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(model.value(observation), loaded.value(observation))
    with pytest.raises(
        ValueError, match="The replay buffer has no sequence of 20 rows and the row before: no environment has more"
    ):
        loaded.predict_open_loop()


def test_normalised_observations_are_shown_as_the_model_reads_them():
    env = VecNormalize(counter_envs())
    model = DreamerV3("MlpPolicy", env, seed=0, **TINY).learn(120)
    result = model.predict_open_loop(burn_in=2, horizon=4)
    raw = model.replay_buffer.observations
    assert np.abs(raw).max() > 200 and np.abs(result.observations).max() <= env.clip_obs
    assert np.abs(result.true_rewards).max() <= env.clip_reward


def test_a_model_loaded_without_vec_normalize_is_not_asked_about_raw_sequences(tmp_path):
    env = VecNormalize(counter_envs())
    model = DreamerV3("MlpPolicy", env, seed=0, **TINY).learn(120)
    model.save(tmp_path / "model.zip")
    model.save_replay_buffer(tmp_path / "replay.pkl")
    env.save(tmp_path / "statistics.pkl")
    loaded = DreamerV3.load(tmp_path / "model.zip", counter_envs())
    loaded.load_replay_buffer(tmp_path / "replay.pkl")
    report = DreamCallback(folder=tmp_path)
    for ask in (loaded.predict_open_loop, lambda: audit_world_model(loaded), lambda: report.report_on(loaded)):
        with pytest.raises(ValueError, match=r"trained with VecNormalize, and is without it.*`model.set_env"):
            ask()
    loaded.set_env(VecNormalize.load(tmp_path / "statistics.pkl", counter_envs()))
    loops = [one.predict_open_loop(burn_in=2, horizon=4, seed=1) for one in (model, loaded)]
    np.testing.assert_array_equal(loops[0].observations, loops[1].observations)
    np.testing.assert_array_equal(loops[0].predicted, loops[1].predicted)


def test_wrong_arguments():
    model = make_model(VECTOR)
    observations, actions = sample(VECTOR, 2, 5), sample(model.action_space, 2, 4)
    for call, message in (
        (lambda: model.predict_open_loop(observations), "`actions` must be given together with `observations`, got None"),
        (lambda: model.predict_open_loop(actions=actions), "`observations` must be given together with `actions`"),
        (lambda: model.predict_open_loop(observations, actions[:, :3]), r"4 per sequence, got 3"),
        (lambda: model.predict_open_loop(observations, actions[..., :1]), r"`actions` must have shape \(2, 'steps', 2\)"),
        (lambda: model.predict_open_loop(observations, actions, burn_in=6), "`burn_in` must be between 1 and the 5 rows"),
        (lambda: model.predict_open_loop(observations, actions, np.zeros(5)), r"`episode_starts` must have shape \(2, 5\)"),
        (lambda: model.predict_open_loop(observations[0, :, 0], actions), "`observations` must have leading axes"),
        (lambda: model.imagine(observations[:, 0], actions=10 * actions), r"`actions` must lie in Box\(.*got "),
        (lambda: model.predict_open_loop(horizon=-1), "`burn_in` must be between 1 and the 4 rows"),
        (lambda: model.predict_open_loop(horizon=-1, burn_in=1), "`burn_in` must be between 1 and the 0 rows"),
        (lambda: model.predict_open_loop(n_sequences=0), "`n_sequences` must be at least 1 and `horizon` at least 0"),
        (lambda: model.imagine(state=(np.zeros((2, 8)),)), "Latents must hold deter and stoch, got 1 array"),
        (lambda: model.imagine(observations[:, 0], actions=np.zeros((2, 0, 2))), "`horizon` must be at least 1, got 0"),
        (lambda: model.reconstruct(observations[0, :, 0], actions), "`observations` must have leading axes"),
        (lambda: model.imagine((observations[0, 0], {})), "passed a tuple to the predict.* function, or to one like it"),
        (lambda: model.imagine(), "`observation` or `state` must be given, got None for both"),
        (lambda: model.imagine(observations[:, 0], horizon=0), "`horizon` must be at least 1, got 0"),
        (lambda: model.decode((np.zeros((2, 3)), np.zeros((2, 2, 4)))), r"Latents must be deter \(..., 8\)"),
        (lambda: model.value(observations[:, 0, :2]), "shape"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_custom_decoder_is_shown_as_it_is():
    class Constant(th.nn.Module):
        def __init__(self, space: spaces.Space, *latent_shape: int):
            super().__init__()
            self.weight = th.nn.Parameter(th.ones(3))

        def forward(self, deter: th.Tensor, stoch: th.Tensor) -> dict:
            mean = self.weight.expand(len(deter), 3) * 2.0
            return {"obs": type("Prediction", (), {"loss": lambda _, x: (mean - x).sum(-1), "mode": lambda _: mean})()}

    model = DreamerV3("MlpPolicy", gym.make("Pendulum-v1"), **TINY | {"policy_kwargs": {"decoder_class": Constant}})
    imagined = model.imagine(np.zeros((2, 3), np.float32), horizon=2)
    assert imagined.observations.tolist() == np.full((2, 3, 3), 2.0).tolist()


def test_discrete_observations_have_the_shape_of_the_space():
    """As returned from the replay buffer, sequences can be given again."""
    model = DreamerV3("MlpPolicy", "FrozenLake-v1", seed=0, **TINY).learn(60)
    loop = model.predict_open_loop(burn_in=2, horizon=4, n_sequences=3)
    assert loop.observations.shape == loop.predicted.shape == (3, 6)
    again = model.predict_open_loop(loop.observations, actions=np.zeros((3, 5), int), burn_in=2)
    np.testing.assert_array_equal(again.observations, loop.observations)
    with pytest.raises(ValueError, match=r"`actions` must lie in Discrete\(4\), got 0.5"):
        model.imagine(loop.observations[:, 0], actions=np.full((3, 2), 0.5))
    one_row = model.reconstruct(loop.observations[:, :1], np.zeros((3, 0), int))
    assert one_row.shape == (3, 1)
