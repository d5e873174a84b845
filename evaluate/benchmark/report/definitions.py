"""Every word of the page that is not everyday English. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Final

from evaluate.benchmark.runner_facts import RUNNERS

DEFINITIONS: Final = {
    "cell": "One model by one runner in one precision at one batch size, in a process of its own.",
    "run": "One call with one batch, timed from its start until its result is there. The warm-up's are not counted.",
    "images/s": "The batch over the median time of a run.",
    "±": "Twice the standard error of images/s: 95 % of repetitions of the whole benchmark would lie within. From the "
    "spread of 20 consecutive blocks of runs, and from process to process: measured with --rounds, else taken as 2 %.",
    "p50, p90, p95, p99": "50, 90, 95, 99 % of runs were quicker. A percentile is given only when at least 10 runs lie "
    "beyond it: p90 takes 100 runs, p95 200, p99 1,000. The median is always given.",
    "from host": "From uint8 images in the host's memory to features in the host's memory, with all copies and "
    "preparation between.",
    "from GPU": "The same with input and outputs left in the GPU's memory.",
    "host MiB": "The most memory that the cell's process held at once: interpreter, libraries, model, batch.",
    "GPU MiB": "Memory of the GPU in use at the end of the timing more than before the model was opened.",
    "k-NN": "Share of labelled images whose class the 20 nearest others (by cosine of this file's features) vote for.",
    "relative error": "L2 norm of the difference from Keras' outputs over that of Keras' outputs.",
    "least cosine": "Of the features of one image with Keras' for it, the worst image.",
    "bound by": "transfer: copies between host and GPU take half of the time or more. launch: what every call costs "
    "whatever the batch does; it follows from a line through the times of all batches. Else compute or memory: the "
    "lower of the two roofs below. The percentage is the share of the time.",
    "roofline": "Images/s over what the machine would allow if only arithmetic and memory cost time. "
    "Arithmetic: operations of convolutions and matrix products (two for each product) at the speed of a large matrix "
    "product, measured on this machine in the same precision. Memory: every such operator's input, output and weights "
    "once, at the speed of a large element-wise maximum. Above 100 % is possible: data may stay in caches, and some "
    "algorithms need fewer products.",
    "short": "Fewer than 100 runs or 3 seconds.",
    "unstable": "The standard deviation of the runs is more than 10 % of their mean.",
    "busy": "Other processes took more than 10 % of all cores while the cell was timed.",
    "throttled": "The GPU ran below its clock at the end of the timing, for power or heat.",
}


def definitions(runners: Iterable[str]) -> str:
    """What the words mean, with those of the runners that took part first."""
    words = {
        **{runner: f"{RUNNERS[runner].meaning}." for runner in runners if runner in RUNNERS},
        **DEFINITIONS,
    }
    entries = [f"<dt>{escape(word)}</dt><dd>{escape(meaning)}</dd>" for word, meaning in words.items()]
    return f"<dl>{''.join(entries)}</dl>"
