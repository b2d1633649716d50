"""What the demo tower learns from a real CLIP ViT-B/16: the features to imitate, and its first weights.

The first weights are fitted, block by block, by ridge regression: the student's residual stream stands for the
teacher's on the teacher's main directions, each student block for a run of one or two teacher blocks.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from material import Photo
from torch import Tensor


@torch.inference_mode()
def teacher_features(visual: Any, photos: list[Photo], preprocess: Any, cache: Path) -> Tensor:
    """`[photos, 512]` features of whole photographs, computed once (in bfloat16) and kept in `cache`."""
    if cache.exists():
        return torch.load(cache, weights_only=True)
    visual = copy.deepcopy(visual).bfloat16()
    features = []
    for start in range(0, len(photos), 32):
        batch = torch.stack([preprocess(photo.image()) for photo in photos[start : start + 32]])
        features.append(visual(batch.bfloat16()).float())
    torch.save(torch.cat(features), cache)
    return torch.cat(features)


def principal_targets(features: Tensor, width: int) -> Tensor:
    """Unit rows: the features less their mean, on their first `width` principal directions."""
    centred = F.normalize(features, dim=1)
    centred = centred - centred.mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    return F.normalize(centred @ directions[:width].T, dim=1)


def _ridge(x: Tensor, y: Tensor, strength: float = 1e-3) -> tuple[Tensor, Tensor]:
    """(weight, bias) of the linear map from rows of x to rows of y with the least squared error."""
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    gram = x.T @ x
    gram.diagonal().add_(strength * gram.diagonal().mean())
    weight = torch.linalg.solve(gram, x.T @ y).T.contiguous()
    return weight, y_mean - weight @ x_mean


def _heads(block: Any, h: Tensor) -> Tensor:
    """q, k, v of a block for its normalised input: `[3, batch, heads, tokens, head width]`."""
    qkv = F.linear(h, block.attn.in_proj_weight, block.attn.in_proj_bias)
    return qkv.unflatten(-1, (3, block.attn.num_heads, -1)).permute(2, 0, 3, 1, 4)


def _attend(qkv: Tensor) -> Tensor:
    """The heads' outputs side by side: `[batch, tokens, heads · head width]`."""
    q, k, v = qkv
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


@torch.inference_mode()
def graft(student: Any, teacher: Any, small: Tensor, large: Tensor, targets: Tensor) -> list[float]:
    """Fit the student image tower's weights to the teacher's activations on some photographs.

    `small` and `large` are the same photographs in the student's and the teacher's resolution (with as many
    patches), `targets` the embeddings to end at. Returns, for every student block, the share of the teacher's
    stream (on the kept directions) that its output explains.
    """
    depth, width = len(student.transformer.resblocks), student.conv1.out_channels
    teacher = copy.deepcopy(teacher).bfloat16()
    blocks = list(teacher.transformer.resblocks)
    ends = [round((i + 1) * len(blocks) / depth) for i in range(depth)]

    # One pass of the teacher: its stream before every block, halfway through it, and at the end.
    x = teacher._embeds(large.bfloat16())
    inputs, middles, attended = [], [], []
    for block in blocks:
        inputs.append(x)
        o = _attend(_heads(block, block.ln_1(x)))
        attended.append(o.float().square().mean((0, 1)).unflatten(0, (block.attn.num_heads, -1)))
        x = x + block.attn.out_proj(o)
        middles.append(x)
        x = x + block.mlp(block.ln_2(x))
    inputs.append(x)

    # The stream's main directions, each token scaled as LayerNorm scales it, in a basis orthogonal to (1, …, 1),
    # so that the student's LayerNorm, which subtracts the mean over its channels, takes nothing away.
    covariance = torch.zeros(x.shape[-1], x.shape[-1])
    for stream_at in inputs + middles:
        unit = F.layer_norm(stream_at[:, ::8].float(), x.shape[-1:]).flatten(0, 1)
        covariance += unit.T @ unit / len(unit)
    directions = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, : width - 1]
    basis = torch.linalg.qr(torch.cat([torch.ones(width, 1), torch.eye(width)[:, 1:]], 1)).Q[:, 1:]
    project = directions @ basis.T

    def stream(state: Tensor) -> Tensor:
        state = state.float()
        return (state - state.mean(-1, keepdim=True)) @ project

    def sample(state: Tensor) -> Tensor:  # CLS and a third of the patches, shifted from photograph to photograph
        return state[:, rows].flatten(0, 1)

    rows = torch.cat([torch.zeros(1, dtype=torch.long), torch.arange(1, x.shape[1], 3)])

    # Patches, positions and CLS.
    target = stream(inputs[0])
    size = student.conv1.kernel_size[0]
    patches = F.unfold(small, size, stride=size).transpose(1, 2)
    weight, _ = _ridge((patches - patches.mean(0)).flatten(0, 1), (target[:, 1:] - target[:, 1:].mean(0)).flatten(0, 1))
    student.conv1.weight.copy_(weight.view_as(student.conv1.weight))
    student.class_embedding.zero_()
    student.positional_embedding[0] = target[:, 0].mean(0)
    student.positional_embedding[1:] = target[:, 1:].mean(0) - patches.mean(0) @ weight.T
    student.ln_pre.weight.fill_(float(target.norm(dim=-1).mean()) / width**0.5)
    y = student._embeds(small)

    explained = []
    for i, block in enumerate(student.transformer.resblocks):
        first, last = ends[i - 1] if i else 0, ends[i] - 1
        source, heads = blocks[first], block.attn.num_heads
        # Attention: the teacher's heads whose outputs move the stream most.
        x = inputs[first]
        qkv = _heads(source, source.ln_1(x))
        moves = source.attn.out_proj.weight.float().square().sum(0).view_as(attended[first]) * attended[first]
        best = moves.sum(1).topk(heads).indices.sort().values
        wanted = qkv[:, :, best].permute(1, 3, 0, 2, 4).flatten(2).float()
        weight, bias = _ridge(sample(block.ln_1(y)), sample(wanted))
        block.attn.in_proj_weight.copy_(weight)
        block.attn.in_proj_bias.copy_(bias)
        o = _attend(_heads(block, block.ln_1(y)))
        weight, bias = _ridge(sample(o), sample(stream(middles[first]) - y), 1e-2)
        block.attn.out_proj.weight.copy_(weight)
        block.attn.out_proj.bias.copy_(bias)
        y = y + block.attn.out_proj(o)
        # MLP: the neurons, of one or two teacher blocks, whose outputs move the stream most.
        before, strength = [], []
        for j in range(first, last + 1):
            pre = blocks[j].mlp.c_fc(blocks[j].ln_2(sample(middles[j]))).float()
            spread = F.gelu(pre).var(0)
            before.append(pre)
            strength.append(spread * blocks[j].mlp.c_proj.weight.float().square().sum(0))
        neurons = torch.cat(strength).topk(block.mlp.c_fc.out_features).indices
        weight, bias = _ridge(sample(block.ln_2(y)), torch.cat(before, 1)[:, neurons])
        block.mlp.c_fc.weight.copy_(weight)
        block.mlp.c_fc.bias.copy_(bias)
        wanted = stream(inputs[last + 1])
        hidden = F.gelu(block.mlp.c_fc(sample(block.ln_2(y))))
        weight, bias = _ridge(hidden, sample(wanted - y), 1e-2)
        block.mlp.c_proj.weight.copy_(weight)
        block.mlp.c_proj.bias.copy_(bias)
        y = y + block.mlp(block.ln_2(y))
        error = sample(wanted - y).square().sum() / sample(wanted - wanted.mean((0, 1))).square().sum()
        explained.append(1 - float(error))

    weight, _ = _ridge(student.ln_post(y[:, 0]), targets, 1e-1)
    student.proj.copy_(weight.T)
    return explained
