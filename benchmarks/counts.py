"""What can be counted needs no clock: collectives of a step, nodes of an exported graph.

    python -m benchmarks.counts [--json FILE] [--exported runs/benchmark_resnet50/exported]

Collectives are of the traced ResNet-50 step on two replicas of the CPU, two sizes of crops. The graph is the file
that benchmarks/inference.py exports; without it its row is left out, and said so.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from swav_tf.recipe.files import load_recipe
from swav_tf.training.build import build_swav
from swav_tf.training.cluster import build_strategy
from swav_tf.training.profile.inputs import fixed_parts

COLLECTIVES = ("CollectiveReduce", "CollectiveGather", "NcclAllReduce")
EXPORTED = Path("runs/benchmark_resnet50/exported")


def collectives(*, synchronized: bool) -> int:
    """Count the collectives of one replica in a traced step."""
    recipe = load_recipe(
        "swav_100ep",
        ["train.batch_size=4", "train.precision=float32", "train.logical_cpus=2", "crops.0.size=64",
         "crops.1.size=32", f"model.batch_norm.synchronised={str(synchronized).lower()}"],
    )  # fmt: skip
    strategy = build_strategy(recipe.train)
    with strategy.scope():
        model = build_swav(recipe)
    [crops] = fixed_parts(recipe, strategy)
    step = model.on_replicas(model.train_step).get_concrete_function(crops)
    found = [op for op in step.graph.get_operations() if op.type.startswith(COLLECTIVES)]
    return len(found) // strategy.num_replicas_in_sync


def graph_nodes(path: Path) -> Counter[str]:
    import onnx

    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument(
        "--exported", type=Path, default=EXPORTED, help=f"folder of the exported files ({EXPORTED})"
    )
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []

    def row(name: str, target: str, found: int) -> None:
        rows.append({"row": name, "target": target, "count": found})
        print(f"{name:64} {found:6d}  target {target}", flush=True)

    own, synchronized = collectives(synchronized=False), collectives(synchronized=True)
    row(
        "collectives of synchronized batch normalization, a step",
        "<= 214",
        synchronized - own,
    )
    row("collectives of Sinkhorn, gradients and diagnostics, a step", "<= 5", own)
    path = arguments.exported / "model-fp32.onnx"
    if path.is_file():
        nodes = graph_nodes(path)
        row("exported graph, NHWC bytes in: Transpose", "1", nodes["Transpose"])
        row("exported graph: BatchNormalization", "0", nodes["BatchNormalization"])
        row("exported graph: Conv", "53", nodes["Conv"])
    else:
        print(
            f"nodes of an exported graph: left out, {path} is made by python -m benchmarks.inference",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
