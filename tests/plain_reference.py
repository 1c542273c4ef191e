"""The plain U-Net and the chain of two, written out once more as functions over a table of tensors, in any precision."""

import math

import torch
from torch.nn import functional as F


def embedded(t, width):
    half = width // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float32) * (-math.log(10000) / (half - 1)))
    return torch.cat([torch.sin(t[:, None] * rates), torch.cos(t[:, None] * rates)], 1)


def body(w, x, t, training=True, kind=None, width=8):
    """w: {name: tensor} of one U-Net. kind: rows that join the time."""

    def norm(h, name):
        mean, variance = w[f"{name}.running_mean"], w[f"{name}.running_var"]
        if training:
            mean, variance = h.mean((0, 2, 3)), h.var((0, 2, 3), unbiased=False)
        h = (h - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
        return h * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]

    def layer(h, time, name, resize):
        h = norm(F.conv2d(h, w[f"{name}.conv1.weight"], w[f"{name}.conv1.bias"], padding=1).clamp(min=0), f"{name}.norm1")
        added = (time @ w[f"{name}.time.weight"].T + w[f"{name}.time.bias"]).clamp(min=0)
        h = h + added[:, :, None, None]
        h = norm(F.conv2d(h, w[f"{name}.conv2.weight"], w[f"{name}.conv2.bias"], padding=1).clamp(min=0), f"{name}.norm2")
        return resize(h, w[f"{name}.resize.weight"], w[f"{name}.resize.bias"], stride=2, padding=1)

    levels = len({name.split(".")[1] for name in w if name.startswith("down.")})
    time = (embedded(t, width).to(x) @ w["time.weight"].T + w["time.bias"]).clamp(min=0)
    time = time if kind is None else time + kind
    h, skips = F.conv2d(x, w["conv_in.weight"], w["conv_in.bias"], padding=1), []
    for i in range(levels):
        h = layer(h, time, f"down.{i}", F.conv2d)
        skips.append(h)
    for i in range(levels):
        h = layer(torch.cat([h, skips[-1 - i]], 1), time, f"up.{i}", F.conv_transpose2d)
    return F.conv2d(h, w["conv_out.weight"], w["conv_out.bias"])


def part(w, prefix):
    return {name.removeprefix(prefix): tensor for name, tensor in w.items() if name.startswith(prefix)}


def chain(w, x, t, leaky, training=True):
    """(prediction, middle piece); w: of the two U-Nets `first` and `second`."""
    middle = body(part(w, "first."), x, t, training)
    return body(part(w, "second."), torch.cat([middle, x], 1) if leaky else middle, t, training), middle
