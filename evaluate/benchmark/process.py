"""A request answered by a fresh process, whatever befalls it. No TensorFlow."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from evaluate.benchmark.worker import Answer, Request


def ask(request: Request, *, timeout_seconds: float) -> Answer:
    """Has a fresh process answer a request; whatever befalls it is an answer too."""
    # It imports what this process would: `evaluate` is a name that others use as well.
    places = os.pathsep.join(map(os.path.abspath, sys.path))
    environment = {**os.environ, "PYTHONPATH": places, "TF_CPP_MIN_LOG_LEVEL": "3"}
    with tempfile.TemporaryDirectory(prefix="swav-tf-") as folder:
        file = Path(folder) / "answer.json"
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "evaluate.benchmark.worker", str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C is ours: it is ended below
        )
        try:
            _, stderr = process.communicate(request.model_dump_json(), timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            return Answer(error=f"no result after {timeout_seconds:g} s")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        try:
            return Answer.model_validate_json(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return Answer(error=_death(process.returncode, stderr))


def _death(code: int, stderr: str) -> str:
    last = next((line.strip() for line in reversed(stderr.splitlines()) if line.strip()), "no message")
    if code == -signal.SIGKILL:
        return "its process was killed, as the system does when memory runs out"
    if code < 0:
        return f"its process ended with {signal.Signals(-code).name}: {last[:300]}"
    return f"its process ended with exit code {code}: {last[:300]}"
