"""Observations stored on the device equal those on the host, with wrap-around, pickling and VecNormalize."""

import pickle

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dreamer import DreamerV3
from sb3_dreamer.common.buffers import SequenceReplayBuffer
from tests.support.helpers import IMAGE, MIXED, TINY, counter_envs, counter_model

ROWS, N_ENVS = 40, 2


def filled(space, storage, steps=70):
    """A buffer that has wrapped around, filled with the same noise each time."""
    buffer = SequenceReplayBuffer(
        ROWS * N_ENVS, space, spaces.Discrete(3), "cpu", N_ENVS, batch_length=5, latent_shape=(4, 2, 3), storage=storage
    )
    space.seed(0)
    for step in range(steps):
        obs, next_obs = stack(space), stack(space)
        done = np.full(N_ENVS, step % 9 == 8)
        buffer.add(obs, next_obs, np.ones((N_ENVS, 1)), np.full(N_ENVS, float(step)), done, [{}] * N_ENVS)
    return buffer


def refill(buffer, space):
    space.seed(1)
    for _ in range(7):
        buffer.add(stack(space), stack(space), np.ones((N_ENVS, 1)), np.zeros(N_ENVS), np.zeros(N_ENVS, bool), [{}] * N_ENVS)


def stack(space):
    samples = [space.sample() for _ in range(N_ENVS)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([sample[key] for sample in samples]) for key in space.spaces}
    return np.stack(samples)


def sample(buffer):
    buffer._queue.clear()
    np.random.seed(3)
    return buffer.sample(16)


@pytest.mark.parametrize("space", [IMAGE, MIXED], ids=["image", "dict"])
def test_device_rows_are_those_of_the_host(space):
    host, device = filled(space, "memory"), filled(space, "device")
    sample(device)  # from here on, rows are written to both
    for buffer in (device, host):
        refill(buffer, space)
    for buffer in (device, pickle.loads(pickle.dumps(device))):
        ours, theirs = sample(buffer), sample(host)
        assert buffer._device_mirror is not None and host._device_mirror is None
        for key in space.spaces if isinstance(space, spaces.Dict) else [None]:
            mine, other = (b.observations if key is None else b.observations[key] for b in (ours, theirs))
            assert mine.dtype == other.dtype and th.equal(mine, other)
        assert th.equal(ours.rewards, theirs.rewards)
    # Samples are read from the device copy: a direct change of the host array has no effect.
    first = next(iter(device._device_mirror.tensors.values()))
    assert first.shape[:2] == (ROWS, N_ENVS)
    first.zero_()
    changed = sample(device).observations
    changed = next(iter(changed.values())) if isinstance(changed, dict) else changed
    assert not changed.any()


def test_a_run_is_the_same_with_either_storage():
    host = counter_model(training_ratio=8).learn(90)
    device = counter_model(training_ratio=8, replay_buffer_kwargs=dict(storage="device")).learn(90)
    assert device.replay_buffer._device_mirror is not None
    for ours, theirs in zip(device.policy.parameters(), host.policy.parameters(), strict=True):
        assert th.equal(ours, theirs)


def test_normalised_observations_come_from_the_host():
    """Their statistics change, so they cannot be kept normalised."""
    env = VecNormalize(counter_envs())
    model = DreamerV3("MlpPolicy", env, seed=0, replay_buffer_kwargs=dict(storage="device"), **TINY).learn(60)
    buffer = model.replay_buffer
    batches = []
    for normalizer in (env, None):
        buffer._queue.clear()
        np.random.seed(3)
        batches.append(buffer.sample(4, normalizer).observations.numpy())
    normalized, raw = batches
    assert not np.array_equal(normalized, raw)
    np.testing.assert_allclose(normalized, env.normalize_obs(raw), rtol=1e-5)


def test_a_loaded_buffer_uses_the_storage_of_the_model(tmp_path):
    device = counter_model(replay_buffer_kwargs=dict(storage="device")).learn(60)
    device.save_replay_buffer(tmp_path / "buffer")
    host = counter_model()
    host.load_replay_buffer(tmp_path / "buffer")
    host.replay_buffer.sample(4)
    assert host.replay_buffer.storage == "memory" and host.replay_buffer._device_mirror is None


def test_a_buffer_without_a_storage_attribute_loads():
    buffer = filled(IMAGE, "memory")
    state = buffer.__getstate__()
    del state["storage"], state["_device_mirror"]
    old = SequenceReplayBuffer.__new__(SequenceReplayBuffer)
    old.__setstate__(state)
    assert th.equal(sample(old).observations, sample(buffer).observations)


def test_the_old_name_of_memory(tmp_path):
    model = counter_model(replay_buffer_kwargs=dict(storage="host")).learn(40)
    assert model.replay_buffer.storage == "memory"
    model.save(tmp_path / "model")
    model.replay_buffer.storage = "host"  # as in the files of older versions
    model.save_replay_buffer(tmp_path / "buffer")
    assert pickle.loads((tmp_path / "buffer.pkl").read_bytes()).storage == "memory"
    loaded = DreamerV3.load(tmp_path / "model", env=counter_envs())
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert loaded.replay_buffer.storage == "memory" and loaded.replay_buffer.size() == model.replay_buffer.size()


def test_invalid_storages():
    with pytest.raises(ValueError, match=r"`storage` must be one of \('memory', 'disk', 'device'\), got 'tape'"):
        counter_model(replay_buffer_kwargs=dict(storage="tape"))


@pytest.mark.parametrize("storage", ["memory", "disk", "device"])
def test_buffers_load_without_the_device(storage, tmp_path):
    """Streams and device copies are created at first use: a CUDA buffer can be loaded and saved without a GPU."""
    model = counter_model(replay_buffer_kwargs=dict(storage=storage)).learn(40)
    model.save_replay_buffer(tmp_path / "buffer")
    expected = model.replay_buffer.observations.copy()
    model.device = th.device("cuda")
    model.load_replay_buffer(tmp_path / "buffer")
    assert model.replay_buffer.device.type == "cuda" and model.replay_buffer._device_mirror is None
    np.testing.assert_array_equal(model.replay_buffer.observations, expected)
    model.save_replay_buffer(tmp_path / "of cuda")
    model.device = th.device("cpu")
    model.load_replay_buffer(tmp_path / "of cuda")
    np.testing.assert_array_equal(model.replay_buffer.observations, expected)
    updates = model._n_updates
    assert model.learn(40)._n_updates > updates
