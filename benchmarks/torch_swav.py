"""ResNet-50 and the SwAV step in PyTorch, written from the papers (arXiv 1512.03385, 2006.09882, 1708.03888).

As a user of PyTorch would write them: channels_last, foreach operations in the optimizer. Names of weights are
PyTorch's usual ones, so that `swav_tf.weights` can convert ours.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from swav_tf.recipe.pretraining import Recipe

torch.set_num_threads(len(os.sched_getaffinity(0)))


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or inputs != 4 * channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, 4 * channels, 1, stride, bias=False), nn.BatchNorm2d(4 * channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet50(nn.Module):
    """Normalized images (n, 3, side, side) to features (n, 2048)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, 2, 1)
        inputs = 64
        for stage, (depth, channels) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True), 1):
            blocks = []
            for i in range(depth):
                blocks.append(Bottleneck(inputs, channels, 2 if i == 0 and stage > 1 else 1))
                inputs = 4 * channels
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))

    def features(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return functional.adaptive_avg_pool2d(x, 1).flatten(1)


class FeaturesOfBytes(ResNet50):
    """uint8 (n, side, side, 3) to features, as our exported graph."""

    def __init__(self, weights: str, *, mean: Sequence[float], std: Sequence[float]) -> None:
        """Load the backbone's weights from a file from `swav-tf weights export`."""
        super().__init__()
        state = torch.load(weights, weights_only=True)
        missing, _ = self.load_state_dict(
            {name.removeprefix("module."): values for name, values in state.items()}, strict=False
        )
        assert not missing, missing
        self.register_buffer("mean", 255 * torch.tensor(mean))
        self.register_buffer("scale", 1 / (255 * torch.tensor(std)))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.features(((images.float() - self.mean) * self.scale).permute(0, 3, 1, 2))


class Network(ResNet50):
    """Groups of crops of one size each to scores (V * B, K)."""

    def __init__(self, hidden: int, dim: int, prototypes: int) -> None:
        super().__init__()
        self.projection_head = nn.Sequential(
            nn.Linear(2048, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim)
        )
        self.prototypes = nn.Linear(dim, prototypes, bias=False)

    def forward(self, groups: list[Tensor]) -> Tensor:
        features = torch.cat([self.features(group) for group in groups])
        return self.prototypes(functional.normalize(self.projection_head(features), dim=1))


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Codes (B, K) of one crop's scores."""
    q = torch.exp((scores - scores.max()) / epsilon).t()
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(1, keepdim=True) * q.shape[0]
        q /= q.sum(0, keepdim=True) * q.shape[1]
    return (q * q.shape[1]).t()


class Lars:
    """Momentum on gradients scaled by each tensor's trust ratio, all tensors at once."""

    def __init__(self, parameters: list[Tensor], momentum: float, decay: float, trust: float) -> None:
        self.parameters, self.momentum, self.decay, self.trust = parameters, momentum, decay, trust
        self.buffers = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        gradients = [p.grad for p in self.parameters]
        sizes = torch.stack(torch._foreach_norm(self.parameters))
        of_gradients = torch.stack(torch._foreach_norm(gradients))
        ratio = self.trust * sizes / (of_gradients + self.decay * sizes + 1e-8)
        apply = (sizes > 0) & (of_gradients > 0)
        # Factors as tensors, not numbers: the host need not wait for them.
        of_gradient = list(torch.where(apply, ratio, torch.ones_like(ratio)))
        of_parameter = list(torch.where(apply, self.decay * ratio, torch.zeros_like(ratio)))
        torch._foreach_mul_(self.buffers, self.momentum)
        torch._foreach_add_(self.buffers, torch._foreach_mul(gradients, of_gradient))
        torch._foreach_add_(self.buffers, torch._foreach_mul(self.parameters, of_parameter))
        torch._foreach_add_(self.parameters, self.buffers, alpha=-rate)


AUTOCAST = {"mixed_float16": torch.float16, "mixed_bfloat16": torch.bfloat16}
LOSS_SCALE = 2.0**15  # of float16; overflows are not checked


class TorchStep:
    """One optimizer step on uint8 crops, on a GPU if PyTorch sees one."""

    def __init__(self, recipe: Recipe, crops: list[np.ndarray]) -> None:
        model, optimizer = recipe.model, recipe.optimizer
        assert (model.backbone.name, model.backbone.width) == ("resnet50", 1)
        self.recipe = recipe
        self.network = Network(model.head_hidden, model.projection_dim, model.prototypes).train()
        for layer in self.network.modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                layer.eps, layer.momentum = model.batch_norm.epsilon, 1 - model.batch_norm.momentum
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network.to(self.device, memory_format=torch.channels_last)
        self.half = AUTOCAST.get(recipe.train.precision)
        self.scale = LOSS_SCALE if self.half is torch.float16 else 1.0
        parameters = list(self.network.parameters())
        self.lars = Lars(parameters, optimizer.momentum, optimizer.weight_decay, optimizer.trust_coefficient)
        self.mean = torch.tensor(recipe.augment.mean).view(3, 1, 1).to(self.device)
        self.std = torch.tensor(recipe.augment.std).view(3, 1, 1).to(self.device)
        # (B, count, size, size, 3) to (count * B, size, size, 3)
        flat = [np.ascontiguousarray(group.swapaxes(0, 1)).reshape(-1, *group.shape[2:]) for group in crops]
        self.crops = [torch.from_numpy(group).to(self.device) for group in flat]

    def load(self, weights: dict[str, np.ndarray]) -> None:
        """Take weights by PyTorch's names and in its layout."""
        state = {name: torch.from_numpy(array.copy()) for name, array in weights.items()}
        missing, unexpected = self.network.load_state_dict(state, strict=False)
        assert not unexpected
        assert all(name.endswith("num_batches_tracked") for name in missing)

    def __call__(self, rate: float) -> Tensor:
        """Do the step; return the loss, which may not be computed yet."""
        prototypes, method = self.network.prototypes.weight, self.recipe.method
        with torch.no_grad():
            prototypes.copy_(functional.normalize(prototypes, dim=1))
        images = [
            ((group.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std).contiguous(
                memory_format=torch.channels_last
            )
            for group in self.crops
        ]
        with torch.autocast(self.device.type, dtype=self.half, enabled=self.half is not None):
            scores = self.network(images)
        scores = scores.float().view(-1, self.recipe.train.batch_size, prototypes.shape[0])
        codes = [sinkhorn(scores[i].detach(), method.epsilon, method.sinkhorn_iterations) for i in range(2)]
        log_p = functional.log_softmax(scores / method.temperature, dim=-1)
        terms = [
            -(codes[i] * log_p[v]).sum(-1).mean() for i in range(2) for v in range(len(scores)) if v != i
        ]
        loss = torch.stack(terms).mean()
        for parameter in self.lars.parameters:
            parameter.grad = None
        (self.scale * loss).backward()
        if self.scale != 1.0:
            torch._foreach_div_([parameter.grad for parameter in self.lars.parameters], self.scale)
        self.lars.step(rate)
        return loss.detach()
