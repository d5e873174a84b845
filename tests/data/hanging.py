"""A source of images whose first reader hangs; in a module that crop processes can import."""

import os
import signal
from pathlib import Path

from swav_tf.data.folders import ImageFolder


class Hanging(ImageFolder):
    """Hangs in the first process that reads image 5."""

    def read(self, index):
        mark = Path(self.root) / "hung"
        if index == 5 and not mark.exists():
            mark.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().read(index)
