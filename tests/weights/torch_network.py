"""The forward pass in PyTorch, for an environment that has it."""

import numpy as np


def swav_outputs(torch, state, images):
    """Features, projections and scores, float64, of normalised images (n, 3, h, w)."""
    functional = torch.nn.functional
    state = {name: torch.from_numpy(np.asarray(value, np.float64)) for name, value in state.items()}

    def norm(x, name):
        weight, bias, mean, var = (
            state[f"{name}.{key}"] for key in ("weight", "bias", "running_mean", "running_var")
        )
        return functional.batch_norm(x, mean, var, weight, bias, training=False, eps=1e-5)

    def conv(x, name, stride=1, padding=0):
        return functional.conv2d(x, state[f"{name}.weight"], stride=stride, padding=padding)

    x = functional.relu(norm(conv(torch.from_numpy(images.astype(np.float64)), "conv1", 2, 3), "bn1"))
    x = functional.max_pool2d(x, 3, stride=2, padding=1)
    for stage, depth in enumerate((3, 4, 6, 3), start=1):
        for block in range(depth):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = functional.relu(norm(conv(x, f"{name}.conv1"), f"{name}.bn1"))
            y = functional.relu(norm(conv(y, f"{name}.conv2", stride, 1), f"{name}.bn2"))
            y = norm(conv(y, f"{name}.conv3"), f"{name}.bn3")
            if f"{name}.downsample.0.weight" in state:
                x = norm(conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
            x = functional.relu(x + y)
    features = x.mean((2, 3))

    def dense(x, name):
        return functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    hidden = functional.relu(norm(dense(features, "projection_head.0"), "projection_head.1"))
    projections = functional.normalize(dense(hidden, "projection_head.3"), dim=1)
    scores = functional.linear(projections, state["prototypes.weight"])
    return features.numpy(), projections.numpy(), scores.numpy()
