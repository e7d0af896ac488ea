"""What the fork server of the workers imports before it forks the first; of use to no other process."""

import atexit
import os
import warnings

from lingualift.pipeline.executors import make_ready

warnings.filterwarnings(
    "ignore", "This process .* is multi-threaded", DeprecationWarning
)  # by numpy's idle threads
make_ready()
atexit.register(os._exit, 0)  # taking the libraries apart takes seconds, for which the command would wait
