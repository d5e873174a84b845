"""How long `swav-tf --help` takes, as a whole process.

python -m benchmarks.startup [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the row here")
    arguments = parser.parse_args()
    command = [str(Path(sys.executable).with_name("swav-tf")), "--help"]
    times = []
    for _ in range(11):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    row = {
        "row": "swav-tf --help, seconds",
        "target": "< 0.5",
        "median": statistics.median(times),
        "max": max(times),
    }
    print(f"{row['row']:64} {row['median']:6.3f}  (max {row['max']:.3f})  target {row['target']}")
    if arguments.json:
        arguments.json.write_text(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
