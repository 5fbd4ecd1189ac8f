"""Our training update, for ``compare.py``."""

import torch as th

from benchmarks.peers.turns import take_turns
from benchmarks.speed.workloads import make_batch, make_update

th.set_num_threads(1)
update = make_update("proprio_1m")
batch = make_batch(update.policy)
parameters = sum(p.numel() for p in update.policy.trainable_parameters())
take_turns(lambda: update(batch), version=th.__version__, parameters=parameters)
