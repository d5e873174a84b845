"""Packs a folder from a command line, as a process that can be killed: `python pack.py IMAGES OUTPUT [KILL_AFTER]`."""

import os
import signal
import sys

from swav_tf.data import sharding
from swav_tf.data.folders import ClassFolders

images, output, *kill_after = sys.argv[1:]
if kill_after:
    # Killed within the shard after the so many whole ones: its .part file is there, and nothing tidies up.
    note, framed = sharding._Packing._note, sharding.framed
    left = [int(kill_after[0])]

    def counted(self, shard):
        note(self, shard)
        left[0] -= 1

    def deadly(data):
        if left[0] <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return framed(data)

    sharding._Packing._note, sharding.framed = counted, deadly
sharding.write_shards(ClassFolders(images), output, shards=6, threads=1)
