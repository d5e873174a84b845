"""Work in numbered parts, one for each process or machine, counted from 1."""

from __future__ import annotations

import re
from collections.abc import Mapping

from swav_tf.plumbing.errors import UsageError


def part_name(number: int, count: int) -> str:
    """Return the name of a part's files, without an ending."""
    return f"part-{number:05d}-of-{count:05d}"


def part_numbers(text: str | None, environment: Mapping[str, str]) -> tuple[int, int] | None:
    """Return (number, count) of a part like `17/400`, or of this task of a SLURM array; None for neither.

    Raises:
        UsageError: the text is something else, or the array has gaps, so that its tasks do not number the parts.
    """
    if text is not None:
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise UsageError(f"--part must be I/N with 1 <= I <= N, such as 17/400. Received: {text}.")
        return int(found[1]), int(found[2])
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return None
    task, count, least, most, step = (
        int(environment.get(f"SLURM_ARRAY_TASK_{name}", default))
        for name, default in (("ID", ""), ("COUNT", "1"), ("MIN", "1"), ("MAX", "1"), ("STEP", "1"))
    )
    if (most - least) // step + 1 != count:
        raise UsageError(
            f"In a SLURM array with gaps, pass --part. Received: {count} tasks numbered {least} to {most}. Use --part "
            "$SLURM_ARRAY_TASK_ID/COUNT, where COUNT is the total number of parts."
        )
    return (task - least) // step + 1, count
