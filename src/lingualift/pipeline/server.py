"""What the fork server of the workers imports before it forks the first; of use to no other process."""

import signal
import warnings

from lingualift.pipeline.executors import make_ready

warnings.filterwarnings(
    "ignore", "This process .* is multi-threaded", DeprecationWarning
)  # by numpy's idle threads
_interrupt = signal.signal(
    signal.SIGINT, signal.SIG_IGN
)  # the server ends with its run; workers heed it themselves
make_ready()
signal.signal(signal.SIGINT, _interrupt)
