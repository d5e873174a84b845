"""SwAV by swav-tf and by lightly: the same images, network, crops, optimizer and number of steps.

    python -m benchmarks.lightly_study swav_tf TRAIN TEST [--seeds 0 1 2] [--epochs 8] [--folder runs/lightly]
    python -m benchmarks.lightly_study lightly TRAIN TEST, with the same options

TRAIN and TEST have one folder per class. The second command needs an environment with lightly, torchvision and the base
packages of this project, and reads the recipe from the runs of the first: that of `auto`, with fewer epochs. lightly's
loss, head, prototypes, transform and ResNet are used, the latter changed into `resnet10_32px`, with its initialization.
Both are judged by the code of this project. Times include start and features.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import documented_parser
from evaluate.linear import linear_accuracy
from swav_tf.knn import knn_accuracy
from swav_tf.recipe.files import load_recipe
from swav_tf.recipe.pretraining import Recipe

# Features and labels.
Judged = tuple[np.ndarray, np.ndarray]


def by_swav_tf(images: Path, test: Path, run: Path, settings: list[str]) -> tuple[float, Judged, Judged]:
    """Train, and return the last loss, and what is judged of the training and of the test images."""
    from swav_tf.data.sources import open_source
    from swav_tf.data.survey import survey, this_machine
    from swav_tf.recipe.auto import choose
    from swav_tf.recipe.data import Data
    from swav_tf.recipe.files import recipe_of
    from swav_tf.training.knn_monitor import readable_features
    from swav_tf.training.pretrain import pretrain

    facts = survey(Data(kind="class_folders", path=str(images)))
    recipe = recipe_of(choose(facts, this_machine()).settings, settings)
    assert isinstance(recipe, Recipe)
    result = pretrain(recipe, run_dir=run, quiet=True)
    judged = []
    for path in images, test:
        source = open_source(Data(kind="class_folders", path=str(path)))
        features, _ = readable_features(result.model, source, range(len(source)), recipe.data)
        judged.append((features, source.labels()))
    return result.summary["loss_last"], judged[0], judged[1]


def by_lightly(images: Path, test: Path, run: Path) -> tuple[float, Judged, Judged]:
    """Do the same with lightly, by the recipe in the folder of the run."""
    import torch
    from lightly.loss import SwaVLoss
    from lightly.models.modules import SwaVProjectionHead, SwaVPrototypes
    from lightly.transforms import SwaVTransform
    from torch.nn import functional
    from torchvision.datasets import ImageFolder

    recipe = load_recipe(run / "config.yaml")
    crops, augment, train, method = recipe.crops[0], recipe.augment, recipe.train, recipe.method
    torch.manual_seed(train.seed)
    jitter, normalize = augment.jitter, {"mean": list(augment.mean), "std": list(augment.std)}
    transform = SwaVTransform(
        crop_sizes=(crops.size,), crop_counts=(crops.count,),
        crop_min_scales=(crops.scale[0],), crop_max_scales=(crops.scale[1],),
        hf_prob=augment.flip_probability, cj_prob=jitter.probability, cj_bright=jitter.brightness,
        cj_contrast=jitter.contrast, cj_sat=jitter.saturation, cj_hue=jitter.hue,
        random_gray_scale=augment.grayscale_probability, gaussian_blur=0.0, normalize=normalize,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(
        ImageFolder(str(images), transform), train.batch_size, shuffle=True, drop_last=True, num_workers=2
    )
    backbone = lightly_resnet10()
    head = SwaVProjectionHead(256, recipe.model.head_hidden, recipe.model.projection_dim)
    prototypes = SwaVPrototypes(recipe.model.projection_dim, recipe.model.prototypes, len(loader))
    loss_of = SwaVLoss(method.temperature, method.sinkhorn_iterations, method.epsilon)
    parts = torch.nn.ModuleList([backbone, head, prototypes])
    rate, decay = recipe.optimizer.peak_learning_rate, recipe.optimizer.weight_decay
    optimizer = torch.optim.Adam(parts.parameters(), rate, weight_decay=decay)
    steps = train.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: (1 + math.cos(math.pi * t / steps)) / 2)
    for epoch in range(train.epochs):
        losses = []
        for number, (views, _, *_) in enumerate(loader):
            prototypes.normalize()
            projections = functional.normalize(head(backbone(torch.cat(views))), dim=1)
            scores = prototypes(projections, epoch * len(loader) + number)
            loss = loss_of(list(scores.chunk(2)), [])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    backbone.eval()
    return float(np.mean(losses)), *(_judged(backbone, path, normalize) for path in (images, test))


def lightly_resnet10() -> Any:
    """Return lightly's ResNet as `resnet10_32px`: half the width, and a stride of 2 in the first layer."""
    import torch
    from lightly.models import ResNetGenerator

    net = ResNetGenerator("resnet-9", width=0.5)
    net.conv1.stride = (2, 2)
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    stages = [net.layer1, net.layer2, net.layer3, net.layer4]
    pool = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    return torch.nn.Sequential(net.conv1, net.bn1, torch.nn.ReLU(), *stages, *pool)


def _judged(backbone: Any, path: Path, normalize: dict[str, list[float]]) -> Judged:
    import torch
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    view = transforms.Compose([transforms.ToTensor(), transforms.Normalize(**normalize)])
    batches = torch.utils.data.DataLoader(ImageFolder(str(path), view), 256, num_workers=2)
    with torch.no_grad():
        features, labels = zip(
            *[(backbone(images).numpy(), labels.numpy()) for images, labels in batches], strict=True
        )
    return np.concatenate(features), np.concatenate(labels)


def main() -> None:
    parser = documented_parser(__doc__)
    parser.add_argument("framework", choices=["swav_tf", "lightly"])
    parser.add_argument("images", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--folder", type=Path, default=Path("runs/lightly"))
    options = parser.parse_args()
    print(
        "| | seed | loss | 20-NN | 200-NN, temperature 0.1 | linear | minutes | CPU minutes |\n"
        + "|---" * 8
        + "|"
    )
    for seed in options.seeds:
        run, start, used = options.folder / str(seed), time.monotonic(), sum(os.times()[:4])
        if options.framework == "swav_tf":
            settings = [f"train.seed={seed}", f"train.epochs={options.epochs}", "monitor.tensorboard=false"]
            settings += ["monitor.knn_every_epochs=0", "monitor.view_images=0"]
            loss, known, queries = by_swav_tf(options.images, options.test, run, settings)
        else:
            loss, known, queries = by_lightly(options.images, options.test, run)
        times = (time.monotonic() - start) / 60, (sum(os.times()[:4]) - used) / 60
        shares = [
            knn_accuracy(*known, *queries, k=20),
            knn_accuracy(*known, *queries, k=200, temperature=0.1),
            linear_accuracy(*known, *queries),
        ]
        cells = [f"{loss:.2f}", *(f"{100 * share:.1f} %" for share in shares), *(f"{m:.1f}" for m in times)]
        print(f"| {options.framework} | {seed} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
