"""A worker's side of an interleaved comparison: one update whenever the other side says so. Standard library only."""

import json
import sys
import time
from collections.abc import Callable
from typing import Any


def take_turns(update: Callable[[], Any], **facts: Any) -> None:
    """
    Print facts, then answer each line of the input with the (wall, process CPU) seconds of one update.

    :param update: one training update
    :param facts: about it, e.g. its parameters
    """
    update()  # warms up
    print(json.dumps(facts), flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        update()
        print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]), flush=True)
