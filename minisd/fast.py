"""The same networks, faster: exact tricks for drawing, outside the plain definitions.

A fast copy shares all weights and hooks with its network. Its modules compute the same numbers as
the plain modules, up to rounding. docs/speed.md shows what each trick gains.

While somebody traces the network, the network itself runs. So the trace shows the plain code. If a
LoRA's hook is on a layer whose work a trick changes, the plain code of this module runs. It also
runs if a gradient is needed, if somebody replaced the module's forward(), and if the module's class
is not one of minisd's.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from itertools import chain
from types import MethodType
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minisd import attention, strips, unet, vae
from minisd.attention import attend, is_watched
from minisd.process.memory import return_freed_memory

LARGE_LATENT = 2**13  # numbers; the latent of a picture of 512 x 512 has 2**14
PLACES_AT_ONCE = 2**14  # of latents in the U-Net; 4 latents of 64 x 64 have so many

Forward = Callable[..., Tensor]
Module = TypeVar("Module", bound=nn.Module)


def faster(network: nn.Module) -> Callable[..., Any]:
    """A function that computes what network(…) computes, for one picture.

    It uses a fast copy. While somebody watches a tensor inside the network, for example with
    trace(), it uses the network itself.
    """
    twin = fast_copy(network)
    return lambda *inputs: (network if is_traced(network) else twin)(*inputs)


def is_traced(network: nn.Module) -> bool:
    """Whether a hook is on a module of the network. The hooks of adapters do not count."""
    return not all(map(is_adapter, all_hooks(network)))


def all_hooks(network: nn.Module) -> Iterator[Callable]:
    """All hooks of the network and of the modules inside it."""
    for module in network.modules():  # tuple(): another thread may add a hook meanwhile
        yield from tuple(module._forward_pre_hooks.values())
        yield from tuple(module._forward_hooks.values())


def is_adapter(hook: Any) -> bool:
    """Whether an adapter of minisd made this hook. Such a hook computes, and stores nothing."""
    made_by = getattr(hook, "func", hook).__module__
    return made_by.startswith(("minisd.adapters.", "minisd.training."))


def fast_copy(network: Module) -> Module:
    """Copy a network for drawing one picture. Only the modules are copied, not the weights.

    A hook that is added to the network later also works in the copy. The copy remembers keys and
    values of the last prompt. So make a copy for each picture, and the memory is free afterwards.
    """
    known = type(network).__module__.startswith(("minisd.", "torch.nn."))
    if "forward" in vars(network) or not known or not network._modules:
        return network
    twin = copy.copy(network)  # shares the dictionaries of weights and of hooks
    twin._modules = {name: child and fast_copy(child) for name, child in network._modules.items()}
    if trick := TRICKS.get(type(network).forward):
        twin.forward = MethodType(with_plain_code(trick), twin)
    return twin


def with_plain_code(trick: Forward) -> Forward:
    """Make a forward() that uses the trick, or the plain code if a trick would change anything.

    A trick works only if no hook is on the modules inside, and if no gradient is needed.
    """

    @wraps(trick)  # a ControlNet's hook reads the names of the arguments
    def forward(module: nn.Module, x: Tensor, *more: Any, **named: Any) -> Tensor:
        inputs = (each for each in (x, *more, *named.values()) if isinstance(each, Tensor))
        if needs_gradient(inputs) or any(map(is_watched, module.children())):
            return type(module).forward(module, x, *more, **named)
        return trick(module, x, *more, **named)

    return forward


def needs_gradient(inputs: Iterable[Tensor]) -> bool:
    """Whether a gradient with respect to one of the inputs has to be computed."""
    return torch.is_grad_enabled() and any(each.requires_grad for each in inputs)


# ---- matrices --------------------------------------------------------------------------------


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute F.linear(x, weight, bias) with oneDNN, the library that torch uses for convolutions.

    In float32, torch uses MKL for matrices. MKL is slower than oneDNN, at least on AMD processors.

    x: b n c_in    weight: c_out c_in    bias: c_out    returns: b n c_out
    """
    if x.dtype is torch.float32 and x.device.type == "cpu" and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def geglu(self: attention.GEGLU, x: Tensor) -> Tensor:
    """Compute both halves alone, each in one piece of memory, and change them in place."""
    weights, biases = self.widen.weight.chunk(2), self.widen.bias.chunk(2)
    gate = torch.ops.aten.gelu_(linear(x, weights[1], biases[1]))
    value = linear(x, weights[0], biases[0])
    return linear(gate.mul_(value), self.narrow.weight, self.narrow.bias)


def attention_layer(self: attention.Attention, x: Tensor, context: Tensor) -> Tensor:
    """Compute the keys and values of the prompt once per picture, not once per step."""
    q = linear(x, self.to_q.weight, None)
    k, v = keys_and_values(self, context) if context is x else remembered_keys(self, context)
    q, k, v = (rearrange(t, "b n (heads d) -> b heads n d", heads=self.heads) for t in (q, k, v))
    answer = rearrange(attend(q, k, v, tap=self.weights), "b heads n d -> b n (heads d)")
    return linear(answer, self.to_out.weight, self.to_out.bias)


def keys_and_values(self: attention.Attention, context: Tensor) -> tuple[Tensor, Tensor]:
    return linear(context, self.to_k.weight, None), linear(context, self.to_v.weight, None)


def remembered_keys(self: attention.Attention, context: Tensor) -> tuple[Tensor, Tensor]:
    """The keys and values of the last step, if the context and the weights are the same as then."""
    state = versions(self.to_k.weight, self.to_v.weight)
    last = vars(self).get("last")
    if last is None or last[0] != state or not torch.equal(last[1], context):
        last = (state, context.clone(), *keys_and_values(self, context))
        vars(self)["last"] = last
    return last[2], last[3]


def versions(*weights: Tensor) -> list[tuple[int, int]]:
    """Numbers that differ after somebody has changed or replaced one of these weights."""
    return [(weight.data_ptr(), weight._version) for weight in weights]


# ---- convolutions ----------------------------------------------------------------------------


def unet_res_block(self: unet.ResBlock, x: Tensor, time: Tensor) -> Tensor:
    """Change each new feature map in place. New memory costs more time than these sums."""
    h = self.conv1(F.silu(self.norm1(x), inplace=True))
    h.add_(rearrange(self.time(F.silu(time)), "b c -> b c 1 1"))
    h = self.conv2(F.silu(self.norm2(h), inplace=True))
    return h.add_(self.shortcut(x))


def vae_res_block(self: vae.ResBlock, x: Tensor) -> Tensor:
    """Change each new feature map in place, and compute a large feature map in strips."""
    h = norm_silu_conv(self.norm1, self.conv1, x)
    h = norm_silu_conv(self.norm2, self.conv2, h, out=h)
    return strips.add_shortcut(h, self.shortcut, x)


def whole_unet(
    self: unet.UNet, x: Tensor, t: Tensor, context: Tensor, control: list[Tensor] | None = None
) -> Tensor:
    """Run a few samples at a time on the CPU. A larger batch takes more memory, and is not faster.

    x: b c h w    t: b    context: b m c_context    returns: b out_channels h w
    """
    few = max(1, PLACES_AT_ONCE // (x.shape[2] * x.shape[3]))
    if x.device.type != "cpu" or len(x) <= few:
        return type(self).forward(self, x, t, context, control)
    outputs = []
    for part in (slice(start, start + few) for start in range(0, len(x), few)):
        extra = control and [each[part] for each in control]
        outputs.append(type(self).forward(self, x[part], t[part], context[part], extra))
    return torch.cat(outputs)


def vae_encoder(self: vae.Encoder, image: Tensor) -> Tensor:
    """Encode one picture after another."""
    return torch.cat([type(self).forward(self, one) for one in image.split(1)])


def vae_decoder(self: vae.Decoder, z: Tensor) -> Tensor:
    """Decode one picture after another, and compute the last layers in strips."""
    if len(z) > 1:
        return torch.cat([vae_decoder(self, one) for one in z.split(1)])
    if z.numel() > LARGE_LATENT:
        return_freed_memory()  # the U-Net leaves 0.3 GB
    x = self.mid(self.conv_in(self.post_quant(z)))
    for layer in chain.from_iterable(map(layers_of, self.up)):
        x = layer(x)
    return norm_silu_conv(self.norm_out, self.conv_out, x)


def layers_of(up: nn.Module) -> list[nn.Module]:
    """The layers of a resolution. They run one by one, so that no caller keeps an old map."""
    if type(up) is not vae.Resolution or is_watched(up):
        return [up]
    return [*up.res] if up.resize is None else [*up.res, up.resize]


def norm_silu_conv(
    norm: nn.GroupNorm, conv: nn.Conv2d, x: Tensor, out: Tensor | None = None
) -> Tensor:
    """Compute conv(silu(norm(x))).

    out: a tensor that a large result may replace. It may be x itself. None: a new tensor
    """
    if x.numel() <= strips.LARGE:
        return conv(F.silu(norm(x), inplace=True))
    out = x.new_empty(len(x), conv.out_channels, *x.shape[2:]) if out is None else out
    return strips.convolve_in_strips(norm, conv, x, out)


def unet_upsample(self: unet.Upsample, x: Tensor, skips: list[Tensor]) -> Tensor:
    doubled = (2 * x.shape[2], 2 * x.shape[3])
    if skips and skips[-1].shape[2:] != doubled:
        return type(self).forward(self, x, skips)
    return upsample_then_convolve(self, x)


def vae_upsample(self: vae.Upsample, x: Tensor) -> Tensor:
    return upsample_then_convolve(self, x)


def upsample_then_convolve(self: unet.Upsample | vae.Upsample, x: Tensor) -> Tensor:
    """Double height and width and convolve, one strip of rows after another.

    x: b c h w    returns: b c 2h 2w
    """
    b, c, h, w = x.shape
    large = x.new_empty(b, c, 2 * h, 2 * w)
    for top, bottom in strips.strips(h, large.numel()):
        rows = strips.with_neighbours(x, top, bottom)
        place = large[:, :, 2 * top : 2 * bottom]
        if x.dtype is torch.float32:
            write_with_small_kernels(self, rows, place)
        else:  # sums of rounded weights would be rounded again
            doubled = F.interpolate(rows, scale_factor=2.0, mode="nearest")[:, :, 1:-1]
            place.copy_(F.conv2d(doubled, self.conv.weight, self.conv.bias, padding=(0, 1)))
    return large


def write_with_small_kernels(self: unet.Upsample | vae.Upsample, x: Tensor, place: Tensor) -> None:
    """Repeat each pixel 2 x 2 times, then convolve, but compute every product only once.

    Among the 3 x 3 pixels that the convolution reads, many are copies of the same pixel of x. There
    are at most 2 x 2 different pixels. So four small kernels of 2 x 2 numbers give the four pixels
    that replace one pixel of x. They need 16 products instead of 36.

    x: b c rows+2 w, with a row above and a row below    place: where the result goes, b c 2*rows 2w
    """
    rows, w = x.shape[2] - 2, x.shape[3]
    small = F.conv2d(x, small_kernels(self), padding=(0, 1))  # b 4*c rows+1 w+1
    for (row, column), corner in zip(CORNERS, small.chunk(4, dim=1), strict=True):
        place[:, :, row::2, column::2] = corner[:, :, row : row + rows, column : column + w]
    place.add_(rearrange(self.conv.get_parameter("bias"), "c -> c 1 1"))


CORNERS = [(0, 0), (0, 1), (1, 0), (1, 1)]  # row and column of a pixel in its square of 2 x 2


def small_kernels(self: unet.Upsample | vae.Upsample) -> Tensor:
    """The four kernels, one after another: 4*c c 2 2. They are computed once per picture."""
    state = versions(self.conv.weight)
    last = vars(self).get("last")
    if last is None or last[0] != state:
        corners = [merge(merge(self.conv.weight, 2, row), 3, column) for row, column in CORNERS]
        last = vars(self)["last"] = (state, torch.cat(corners))
    return last[1]


def merge(kernel: Tensor, axis: int, place: int) -> Tensor:
    """Add the weights that read the same pixel of x.

    kernel: size 3 on this axis    returns: size 2
    place: 0 for the first pixel of a square, whose last two weights read the same pixel. 1 for the
        second pixel, whose first two weights do
    """
    first, middle, last = kernel.split(1, dim=axis)
    pair = [first, middle + last] if place == 0 else [first + middle, last]
    return torch.cat(pair, dim=axis)


TRICKS: dict[Callable, Forward] = {  # plain forward() -> trick
    attention.GEGLU.forward: geglu,
    attention.Attention.forward: attention_layer,
    unet.UNet.forward: whole_unet,
    unet.ResBlock.forward: unet_res_block,
    unet.Upsample.forward: unet_upsample,
    vae.Encoder.forward: vae_encoder,
    vae.Decoder.forward: vae_decoder,
    vae.ResBlock.forward: vae_res_block,
    vae.Upsample.forward: vae_upsample,
}
