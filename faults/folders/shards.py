"""Shards and indices that are damaged or lead elsewhere: refused in words, or every image is as it was."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np

from faults.folders.ground import Ground
from faults.isolated import isolated
from faults.jobs import PRETRAIN, overrides, shard
from faults.mutate import mutated
from swav_tf.data.decode import UndecodableImage
from swav_tf.data.sources import read_image
from swav_tf.data.tfrecord import open_shards
from swav_tf.plumbing.errors import DataError, SwavError

DAMAGES = 200


def index_elsewhere(ground: Ground, folder: Path) -> tuple[str, str]:
    """An index that names files outside of its folder, by path or by a link."""
    secret, whole = folder / "secret.tfrecord", folder / "whole"
    whole.mkdir()
    ground.commands.must_run(shard(ground.made.images).arguments(whole))
    index = json.loads((whole / "shards" / "index.json").read_text())
    shutil.copy(whole / "shards" / index["shards"][0]["name"], secret)
    settings = (*PRETRAIN, "data.kind=tfrecord", "data.validation_split=null", "monitor.knn_every_epochs=0")
    for number, name in enumerate(
        ("../secret.tfrecord", str(secret), "sub/../../secret.tfrecord", "..", "", "link.tfrecord", "a\0b", "/dev/zero")
    ):  # fmt: skip
        copy = folder / f"copy-{number}"
        shutil.copytree(whole / "shards", copy)
        (copy / "link.tfrecord").symlink_to(secret)
        index["shards"][0]["name"] = name
        (copy / "index.json").write_text(json.dumps(index))
        for arguments in (
            ["data", "check", copy],
            ["pretrain", copy, "-c", "demo", *overrides(settings), "--run-dir", folder / "run"],
        ):
            ended = ground.commands.run(arguments)
            if ended.disgrace or ended.code not in (1, 2):
                return "", f"{name!r}, {arguments[0]}: {ended.disgrace or ended}"
    return "refused in words", ""


def damaged_shards(ground: Ground, folder: Path, draw: np.random.Generator) -> tuple[str, str]:
    """Files of a packing damaged, one at a time."""
    ground.commands.must_run(shard(ground.made.images).arguments(folder))
    whole = folder / "shards"
    (whole / ".lock").unlink(missing_ok=True)
    source = open_shards(str(whole))
    right = [
        (source.read(index), source.label(index), source.image_name(index)) for index in range(len(source))
    ]
    names = [path.name for path in whole.iterdir() if path.name.startswith("index")] * 8
    names += [path.name for path in sorted(whole.iterdir())]
    damages = []
    for _ in range(DAMAGES):
        name = names[int(draw.integers(len(names)))]
        damages.append((name, *mutated((whole / name).read_bytes(), draw)))

    def outcome(damage: tuple[str, bytes, str]) -> str:
        name, data, _ = damage
        copy = folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        for path in whole.iterdir():
            if path.name != name:
                os.link(path, copy / path.name)
        (copy / name).write_bytes(data)
        try:
            found = open_shards(str(copy))
        except SwavError:
            return ""
        if len(found) != len(right):
            return f"{len(found)} images"
        for index, as_it_was in enumerate(right):
            try:
                read_image(found, index)
            except (UndecodableImage, OSError, DataError):
                continue
            if (found.read(index), found.label(index), found.image_name(index)) != as_it_was:
                return f"image {index} is another one"
        return ""

    for answer in isolated(outcome, damages):
        if answer.broken or answer.value:
            return "", f"{answer.argument[0]}, {answer.argument[2]}: {answer.broken or answer.value}"
    return f"{DAMAGES} times refused or the same images", ""
