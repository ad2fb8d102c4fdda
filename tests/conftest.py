"""One thread a process: tiny tensors gain nothing from a second, and lose much on busy cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
