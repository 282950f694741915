"""The references that do not import as they are: they ask for packages that we never reach.

Each is imported beside empty stand-ins, which are taken away again. A reference that fails to
import fails the tests that need it.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor

__all__ = ["clip", "k_diffusion", "open_clip", "transformers"]


class StandIn(ModuleType):
    """An empty module that anything can be imported from, and nothing can be done with."""

    def __getattr__(self, name: str) -> "StandIn":
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn(name)

    def __mro_entries__(self, bases: tuple) -> tuple:
        return ()  # a class may be derived from it: it then has no base


@contextmanager
def stand_ins(*names: str) -> Iterator[None]:
    """Let `import name` give an empty module, unless the real one is imported already."""
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update({name: StandIn(name) for name in absent})
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


with stand_ins(
    "clip",
    "cleanfid",
    "cleanfid.inception_torchscript",
    "dctorch",
    "jsonmerge",
    "skimage",
    "torchdiffeq",
    "torchsde",
    "torchvision",
    "torchvision.transforms",
):
    import k_diffusion.external
    import k_diffusion.sampling

# transformers looks for torchvision by itself, and must not find the stand-in.
import transformers  # noqa: E402

with stand_ins(
    "pkg_resources",
    "torchvision",
    "torchvision.ops",
    "torchvision.ops.misc",
    "torchvision.transforms",
    "torchvision.transforms.functional",
):
    import packaging.version

    sys.modules["pkg_resources"].packaging = packaging  # clip asks it for torch's version
    import clip
    import open_clip


def compvis_states(
    sampler: type, alpha_bar: Tensor, network, noise: Tensor, steps: int, **settings
) -> list[Tensor]:
    """Every state but the first of CompVis' own loop, DDIMSampler or PLMSSampler, on any network.

    alpha_bar: 1000, float64    network(x, t, context) -> eps
    """
    before = torch.cat([torch.ones(1, dtype=alpha_bar.dtype), alpha_bar[:-1]])
    model = SimpleNamespace(
        num_timesteps=len(alpha_bar),
        betas=1 - alpha_bar / before,
        alphas_cumprod=alpha_bar,
        alphas_cumprod_prev=before,
        device="cpu",
        parameterization="eps",
        apply_model=network,
    )
    size = {"batch_size": len(noise), "shape": noise.shape[1:], "x_T": noise}
    _, seen = sampler(model).sample(S=steps, log_every_t=1, verbose=False, **size, **settings)
    return seen["x_inter"][1:]


class _MiDaS:
    """The original depth estimator, in the package stable-diffusion-sdkit."""

    def __init__(self):
        names = ("cv2", "timm.data", "torchvision", "torchvision.transforms")
        with stand_ins(*names):
            from ldm.modules.midas.midas.dpt_depth import DPTDepthModel
            from ldm.modules.midas.midas.transforms import Resize
        self.DPTDepthModel, self.Resize = DPTDepthModel, Resize


midas = _MiDaS()
