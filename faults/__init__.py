"""Faults on purpose: kills, full disks, damage, odd folders; each is told in words or changes nothing.

python -m faults --help
"""

import os

# Before NumPy is imported anywhere: commands are forked from this process, which is sound with one thread only.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
