"""Worker process of ``compare.py``: one update per request. Uses only the standard library."""

import json
import sys
import time
from collections.abc import Callable
from typing import Any


def take_turns(update: Callable[[], Any], **facts: Any) -> None:
    """
    Print facts, then answer each line of the input with the (wall, process CPU) seconds of one update.

    :param update: one training update
    :param facts: printed once, e.g. the number of parameters
    """
    update()  # warm-up
    print(json.dumps(facts), flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        update()
        print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]), flush=True)
