"""Estimate hours, memory and network load of a recipe by arithmetic alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from swav_tf.data.sources import open_source
from swav_tf.planning.gpus import GPUS, Cluster, Gpu
from swav_tf.planning.network_cost import PASSES_OF_OUTPUTS, NetworkCost, network_cost
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.recipe.advice import check_recipe
from swav_tf.recipe.files import load_recipe
from swav_tf.recipe.pretraining import Recipe

IMAGENET_IMAGES = 1_281_167
JPEG_BYTES = 110_000  # of a typical ImageNet file
CPU_MS = 7.0  # to decode and crop 2x224 + 6x96 in one of many threads (docs/performance.md: 3.7 alone)
DECODE_SHARE = 0.25  # of that, independent of the crops
CPU_PIXELS = 2 * 224**2 + 6 * 96**2
PROCESS_IMAGES_PER_SECOND = 1000  # of one process, whose threads share Python's lock

LATENCY_S = {"node": 50e-6, "cluster": 150e-6}  # of one collective, inside a machine and between machines
MOMENTARY = 1.25  # activations including short-lived tensors; 1.24 was measured on a CPU (docs)
CONTEXT_BYTES = 1e9  # of the driver, the libraries and their workspaces
USABLE = 0.95  # of a GPU's memory; the rest is lost to fragmentation

# This program's step on one H200, batch 256 of swav_100ep (docs/performance.md); float32 was not measured.
MEASURED_IMAGES_PER_SECOND = {"mixed_float16": 1774.5, "mixed_bfloat16": 1263.0}


@dataclass(frozen=True)
class Memory:
    """The memory of one GPU, GB (10^9 bytes)."""

    weights: float  # float32, their copies in half precision, and running averages
    momentum: float
    gradients: float  # and the vector they are summed in
    activations: float
    rest: float  # crops, queue, driver and libraries
    total: float
    available: float
    largest_batch: int  # images that fit a GPU at once; 0: none

    @property
    def fits(self) -> bool:
        """Return whether the total fits."""
        return self.total <= self.usable

    @property
    def usable(self) -> float:
        """Return the memory that a run can use, GB."""
        return USABLE * self.available


@dataclass(frozen=True)
class Communication:
    """The collectives of one optimizer step."""

    collectives: int
    megabytes: float  # of all their tensors
    ring_megabytes: float  # sent by each GPU
    transfer_ms: float
    latency_ms: float

    @property
    def ms(self) -> float:
        """Return the time of all, one after the other, without overlap with computing."""
        return self.transfer_ms + self.latency_ms


@dataclass(frozen=True)
class Pace:
    """The speed of the run, and what the input must supply for it."""

    images_per_second_gpu: float
    images_per_second: float
    step_ms: float
    communication_share: float  # of the step, 0 to 1
    hours: float
    gpu_hours: float
    node_images_per_second: float
    node_cpu_cores: float  # that decode and crop
    node_jpeg_megabytes: float  # per second, from disk or network
    node_crop_megabytes: float  # per second, to the GPUs


@dataclass(frozen=True)
class Plan:
    """The estimate of one run."""

    recipe: str
    cluster: Cluster
    images: int
    epochs: int
    steps: int
    batch_size: int
    replica_batch: int  # images on a GPU at once
    accumulation_steps: int
    precision: str
    image_flops: int  # of one image in a step; with accumulation both of its forward passes
    step_flops: int  # of all images of a step
    cost: NetworkCost
    memory: Memory
    communication: Communication
    pace: Pace
    checkpoint_megabytes: float
    warnings: tuple[str, ...]
    assumptions: tuple[str, ...]


def make_plan(
    recipe: Recipe, cluster: Cluster, *, images: int | None = None, images_per_second: float | None = None
) -> Plan:
    """Estimate a complete run.

    The number of images is by default that of the recipe's data, and ImageNet's if it names none. `images_per_second`
    is the measured speed of one GPU (`swav-tf profile`), including communication; None to estimate it.

    Raises:
        UsageError: the batch cannot be divided, the network is external, or the GPU lacks bfloat16.
    """
    if cluster.nodes > 1 and cluster.gpus % cluster.gpus_per_node:
        raise UsageError(
            f"--gpus must be a multiple of --gpus-per-node, so that all machines are equal. Received: {cluster.gpus} "
            f"and {cluster.gpus_per_node}."
        )
    if recipe.train.precision == "mixed_bfloat16" and not cluster.gpu.bfloat16:
        raise UsageError(
            f"{cluster.gpu.name} has no bfloat16 arithmetic. Use -o train.precision=mixed_float16, or another --gpu."
        )
    given = images if images is not None else _image_count(recipe)
    images = IMAGENET_IMAGES if given is None else given
    check_recipe(recipe, replicas=cluster.gpus, images=images)
    train, cost = recipe.train, network_cost(recipe)
    memory, communication = memory_of(recipe, cost, cluster), communication_of(recipe, cost, cluster)
    steps = images // train.batch_size * train.epochs
    if images_per_second is not None:
        step_s = train.batch_size / cluster.gpus / images_per_second
    else:
        computing = roofline_seconds(recipe, cost, cluster.gpu) * train.batch_size / cluster.gpus
        step_s = computing / measured_efficiency(train.precision) + communication.ms / 1000
    pace = _pace(step_s, steps, recipe, cost, cluster, communication)
    assumptions = _assumptions(recipe, cluster, cost, measured=images_per_second is not None)
    if given is None:
        assumptions.insert(0, "the recipe names no data: ImageNet is assumed; --images sets another number")
    queue = 2 * recipe.queue_length * recipe.model.projection_dim
    return Plan(
        recipe=recipe.name,
        cluster=cluster,
        images=images,
        epochs=train.epochs,
        steps=steps,
        batch_size=train.batch_size,
        replica_batch=train.batch_size // cluster.gpus // train.accumulation_steps,
        accumulation_steps=train.accumulation_steps,
        precision=train.precision,
        image_flops=image_flops(recipe, cost),
        step_flops=image_flops(recipe, cost) * train.batch_size,
        cost=cost,
        memory=memory,
        communication=communication,
        pace=pace,
        checkpoint_megabytes=4 * ((1 + _momenta(recipe)) * cost.parameters + cost.averages + queue) / 1e6,
        warnings=tuple(_warnings(recipe, cluster, memory, pace)),
        assumptions=tuple(assumptions),
    )


def _image_count(recipe: Recipe) -> int | None:
    """Return the number of the recipe's training images, None if it names no data."""
    data = recipe.data
    if data.kind != "digits" and not data.path:
        return None
    try:
        if data.kind == "tfds":
            raise DataError("their number is not known without downloading them")
        return len(open_source(data))
    except DataError as error:
        raise UsageError(
            f"The number of images must be given for {recipe.name}: --images N. Its data are {data.kind} "
            f"{data.path or ''}: {error}"
        ) from error


# === Speed ===


def image_flops(recipe: Recipe, cost: NetworkCost) -> int:
    """Return the FLOPs of one image in a step."""
    # In parts, each image passes forward twice: first for the codes of the complete batch.
    return cost.image_flops + (2 * cost.forward_macs if recipe.train.accumulation_steps > 1 else 0)


def roofline_seconds(recipe: Recipe, cost: NetworkCost, gpu: Gpu) -> float:
    """Return the time of one image if arithmetic ran at its peak, then memory traffic at its own, without overlap."""
    single = recipe.train.precision == "float32"
    twice = recipe.train.accumulation_steps > 1
    flops = image_flops(recipe, cost)
    moved = cost.moved * (1 + (6 / PASSES_OF_OUTPUTS if twice else 0))
    peak = (gpu.single_tflops if single else gpu.half_tflops) * 1e12
    return flops / peak + moved * (4 if single else 2) / (gpu.bandwidth_gb * 1e9)


@cache
def measured_efficiency(precision: str) -> float:
    """Return the share of the roofline that this program reached; mixed_float16 stands for what was not measured."""
    precision = precision if precision in MEASURED_IMAGES_PER_SECOND else "mixed_float16"
    recipe = load_recipe("swav_100ep", [f"train.precision={precision}"])
    seconds = roofline_seconds(recipe, network_cost(recipe), GPUS["h200"])
    return seconds * MEASURED_IMAGES_PER_SECOND[precision]


def _pace(
    step_s: float,
    steps: int,
    recipe: Recipe,
    cost: NetworkCost,
    cluster: Cluster,
    communication: Communication,
) -> Pace:
    speed = recipe.train.batch_size / step_s
    node = speed / cluster.nodes
    cpu_s = CPU_MS / 1000 * (DECODE_SHARE + (1 - DECODE_SHARE) * cost.crop_pixels / CPU_PIXELS)
    hours = steps * step_s / 3600
    return Pace(
        images_per_second_gpu=speed / cluster.gpus,
        images_per_second=speed,
        step_ms=1000 * step_s,
        communication_share=communication.ms / 1000 / step_s,
        hours=hours,
        gpu_hours=hours * cluster.gpus,
        node_images_per_second=node,
        node_cpu_cores=node * cpu_s,
        node_jpeg_megabytes=node * JPEG_BYTES / 1e6,
        node_crop_megabytes=node * 3 * cost.crop_pixels / 1e6,
    )


# === Links and memory ===


def communication_of(recipe: Recipe, cost: NetworkCost, cluster: Cluster) -> Communication:
    """Return the collectives of a step: batch norm, codes, gradients, diagnostics (docs/architecture.md)."""
    if cluster.gpus == 1:
        return Communication(0, 0.0, 0.0, 0.0, 0.0)
    parts, model = recipe.train.accumulation_steps, recipe.model
    # Once forward and once backward; in parts, each also passes forward once more.
    rounds = 0 if not model.batch_norm.synchronised else (2 if parts == 1 else 3 * parts)
    iterations = recipe.method.sinkhorn_iterations
    collectives = rounds * cost.normalizations + iterations + 1 + 1
    numbers = (
        rounds * 2 * cost.normalized_channels
        + iterations * 2 * model.prototypes
        + cost.parameters
        + model.prototypes
        + model.projection_dim
    )
    ring = 2 * (cluster.gpus - 1) / cluster.gpus * 4 * numbers
    latency = LATENCY_S["node" if cluster.nodes == 1 else "cluster"]
    return Communication(
        collectives=collectives,
        megabytes=4 * numbers / 1e6,
        ring_megabytes=ring / 1e6,
        transfer_ms=1000 * ring / cluster.link_bytes_per_second,
        latency_ms=1000 * collectives * latency,
    )


def memory_of(recipe: Recipe, cost: NetworkCost, cluster: Cluster) -> Memory:
    """Return what one GPU holds at its peak, the end of the forward pass."""
    half = recipe.train.precision != "float32"
    parts, several = recipe.train.accumulation_steps, cluster.gpus > 1
    replica_batch = recipe.train.batch_size // cluster.gpus // parts
    weights = (6 if half else 4) * cost.parameters + 4 * cost.averages
    momentum = 4 * cost.parameters * _momenta(recipe)
    # The sum over replicas needs a flat vector before and after; the sum over parts another.
    gradients = 4 * cost.parameters * (1 + (2 if several else 0) + (1 if parts > 1 else 0))
    queue = recipe.queue_length // cluster.gpus
    prototypes, dim = recipe.model.prototypes, recipe.model.projection_dim
    codes = 2 * 4 * (queue * (dim + 2 * prototypes) + 2 * replica_batch * parts * prototypes)
    rest = CONTEXT_BYTES + codes
    image = MOMENTARY * (cost.kept * (2 if half else 4) + 4 * cost.kept_single) + 2 * 3 * cost.crop_pixels
    fixed = weights + momentum + gradients + rest
    free = USABLE * cluster.gpu.memory_gb * 1e9 - fixed
    activations = image * replica_batch
    return Memory(
        weights=weights / 1e9,
        momentum=momentum / 1e9,
        gradients=gradients / 1e9,
        activations=activations / 1e9,
        rest=rest / 1e9,
        total=(fixed + activations) / 1e9,
        available=cluster.gpu.memory_gb,
        largest_batch=max(0, int(free // image)),
    )


def _momenta(recipe: Recipe) -> int:
    """Return the numbers that the optimizer keeps for each parameter."""
    return 2 if recipe.optimizer.kind == "adam" else 1


# === Text ===


def _warnings(recipe: Recipe, cluster: Cluster, memory: Memory, pace: Pace) -> list[str]:
    found, train = [], recipe.train
    if not memory.fits:
        shares = train.batch_size // cluster.gpus
        fitting = [n for n in range(1, shares + 1) if shares % n == 0 and shares // n <= memory.largest_batch]
        remedy = (
            f"-o train.accumulation_steps={fitting[0]}"
            if fitting
            else "another GPU, a narrower network or smaller crops: not one image fits"
        )
        found.append(
            f"{shares // train.accumulation_steps} images do not fit {cluster.gpu.name}: {memory.total:.1f} of "
            f"{memory.usable:.1f} usable GB. Remedy: {remedy}"
        )
    if pace.communication_share > 0.15:
        found.append(
            f"communication takes {100 * pace.communication_share:.0f} % of a step: a faster --link-gbit, "
            "more images per GPU, or batch statistics per GPU (model.batch_norm.synchronised=false)"
        )
    if not recipe.data.processes and pace.node_images_per_second > PROCESS_IMAGES_PER_SECOND:
        found.append(
            f"a machine needs {pace.node_images_per_second:,.0f} images/s, and the threads of one process share "
            f"Python's lock: above about {PROCESS_IMAGES_PER_SECOND:,} images/s, make the crops in processes (-o "
            f"data.processes={-(-pace.node_cpu_cores // 1):.0f})"
        )
    return found


def _assumptions(recipe: Recipe, cluster: Cluster, cost: NetworkCost, *, measured: bool) -> list[str]:
    gpu, precision = cluster.gpu, recipe.train.precision
    single = precision == "float32"
    found = [
        f"{gpu.name} at its nominal peak: {gpu.single_tflops if single else gpu.half_tflops:g} TFLOP/s "
        f"({'float32' if single else 'half precision, dense'}), {gpu.memory_gb:g} GB at {gpu.bandwidth_gb:,g} GB/s",
    ]
    if not measured:
        roofline = 1 / roofline_seconds(recipe, cost, gpu)
        found += [
            f"roofline (products, then memory traffic of unfused operations): {roofline:,.0f} images/s per GPU",
            f"of it {100 * measured_efficiency(precision):.0f} %, as this program's step ran on one H200, batch 256"
            f"{'' if precision in MEASURED_IMAGES_PER_SECOND else ' in mixed_float16'}",
        ]
    if cluster.gpus > 1:
        inside = f"{gpu.link} {gpu.link_gb / 2:g} GB/s each way in a machine"
        between = f", {cluster.link_gbit:g} Gbit/s between machines" if cluster.nodes > 1 else ""
        latency = 1e6 * LATENCY_S["node" if cluster.nodes == 1 else "cluster"]
        found.append(
            f"{inside}{between}; ring all-reduce, {latency:.0f} us per collective, no overlap with computing"
        )
    return [
        *found,
        f"memory: what gradients need is kept in {'float32' if single else 'half precision'}, times {MOMENTARY:g} for "
        f"short-lived tensors, {CONTEXT_BYTES / 1e9:g} GB for driver and libraries",
        f"input: JPEGs of {JPEG_BYTES / 1000:.0f} KB, {CPU_MS:g} ms of a core for 2x224 + 6x96 crops, else by pixels",
        "hours are of training steps alone: no k-NN, no checkpoints, no start",
    ]
