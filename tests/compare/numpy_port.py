"""Host (d): text transformer and VAE decoder in numpy alone, which writes a trace. No torch.

w: parameter -> array, under our names. A bug is an edit of this source.
"""

import numpy as np
from safetensors.numpy import save_file


class Tape:
    """Keeps what each part was given and returned, in running order, under this port's names."""

    def __init__(self):
        self.tensors = {}

    def note(self, name, inputs, output):
        number = len({key.split("/")[0] for key in self.tensors})
        for i, one in enumerate(inputs):
            self.tensors[f"{number:05}/{name}/in{i}"] = np.ascontiguousarray(one)
        self.tensors[f"{number:05}/{name}/out0"] = np.ascontiguousarray(output)
        return output

    def save(self, path, inputs):
        named = {f"inputs/{name}": one for name, one in inputs.items()}
        save_file({**self.tensors, **named}, path, {"trace": "minisd-trace 1"})


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def linear(w, name, x):
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)


def layer_norm(w, name, x, eps=1e-5):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def text(w, tokens, heads, layers, tape):
    x = w["token_embedding.weight"][tokens] + w["position_embedding"][: tokens.shape[1]]
    for i in range(layers):
        here, name = f"layers.{i}", f"text/{i}"
        y = tape.note(f"{name}/ln1", [x], layer_norm(w, f"{here}.norm1", x))
        x = x + tape.note(f"{name}/attention", [y], causal(w, f"{here}.attn", y, heads))
        y = tape.note(f"{name}/ln2", [x], layer_norm(w, f"{here}.norm2", x))
        hidden = tape.note(f"{name}/fc", [y], linear(w, f"{here}.widen", y))
        hidden = hidden / (1 + np.exp(-1.702 * hidden))
        x = x + tape.note(f"{name}/proj", [hidden], linear(w, f"{here}.narrow", hidden))
    return tape.note("text/last", [x], layer_norm(w, "norm_out", x))


def causal(w, name, x, heads):
    b, n, c = x.shape
    q, k, v = (
        linear(w, f"{name}.to_{one}", x).reshape(b, n, heads, c // heads).transpose(0, 2, 1, 3)
        for one in "qkv"
    )
    scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(np.float32(c // heads))
    scores = scores + np.triu(np.full((n, n), -1e9, np.float32), 1)
    mixed = (softmax(scores) @ v).transpose(0, 2, 1, 3).reshape(b, n, c)
    return linear(w, f"{name}.to_out", mixed)


def conv(w, name, x):
    weight, bias = w[f"{name}.weight"], w[f"{name}.bias"]
    size = weight.shape[-1]
    x = np.pad(x, ((0, 0), (0, 0), (size // 2,) * 2, (size // 2,) * 2))
    seen = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))
    return np.einsum("bchwij,ocij->bohw", seen, weight, optimize=True) + bias[:, None, None]


def group_norm(w, name, x, groups, eps=1e-6):
    b, c, h, wide = x.shape
    y = x.reshape(b, groups, -1)
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + eps)
    y = y.reshape(b, c, h, wide)
    return y * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]


def silu(x):
    return x / (1 + np.exp(-x))


def block(w, here, x, groups, tape, name):
    given = x
    y = tape.note(f"{name}/n1", [x], group_norm(w, f"{here}.norm1", x, groups))
    y = tape.note(f"{name}/c1", [silu(y)], conv(w, f"{here}.conv1", silu(y)))
    y = tape.note(f"{name}/n2", [y], group_norm(w, f"{here}.norm2", y, groups))
    y = tape.note(f"{name}/c2", [silu(y)], conv(w, f"{here}.conv2", silu(y)))
    if f"{here}.shortcut.weight" in w:
        x = conv(w, f"{here}.shortcut", x)
    return tape.note(name, [given], x + y)


def spatial(w, here, x, groups, tape, name):
    b, c, h, wide = x.shape
    y = tape.note(f"{name}/n", [x], group_norm(w, f"{here}.norm", x, groups))
    y = y.reshape(b, c, h * wide).transpose(0, 2, 1)
    q, k, v = (linear(w, f"{here}.to_{one}", y) for one in "qkv")
    y = softmax(q @ k.transpose(0, 2, 1) / np.sqrt(np.float32(c))) @ v
    y = linear(w, f"{here}.to_out", y).transpose(0, 2, 1).reshape(b, c, h, wide)
    return tape.note(name, [x], x + y)


def decode(w, z, levels, blocks, groups, tape):
    x = tape.note("vae/post", [z], conv(w, "post_quant", z))
    x = tape.note("vae/in", [x], conv(w, "conv_in", x))
    x = block(w, "mid.res.0", x, groups, tape, "vae/m0")
    x = spatial(w, "mid.attn", x, groups, tape, "vae/m1")
    x = block(w, "mid.res.1", x, groups, tape, "vae/m2")
    for i in range(levels):
        for j in range(blocks):
            x = block(w, f"up.{i}.res.{j}", x, groups, tape, f"vae/u{i}/{j}")
        if i < levels - 1:
            x = x.repeat(2, axis=2).repeat(2, axis=3)
            x = tape.note(f"vae/u{i}/up", [x], conv(w, f"up.{i}.resize.conv", x))
    x = tape.note("vae/n", [x], group_norm(w, "norm_out", x, groups))
    return tape.note("vae/out", [silu(x)], conv(w, "conv_out", silu(x)))
