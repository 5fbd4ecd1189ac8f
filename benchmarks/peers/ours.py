"""Our training update, for ``against_peers.py``."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import torch as th
from turns import take_turns
from workloads import make_batch, make_update

th.set_num_threads(1)
update = make_update("proprio_1m")
batch = make_batch(update.policy)
parameters = sum(p.numel() for p in update.policy.trainable_parameters())
take_turns(lambda: update(batch), version=th.__version__, parameters=parameters)
