"""Host (c): a small U-Net of another author's habits: channels last, einsum, one fused q, k, v.

Norms, convolutions and attention are written out. Weights are stored as (kh, kw, in, out) and
(in, out). take() fills it from our U-Net. A bug is an edit of this source.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


def parameter(*shape):
    return nn.Parameter(torch.zeros(*shape), requires_grad=False)


class Dense(nn.Module):
    def __init__(self, inputs, outputs, bias=True):
        super().__init__()
        self.kernel = parameter(inputs, outputs)
        self.offset = parameter(outputs) if bias else None

    def forward(self, x):
        y = torch.einsum("...i,io->...o", x, self.kernel)
        return y if self.offset is None else y + self.offset


class Conv(nn.Module):
    def __init__(self, inputs, outputs, size=3, stride=1):
        super().__init__()
        self.kernel = parameter(size, size, inputs, outputs)
        self.offset = parameter(outputs)
        self.size, self.stride = size, stride

    def forward(self, x):
        edge = self.size // 2
        x = F.pad(x, (0, 0, edge, edge, edge, edge))
        size, stride = self.size, self.stride
        high = (x.shape[1] - size) // stride + 1
        wide = (x.shape[2] - size) // stride + 1
        y = self.offset
        for i in range(size):
            for j in range(size):
                seen = x[:, i : i + stride * high : stride, j : j + stride * wide : stride]
                y = y + torch.einsum("bhwi,io->bhwo", seen, self.kernel[i, j])
        return y


class ChannelNorm(nn.Module):
    """Group norm over b h w c."""

    def __init__(self, channels, groups, eps):
        super().__init__()
        self.gain, self.offset = parameter(channels), parameter(channels)
        self.groups, self.eps = groups, eps

    def forward(self, x):
        b, h, w, c = x.shape
        y = x.reshape(b, h * w, self.groups, c // self.groups)
        mean = y.mean(dim=(1, 3), keepdim=True)
        spread = ((y - mean) ** 2).mean(dim=(1, 3), keepdim=True)
        y = (y - mean) / torch.sqrt(spread + self.eps)
        return y.reshape(b, h, w, c) * self.gain + self.offset


class TokenNorm(nn.Module):
    """Layer norm over the channels."""

    def __init__(self, channels, eps=1e-5):
        super().__init__()
        self.gain, self.offset = parameter(channels), parameter(channels)
        self.eps = eps

    def forward(self, x):
        mean = x.mean(dim=-1, keepdim=True)
        spread = x.var(dim=-1, keepdim=True, unbiased=False)
        return (x - mean) * torch.rsqrt(spread + self.eps) * self.gain + self.offset


def mix(q, k, v, heads):
    b, n, c = q.shape
    q = q.reshape(b, n, heads, c // heads)
    k = k.reshape(b, -1, heads, c // heads)
    v = v.reshape(b, -1, heads, c // heads)
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / math.sqrt(c // heads)
    return torch.einsum("bhnm,bmhd->bnhd", torch.softmax(scores, dim=-1), v).reshape(b, n, c)


class SelfMix(nn.Module):
    def __init__(self, channels, heads):
        super().__init__()
        self.qkv = Dense(channels, 3 * channels, bias=False)
        self.out = Dense(channels, channels)
        self.heads = heads

    def forward(self, x):
        q, k, v = torch.split(self.qkv(x), x.shape[-1], dim=-1)
        return self.out(mix(q, k, v, self.heads))


class CrossMix(nn.Module):
    def __init__(self, channels, words, heads):
        super().__init__()
        self.q = Dense(channels, channels, bias=False)
        self.kv = Dense(words, 2 * channels, bias=False)
        self.out = Dense(channels, channels)
        self.heads = heads

    def forward(self, x, words):
        k, v = torch.split(self.kv(words), x.shape[-1], dim=-1)
        return self.out(mix(self.q(x), k, v, self.heads))


class FeedForward(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.up, self.down = Dense(channels, 8 * channels), Dense(4 * channels, channels)

    def forward(self, x):
        a, b = torch.split(self.up(x), 4 * x.shape[-1], dim=-1)
        return self.down(a * (b * 0.5 * (1 + torch.erf(b / math.sqrt(2)))))


class Reader(nn.Module):
    """The transformer block."""

    def __init__(self, channels, words, heads, groups):
        super().__init__()
        self.before = ChannelNorm(channels, groups, 1e-6)
        self.enter, self.leave = Dense(channels, channels), Dense(channels, channels)
        self.n1, self.n2, self.n3 = (TokenNorm(channels) for _ in range(3))
        self.own, self.text = SelfMix(channels, heads), CrossMix(channels, words, heads)
        self.mlp = FeedForward(channels)

    def forward(self, x, words):
        b, h, w, c = x.shape
        y = self.enter(self.before(x).reshape(b, h * w, c))
        y = y + self.own(self.n1(y))
        y = y + self.text(self.n2(y), words)
        y = y + self.mlp(self.n3(y))
        return x + self.leave(y).reshape(b, h, w, c)


def swish(x):
    return x * torch.sigmoid(x)


class Block(nn.Module):
    """The residual block."""

    def __init__(self, inputs, outputs, time, groups):
        super().__init__()
        self.n1, self.n2 = ChannelNorm(inputs, groups, 1e-5), ChannelNorm(outputs, groups, 1e-5)
        self.c1, self.c2 = Conv(inputs, outputs), Conv(outputs, outputs)
        self.t = Dense(time, outputs)
        self.side = Conv(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x, t):
        y = self.c1(swish(self.n1(x)))
        y = y + self.t(swish(t))[:, None, None, :]
        y = self.c2(swish(self.n2(y)))
        return y + (x if self.side is None else self.side(x))


class Net(nn.Module):
    """x: b c h w, t: b, words: b m c, as ours. Inside, channels are last."""

    def __init__(self, config):
        super().__init__()
        widths, words, groups = config.channels, config.context_dim, config.norm_groups
        self.first_width, time, depth = widths[0], 4 * widths[0], config.res_blocks
        self.t1, self.t2 = Dense(widths[0], time), Dense(time, time)
        self.start = Conv(config.in_channels, widths[0])
        steps, up, skips, c = [], [], [widths[0]], widths[0]

        def reader(width):
            heads = width // config.head_width if config.head_width else config.heads
            return Reader(width, words, heads, groups)

        for i, width in enumerate(widths):
            for _ in range(depth):
                steps.append(Block(c, width, time, groups))
                steps += [reader(width)] if config.attention[i] else []
                c = width
                skips.append(c)
            if i < len(widths) - 1:
                steps.append(Conv(c, c, stride=2))
                skips.append(c)
        self.way_down = nn.ModuleList(steps)
        self.m1, self.m2 = Block(c, c, time, groups), reader(c)
        self.m3 = Block(c, c, time, groups)
        for i, width in reversed(list(enumerate(widths))):
            for _ in range(depth + 1):
                up.append(Block(c + skips.pop(), width, time, groups))
                up += [reader(width)] if config.attention[i] else []
                c = width
            up += [Conv(c, c)] if i else []
        self.way_up = nn.ModuleList(up)
        self.last_norm, self.end = ChannelNorm(c, groups, 1e-5), Conv(c, config.out_channels)

    def forward(self, x, t, words):
        half = self.first_width // 2
        rates = 10000 ** (-torch.arange(half, dtype=torch.float32) / half)
        angles = t.float()[:, None] * rates[None]
        wave = torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)
        t = self.t2(swish(self.t1(wave.to(x.dtype))))
        x = self.start(x.permute(0, 2, 3, 1))
        kept = [x]
        for i, step in enumerate(self.way_down):
            x = call(step, x, t, words)
            if not isinstance(step, Block) or not isinstance(self.after(i), Reader):
                kept.append(x)
        x = self.m3(self.m2(self.m1(x, t), words), t)
        for step in self.way_up:
            if isinstance(step, Block):
                x = torch.cat([x, kept.pop()], dim=-1)
            if isinstance(step, Conv):
                x = x.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
            x = call(step, x, t, words)
        return self.end(swish(self.last_norm(x))).permute(0, 3, 1, 2)

    def after(self, i):
        return self.way_down[i + 1] if i + 1 < len(self.way_down) else None


def call(step, x, t, words):
    if isinstance(step, Block):
        return step(x, t)
    return step(x, words) if isinstance(step, Reader) else step(x)


# ---- our weights, in this port's shapes ----------------------------------------------------------


def take(net, ours):
    """Fill the port from our U-Net."""
    dense(net.t1, ours.time.linear1), dense(net.t2, ours.time.linear2)
    conv(net.start, ours.conv_in), conv(net.end, ours.conv_out)
    norm(net.last_norm, ours.norm_out)
    block(net.m1, ours.mid.res[0]), reader(net.m2, ours.mid.attn), block(net.m3, ours.mid.res[1])
    down = [one for level in ours.down for one in parts(level, level.downsample)]
    up = [one for level in ours.up for one in parts(level, level.upsample and level.upsample.conv)]
    for mine, yours in [*zip(net.way_down, down, strict=True), *zip(net.way_up, up, strict=True)]:
        {"Block": block, "Reader": reader, "Conv": conv}[type(mine).__name__](mine, yours)


def parts(level, resize):
    for i, res in enumerate(level.res):
        yield res
        if level.attn:
            yield level.attn[i]
    if resize is not None:
        yield resize


def dense(mine, yours):
    mine.kernel.copy_(yours.weight.T)
    if mine.offset is not None:
        mine.offset.copy_(yours.bias)


def conv(mine, yours):
    mine.kernel.copy_(yours.weight.permute(2, 3, 1, 0)), mine.offset.copy_(yours.bias)


def norm(mine, yours):
    mine.gain.copy_(yours.weight), mine.offset.copy_(yours.bias)


def block(mine, yours):
    norm(mine.n1, yours.norm1), norm(mine.n2, yours.norm2), dense(mine.t, yours.time)
    conv(mine.c1, yours.conv1), conv(mine.c2, yours.conv2)
    if mine.side is not None:
        conv(mine.side, yours.shortcut)


def reader(mine, yours):
    norm(mine.before, yours.norm), dense(mine.enter, yours.proj_in)
    dense(mine.leave, yours.proj_out), norm(mine.n1, yours.norm_self)
    norm(mine.n2, yours.norm_cross), norm(mine.n3, yours.norm_ff)
    own, text = yours.self_attention, yours.cross
    fused = torch.cat([own.to_q.weight, own.to_k.weight, own.to_v.weight])
    mine.own.qkv.kernel.copy_(fused.T), dense(mine.own.out, own.to_out)
    dense(mine.text.q, text.to_q), dense(mine.text.out, text.to_out)
    mine.text.kv.kernel.copy_(torch.cat([text.to_k.weight, text.to_v.weight]).T)
    dense(mine.mlp.up, yours.ff.widen), dense(mine.mlp.down, yours.ff.narrow)
