"""Large models work and fit into memory. Each runs in a separate process, to measure its peak memory."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, resource, sys, time
import numpy as np
from gymnasium import spaces
from sb3_dreamer import DreamerV3
from tests.support.envs import NoiseEnv

size, path = sys.argv[1:]
image = spaces.Box(0, 255, (64, 64, 3), np.uint8)
model = DreamerV3("CnnPolicy", NoiseEnv(image, spaces.Discrete(6)), seed=0, device="cpu", model_size=size, batch_size=2,
                  batch_length=8, training_ratio=16, learning_starts=0, lr_warmup_steps=0)
before = next(model.policy.parameters()).clone()
start = time.perf_counter()
model.learn(9)
seconds = time.perf_counter() - start
updates, changed = model._n_updates, bool((before != next(model.policy.parameters())).any())
model.save(path)
obs = model.env.reset()
action, state = model.predict(obs, deterministic=True)
parameters = sum(p.numel() for p in model.policy.trainable_parameters())
del model
loaded = DreamerV3.load(path, device="cpu")
again, same = loaded.predict(obs, deterministic=True)
equal = bool((action == again).all()) and all((a == b).all() for a, b in zip(state, same, strict=True))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps(dict(updates=updates, changed=changed, equal=equal, peak=peak, parameters=parameters, seconds=seconds)))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("size", "parameters", "gigabytes"), [("XL", 80_552_776, 3.5), ("200m", 165_942_536, 6.0)])
def test_one_update_save_load_predict(size, parameters, gigabytes, tmp_path):
    command = [sys.executable, "-c", SCRIPT, size, str(tmp_path / "model")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1500)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    print(report)
    assert report["updates"] >= 1 and report["changed"] and report["equal"]
    assert report["parameters"] == parameters
    assert report["peak"] < gigabytes * 1e9
