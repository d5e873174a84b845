"""Seconds that `swav-tf --help` takes as a complete process.

python -m benchmarks.startup [--json FILE]
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.common import argument_parser

if __name__ == "__main__":
    arguments = argument_parser(__doc__).parse_args()
    command = [str(Path(sys.executable).with_name("swav-tf")), "--help"]
    times = []
    for _ in range(11):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    row = {"target": "< 0.5", "median": statistics.median(times), "max": max(times)}
    name = "swav-tf --help, seconds"
    print(f"{name:72} {row['median']:6.3f}  (max {row['max']:.3f})  target {row['target']}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": {name: row}}, indent=1) + "\n")
