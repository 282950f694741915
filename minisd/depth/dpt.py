"""The depth estimator of the official depth models: DPT-hybrid, also called MiDaS 3.0.

A ResNet sees small details, and a vision transformer sees the whole picture at once. A pyramid of
convolutions combines the feature maps of both networks, and enlarges them to the picture's size
(Ranftl et al. 2021, "Vision Transformers for Dense Prediction", figure 1). The ResNet has the
layers of BiT (Kolesnikov et al. 2020).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from minisd.attention import attend
from minisd.checkpoints.cover import without_numbers
from minisd.checkpoints.finite import refuse_damage
from minisd.checkpoints.load import fill
from minisd.checkpoints.read import read_tensors
from minisd.checkpoints.registry import local_path
from minisd.depth.dpt_names import to_ours

SIDE = 384  # px, the size of the pictures in training
MULTIPLE = 32  # px, because the network halves the size five times


@dataclass(frozen=True)
class DepthConfig:
    """Sizes of the estimator. The defaults are DPT-hybrid's."""

    stem: int = 64  # channels of the ResNet's first layer
    stages: tuple[int, ...] = (256, 512, 1024)  # channels of the ResNet's stages
    blocks: tuple[int, ...] = (3, 4, 9)  # number of blocks in each stage
    width: int = 768  # channels of the transformer
    layers: int = 12
    heads: int = 12
    readout_layers: tuple[int, int] = (8, 11)  # the layers whose output the pyramid reads
    features: int = 256  # channels of the pyramid
    grid: int = 24  # places per side in training. Each place has a position vector
    norm_groups: int = 32


DPT_HYBRID = DepthConfig()


# ---- the ResNet -------------------------------------------------------------------------------


def pad_same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Pad x with zeros, so that the output of a convolution has the size ceil(size / stride).

    If the number of zeros is odd, the right side and the bottom get one zero more.
    """
    width_first = x.shape[:1:-1]
    totals = [max((n - 1) // stride * stride + kernel - n, 0) for n in width_first]
    return F.pad(x, [part for total in totals for part in (total // 2, total - total // 2)])


class StandardisedConv(nn.Conv2d):
    """A convolution that first scales its weights to mean 0 and variance 1 (Qiao et al. 2019)."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1):
        super().__init__(c_in, c_out, kernel, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), correction=0, keepdim=True)
        weight = (self.weight - mean) / (variance + 1e-8).sqrt()
        x = pad_same(x, self.kernel_size[0], self.stride[0])
        return F.conv2d(x, weight, stride=self.stride)


class Bottleneck(nn.Module):
    """Three convolutions. The second one has fewer channels. The result is added to the input.

    x: b c_in h w    returns: b c_out h/stride w/stride
    """

    def __init__(self, c_in: int, c_out: int, stride: int, groups: int, first: bool):
        super().__init__()
        narrow = c_out // 4
        self.conv1 = StandardisedConv(c_in, narrow, 1)
        self.norm1 = nn.GroupNorm(groups, narrow)
        self.conv2 = StandardisedConv(narrow, narrow, 3, stride)
        self.norm2 = nn.GroupNorm(groups, narrow)
        self.conv3 = StandardisedConv(narrow, c_out, 1)
        self.norm3 = nn.GroupNorm(groups, c_out)
        self.shortcut = StandardisedConv(c_in, c_out, 1, stride) if first else nn.Identity()
        self.norm_shortcut = nn.GroupNorm(groups, c_out) if first else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x)))
        h = F.relu(self.norm2(self.conv2(h)))
        h = self.norm3(self.conv3(h))
        return F.relu(h + self.norm_shortcut(self.shortcut(x)))


class ResNet(nn.Module):
    """Computes feature maps of the picture. Each map is coarser than the map before it.

    image: b 3 h w    returns: one map per stage, with 1/4, 1/8 and 1/16 of the size
    """

    def __init__(self, config: DepthConfig):
        super().__init__()
        groups = config.norm_groups
        self.stem = StandardisedConv(3, config.stem, 7, stride=2)
        self.norm = nn.GroupNorm(groups, config.stem)
        self.stages = nn.ModuleList()
        widths = pairwise((config.stem, *config.stages))
        for (c, c_out), count in zip(widths, config.blocks, strict=True):
            stride = 2 if self.stages else 1
            first = Bottleneck(c, c_out, stride, groups, first=True)
            rest = [Bottleneck(c_out, c_out, 1, groups, first=False) for _ in range(count - 1)]
            self.stages.append(nn.ModuleList([first, *rest]))

    def forward(self, image: Tensor) -> list[Tensor]:
        x = F.relu(self.norm(self.stem(image)))
        x = F.max_pool2d(pad_same(x, kernel=3, stride=2), 3, stride=2)  # zeros do no harm: x >= 0
        maps = []
        for stage in self.stages:
            assert isinstance(stage, nn.ModuleList)
            for block in stage:
                x = block(x)
            maps.append(x)
        return maps


# ---- the transformer --------------------------------------------------------------------------


class DPTLayer(nn.Module):
    """One transformer layer: attention to all places, then an MLP for each place alone.

    x: b n c    returns: b n c
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)  # as in timm; transformers has 1e-12
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.Linear(width, width)
        self.weights = nn.Identity()  # tap: b heads n n
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.to_qkv(self.norm1(x))
        q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=self.heads)
        answer = attend(q, k, v, tap=self.weights)
        x = x + self.to_out(rearrange(answer, "b heads n d -> b n (heads d)"))
        return x + self.narrow(F.gelu(self.widen(self.norm2(x))))


class Readout(nn.Module):
    """Combines every place with the class token, which describes the whole picture.

    x: b 1+n c, the class token first
    size: h w of the map, with h * w = n
    returns: b c h w
    """

    def __init__(self, width: int):
        super().__init__()
        self.project = nn.Linear(2 * width, width)
        self.conv = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        places = x[:, 1:]
        whole = repeat(x[:, 0], "b c -> b n c", n=places.shape[1])
        both = F.gelu(self.project(torch.cat([places, whole], dim=-1)))
        return self.conv(rearrange(both, "b (h w) c -> b c h w", h=size[0]))


# ---- the pyramid ------------------------------------------------------------------------------


class ResidualUnit(nn.Module):
    """Two convolutions, whose result is added to x.

    x: b c h w    returns: b c h w
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class Fusion(nn.Module):
    """One level of the pyramid: add the finer map to x, then double the size.

    x, finer: b c h w    returns: b c 2h 2w

    The coarsest level has no finer map.
    """

    def __init__(self, channels: int, takes_finer: bool):
        super().__init__()
        self.finer = ResidualUnit(channels) if takes_finer else None
        self.unit = ResidualUnit(channels)
        self.conv_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, finer: Tensor | None = None) -> Tensor:
        if self.finer is not None:
            x = x + self.finer(finer)
        return self.conv_out(double_size(self.unit(x)))


def double_size(x: Tensor) -> Tensor:
    """Double height and width. The pixels in the corners keep their values.

    x: b c h w    returns: b c 2h 2w
    """
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


class DepthEstimator(nn.Module):
    """Estimates how near every point of a picture is.

    image: b 3 h w in [-1, 1], of any size
    returns: b 1 h' w', the inverse of the distance. Large values mean near. The scale and the shift
        of the values are unknown
    """

    def __init__(self, config: DepthConfig = DPT_HYBRID):
        super().__init__()
        width, features = config.width, config.features
        self.config = config
        self.resnet = ResNet(config)
        self.patch = nn.Conv2d(config.stages[-1], width, 1)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embedding = nn.Parameter(torch.zeros(1, 1 + config.grid**2, width))
        self.layers = nn.ModuleList(DPTLayer(width, config.heads) for _ in range(config.layers))
        self.readout = nn.ModuleList(Readout(width) for _ in config.readout_layers)
        self.shrink = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.narrow = nn.ModuleList(
            nn.Conv2d(c, features, 3, padding=1, bias=False)
            for c in (*config.stages[:2], width, width)
        )
        self.fusion = nn.ModuleList(Fusion(features, takes_finer=i < 3) for i in range(4))
        self.head1 = nn.Conv2d(features, features // 2, 3, padding=1)
        self.head2 = nn.Conv2d(features // 2, 32, 3, padding=1)
        self.head3 = nn.Conv2d(32, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        image = image.to(self.class_token)
        return self.estimate(F.interpolate(image, estimator_size(image.shape[2:]), mode="bicubic"))

    def estimate(self, image: Tensor) -> Tensor:
        """Estimate the depth of pictures whose sides are multiples of 32.

        image: b 3 h w    returns: b 1 h w, 0 or more
        """
        maps = self.resnet(image)
        maps = [*maps[:2], *self.look_around(maps[2])]
        one, two, three, four = (conv(x) for conv, x in zip(self.narrow, maps, strict=True))
        x = self.fusion[3](four)
        x = self.fusion[2](x, three)
        x = self.fusion[1](x, two)
        x = self.fusion[0](x, one)
        x = F.relu(self.head2(double_size(self.head1(x))))
        return F.relu(self.head3(x))

    def look_around(self, x: Tensor) -> list[Tensor]:
        """Run the transformer on the coarsest map of the ResNet.

        x: b c h w    returns: two maps, b width h w and b width h/2 w/2
        """
        size = x.shape[2:]
        places = rearrange(self.patch(x), "b c h w -> b (h w) c")
        token = self.class_token.expand(len(x), -1, -1)
        x = torch.cat([token, places], dim=1) + self.positions(size)
        outputs = [x := layer(x) for layer in self.layers]
        pairs = zip(self.readout, self.config.readout_layers, strict=True)
        finer, coarser = (readout(outputs[i], size) for readout, i in pairs)
        return [finer, self.shrink(coarser)]

    def positions(self, size: Sequence[int]) -> Tensor:
        """Stretch the grid of position vectors to another size.

        size: h w
        returns: 1 n c, where n = 1 + h * w. The first of the n vectors belongs to the class token.
        """
        first, others = self.position_embedding[:, :1], self.position_embedding[:, 1:]
        grid = rearrange(others, "1 (h w) c -> 1 c h w", h=self.config.grid)
        stretched = F.interpolate(grid, tuple(size), mode="bilinear")
        return torch.cat([first, rearrange(stretched, "1 c h w -> 1 (h w) c")], dim=1)

    @classmethod
    def load(cls, path: str | Path, config: DepthConfig = DPT_HYBRID) -> "DepthEstimator":
        """Read the estimator from an official depth model, a MiDaS file or transformers' DPT file.

        Raises ValueError if the file holds no estimator of these sizes.
        """
        path = local_path(path)
        with without_numbers():
            network = cls(config)
        state = to_ours(read_tensors(path), network, path.name)
        fill(network, state, "cpu", torch.float32, path.name)
        refuse_damage(network, path.name)
        return network.eval().requires_grad_(False)


def estimator_size(size: Sequence[int]) -> tuple[int, int]:
    """The size to which a picture is scaled for the estimator: h w, both multiples of 32.

    The side that is closer to 384 becomes about 384. The other side is multiplied by the same
    factor, so the aspect ratio stays nearly the same (MiDaS transforms.py, resize_method
    "minimal").
    """
    scale = min((SIDE / length for length in size), key=lambda scale: abs(1 - scale))
    height, width = (max(1, round(scale * length / MULTIPLE)) * MULTIPLE for length in size)
    return height, width
