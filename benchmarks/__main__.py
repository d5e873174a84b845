"""All benchmarks, each in a process of its own; JSON goes to benchmarks/results/."""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from evaluate.benchmark.machine import describe_machine

RESULTS = Path(__file__).with_name("results")

if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__).parse_args()
    RESULTS.mkdir(exist_ok=True)
    machine, started, failed = describe_machine(), time.monotonic(), []
    flags = " ".join(machine.cpu_flags)
    print(f"{machine.cpu}, {machine.cores} cores, {flags}, load {machine.load}", flush=True)
    for name in ("startup", "pipeline", "step", "inference"):
        print(f"=== {name}, after {(time.monotonic() - started) / 60:.0f} minutes", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(RESULTS / f"{name}.json")]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    print(f"=== done in {(time.monotonic() - started) / 60:.0f} minutes")
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)
