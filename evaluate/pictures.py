"""What pictures may be written as."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from swav_tf.plumbing.errors import UsageError

ENDINGS: Final = (".png", ".jpg", ".jpeg", ".webp")


def check_picture(path: Path) -> None:
    """Refuses a picture that could not be written, before the work that it is to show.

    Raises:
        UsageError: the ending is none of ENDINGS, or it is a folder.
    """
    if path.suffix.lower() not in ENDINGS or path.is_dir():
        raise UsageError(f"A picture must end in {', '.join(ENDINGS)}. Received: {path}.")
