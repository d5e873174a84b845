"""The same SwAV step in PyTorch, for comparison: ResNet-50 v1.5, head, prototypes, Sinkhorn, loss, LARS.

On a GPU where PyTorch sees one, there with `torch.compile` of the network if `compiled` asks for it.

Written from the papers (arXiv 1512.03385, 2006.09882, 1708.03888): what somebody would write who knows PyTorch,
channels_last, foreach operations in the optimiser. Names of weights are PyTorch's usual ones, so that
`swav_tf.weights` can give it ours.
"""

from __future__ import annotations

import os

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


class Network(nn.Module):
    """Backbone, head and prototypes."""

    def __init__(self, hidden: int, dim: int, prototypes: int) -> None:
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
        self.projection_head = nn.Sequential(
            nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim)
        )
        self.prototypes = nn.Linear(dim, prototypes, bias=False)

    def forward(self, groups: list[Tensor]) -> Tensor:
        """Scores (V * B, K); each group of crops of one size goes through the backbone at once."""
        features = []
        for x in groups:
            x = self.pool(self.relu(self.bn1(self.conv1(x))))
            x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
            features.append(x.mean((2, 3)))
        projections = functional.normalize(self.projection_head(torch.cat(features)), dim=1)
        return self.prototypes(projections)


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
LOSS_SCALE = 2.0**15  # of float16; steps that overflow are not looked for


class TorchStep:
    """One optimiser step on uint8 crops."""

    def __init__(self, recipe: Recipe, crops: list[np.ndarray], *, compiled: bool = False) -> None:
        model, method, optimizer = recipe.model, recipe.method, recipe.optimizer
        assert model.backbone.name == "resnet50"
        assert model.backbone.width == 1
        self.recipe = recipe
        self.network = Network(model.head_hidden, model.projection_dim, model.prototypes).train()
        for layer in self.network.modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                layer.eps, layer.momentum = model.batch_norm.epsilon, 1 - model.batch_norm.momentum
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network.to(self.device, memory_format=torch.channels_last)
        self.forward = torch.compile(self.network) if compiled else self.network
        self.half = AUTOCAST.get(recipe.train.precision)
        self.scale = LOSS_SCALE if self.half is torch.float16 else 1.0
        self.lars = Lars(
            list(self.network.parameters()),
            optimizer.momentum,
            optimizer.weight_decay,
            optimizer.trust_coefficient,
        )
        self.temperature, self.epsilon = method.temperature, method.epsilon
        self.iterations = method.sinkhorn_iterations
        self.mean = torch.tensor(recipe.augment.mean).view(3, 1, 1).to(self.device)
        self.std = torch.tensor(recipe.augment.std).view(3, 1, 1).to(self.device)
        # (B, count, size, size, 3) to (count * B, 3, size, size), which keeps channels last in memory.
        self.crops = [
            torch.from_numpy(np.ascontiguousarray(group.swapaxes(0, 1)).reshape(-1, *group.shape[2:])).to(
                self.device
            )
            for group in crops
        ]

    def load(self, weights: dict[str, np.ndarray]) -> None:
        """Takes weights by PyTorch's names and in its layout."""
        state = {name: torch.from_numpy(array.copy()) for name, array in weights.items()}
        missing, unexpected = self.network.load_state_dict(state, strict=False)
        assert not unexpected
        assert all(name.endswith("num_batches_tracked") for name in missing)

    def __call__(self, rate: float) -> Tensor:
        """Does it; returns the loss, which may still be on its way."""
        prototypes = self.network.prototypes.weight
        with torch.no_grad():
            prototypes.copy_(functional.normalize(prototypes, dim=1))
        images = [
            ((group.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std).contiguous(
                memory_format=torch.channels_last
            )
            for group in self.crops
        ]
        batch = self.recipe.train.batch_size
        with torch.autocast(self.device.type, dtype=self.half, enabled=self.half is not None):
            scores = self.forward(images)
        scores = scores.float().view(-1, batch, prototypes.shape[0])
        codes = [sinkhorn(scores[i].detach(), self.epsilon, self.iterations) for i in range(2)]
        log_p = functional.log_softmax(scores / self.temperature, dim=-1)
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
