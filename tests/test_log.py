import os
import subprocess
import sys

import pytest

PRINT = """
import os, signal
signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as if it came later than the refused write
from swav_tf.plumbing.log import console, show_message
console().print("open")
os.read(3, 1)
console().print("refused")
show_message("discarded")
"""


# Bug caught: a terminal that closes ends a run by the error of a write, before the signal can save it.
@pytest.mark.multiprocess
def test_a_closed_terminal_discards_what_is_printed():
    terminal, screen = os.openpty()
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", PRINT.replace("os.read(3", f"os.read({reader}")],
        stdout=screen,
        stderr=screen,
        pass_fds=[reader],
    )
    os.close(screen)
    assert os.read(terminal, 100).startswith(b"open")
    os.close(terminal)
    os.write(writer, b"x")
    assert process.wait(60) == 0
