"""The paper's distillation losses once more: slow, plain, one sample, frame, scale and pass at a time.

Written from the text of the method, sharing no code with `csd_plugin.distill`: only the values of the weights are
taken from there (by `weights_of`). Maps and states of one sample are (channels, H, W); a state is a pair (h, c).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def weights_of(objective):
    """Every cell as one convolution from (input, hidden) to the gates i, f, o, g; and the 1x1 that makes a hint."""

    def cell(module):
        return torch.cat([module.weight_input, module.weight_hidden], dim=1), module.bias

    weights = {}
    if objective.cells.connector is not None:
        weights["L2G"] = cell(objective.cells.connector.local_to_global)
        weights["G2L"] = cell(objective.cells.connector.global_to_local)
    if objective.cells.aggregator is not None:
        weights["time"] = cell(objective.cells.aggregator.cell)
    if objective.cells.hint is not None:
        weights["hint"] = objective.cells.hint.weight
    return weights


def conv_lstm(weights, x, state):
    weight, bias = weights
    h, c = state
    gates = F.conv2d(torch.cat([x, h])[None], weight, bias, padding=1)[0]
    k = h.shape[0]
    i, f, o, g = gates[:k], gates[k : 2 * k], gates[2 * k : 3 * k], gates[3 * k :]
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def zero_state(hidden, x):
    zeros = torch.zeros(hidden, *x.shape[1:])
    return zeros, zeros


def pool(x):
    h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    x = x[:, :h, :w]
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def resize(x, size):
    rows = [i * x.shape[1] // size[0] for i in range(size[0])]
    columns = [j * x.shape[2] // size[1] for j in range(size[1])]
    return x[:, rows][:, :, columns]


def to_map(feature, aggregation):
    """(C, H, W) -> (1, H, W), before any standardising."""
    total = sum(feature[c] for c in range(feature.shape[0]))
    return ((total if aggregation.startswith("sum") else total / feature.shape[0]) ** 2)[None]


def maps_of(student, teacher, aggregation):
    f_s, f_t = to_map(student, aggregation), to_map(teacher, aggregation)
    if aggregation.endswith("standardized"):
        mean = f_t.sum() / f_t.numel()
        deviation = (((f_t - mean) ** 2).sum() / f_t.numel()).sqrt()
        f_s, f_t = (f_s - mean) / (deviation + 1e-6), (f_t - mean) / (deviation + 1e-6)
    if aggregation.endswith("normalized"):
        (f_s, spread_s), (f_t, spread_t) = normal(f_s), normal(f_t)
        share = min(1.0, (spread_s / spread_t).sqrt().item())  # of the gradient
        f_s = share * f_s + (1 - share) * f_s.detach()
    return f_s, f_t


def normal(f):
    mean = f.sum() / f.numel()
    deviation = (((f - mean) ** 2).sum() / f.numel()).sqrt() + 1e-5 * abs(mean.item())
    return (f - mean) / deviation, deviation


def spatial(weights, scales, start, hidden, cross_scale):
    """{(pass, p): C} of one frame of one network."""
    statuses = {}
    last = None
    for p, f in enumerate(scales):
        state = start if cross_scale else zero_state(hidden, f)
        if cross_scale and last:
            state = pool(last[0]), pool(last[1])
        last = conv_lstm(weights["L2G"], f, state)
        statuses["L2G", p] = last[1]
    for p in reversed(range(len(scales))):
        f = scales[p]
        if not cross_scale:
            state = zero_state(hidden, f)
        elif p == len(scales) - 1:
            state = last
        else:
            state = (resize(last[0], f.shape[1:]), resize(last[1], f.shape[1:]))
        last = conv_lstm(weights["G2L"], f, state)
        statuses["G2L", p] = last[1]
    return statuses


def temporal(weights, scales, hint, state, switches, taken, losses):
    """Adds one frame's losses; the states after it."""
    f = {x: scales[x][0] for x in "ST"}
    new = {x: conv_lstm(weights["time"], torch.cat([f[x], hint[x]]), state[x]) for x in "ST"}
    taught = tuple(taken(part) for part in state["T"])
    mixed = conv_lstm(weights["time"], torch.cat([f["S"], taken(hint["T"])]), taught)
    if "ITA" in switches:
        losses["temporal"] = losses["temporal"] + (new["T"][1].detach() - new["S"][1]).abs().mean()
    if "CTA" in switches:
        losses["temporal"] = losses["temporal"] + (new["T"][1].detach() - mixed[1]).abs().mean()
    return {"S": new["S"], "T": tuple(taken(part) for part in new["T"])}


def csd_losses(
    weights, student, teacher, *, aggregation, num_scale, hidden, switches, temporal_first=False, detached=True
):
    """{'spatial': ..., 'temporal': ...} of features {input scale: (B, L, C, H, W)}; one input scale: pooled maps.

    switches: a set of MS, CSC, ITA, CTA, STA. temporal_first: the order of the released code, which does not detach
    what the collaborative stream takes from the teacher either.
    """
    taken = (lambda x: x.detach()) if detached else (lambda x: x)
    batch, frames = student[1].shape[:2]
    has_spatial, has_temporal = "MS" in switches, bool(switches & {"ITA", "CTA"})
    losses = {"spatial": torch.zeros(()), "temporal": torch.zeros(())}
    for b in range(batch):
        state = {}
        for t in range(frames):
            scales = {"S": [], "T": []}
            for scale in student:
                f_s, f_t = maps_of(student[scale][b, t], teacher[scale][b, t].detach(), aggregation)
                scales["S"].append(f_s)
                scales["T"].append(f_t)
            while has_spatial and len(scales["S"]) < num_scale:
                for x in "ST":
                    scales[x].append(pool(scales[x][-1]))
            zero = zero_state(hidden, scales["S"][0])
            if t == 0:
                state = {"S": zero, "T": zero}
                hint = {x: torch.zeros_like(scales["S"][0]) for x in "ST"}
            if temporal_first and has_temporal:
                state = temporal(weights, scales, hint, state, switches, taken, losses)
            if has_spatial:
                start = state if "STA" in switches else {"S": zero, "T": zero}
                c = {x: spatial(weights, scales[x], start[x], hidden, "CSC" in switches) for x in "ST"}
                for key in c["S"]:
                    losses["spatial"] = losses["spatial"] + (c["T"][key].detach() - c["S"][key]).abs().mean()
                if "STA" in switches:
                    hint = {x: F.conv2d(c[x]["G2L", 0][None], weights["hint"])[0] for x in "ST"}
            if not temporal_first and has_temporal:
                state = temporal(weights, scales, hint, state, switches, taken, losses)
    on = {"spatial": has_spatial, "temporal": has_temporal}
    return {name: loss / (batch * frames) for name, loss in losses.items() if on[name]}
