"""Which code is tested: only a suite that was broken off on the same code is gone on with."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

NEW_CODE = ("*.py", "*.yaml", "*.toml")  # files that git does not know yet


def code_version(folder: Path) -> str | None:
    """The commit, and a hash of what was changed since; None where `folder` is not the top of a git repository."""
    try:
        top = _git(folder, "rev-parse", "--show-toplevel").decode().strip()
        if Path(top).resolve() != folder.resolve():
            return None
        commit = _git(folder, "rev-parse", "HEAD").decode().strip()
        changes = hashlib.sha256(_git(folder, "diff", "--binary", "HEAD"))
        others = _git(folder, "ls-files", "--others", "--exclude-standard", "-z", "--", *NEW_CODE)
        for name in others.split(b"\0")[:-1]:
            path = folder / name.decode(errors="surrogateescape")
            changes.update(name + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    except (OSError, subprocess.CalledProcessError):  # no git, no repository, no commit, a file that went
        return None
    return f"{commit} {changes.hexdigest()}"


def _git(folder: Path, *words: str) -> bytes:
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True).stdout
