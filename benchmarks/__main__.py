"""All benchmarks, each in a process of its own; JSON goes to benchmarks/results/."""

import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).with_name("results")

if __name__ == "__main__":
    RESULTS.mkdir(exist_ok=True)
    failed = []
    for name in ("startup", "pipeline", "step", "inference", "counts"):
        print(f"=== {name}", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(RESULTS / f"{name}.json")]
        if name == "step":
            command.append("--again")  # else it would go on with an earlier one
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)
