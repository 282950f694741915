"""Import references that need packages which our tests never use.

During the import, empty modules stand in for these packages. They are removed afterwards. If a
reference cannot be imported, the tests that need it fail.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor

__all__ = ["clip", "k_diffusion", "open_clip", "transformers"]


class StandIn(ModuleType):
    """An empty module. Any name can be imported from it, but none of them does anything."""

    def __getattr__(self, name: str) -> "StandIn":
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn(name)

    def __mro_entries__(self, bases: tuple) -> tuple:
        return ()  # a class that derives from it then has no base


@contextmanager
def stand_ins(*names: str) -> Iterator[None]:
    """Let `import name` give an empty module, except where the real one is already imported."""
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

# transformers looks for torchvision, and must not find the empty module.
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

    sys.modules["pkg_resources"].packaging = packaging  # clip gets torch's version from it
    import clip
    import open_clip


def compvis_states(
    sampler: type, alpha_bar: Tensor, network, noise: Tensor, steps: int, **settings
) -> list[Tensor]:
    """The states of the loop of CompVis (DDIMSampler or PLMSSampler), without the first one.

    alpha_bar: 1000, float64    network: any function (x, t, context) -> eps
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
    """The original depth estimator, from the package stable-diffusion-sdkit."""

    def __init__(self):
        names = ("cv2", "timm.data", "torchvision", "torchvision.transforms")
        with stand_ins(*names):
            from ldm.modules.midas.midas.dpt_depth import DPTDepthModel
            from ldm.modules.midas.midas.transforms import Resize
        self.DPTDepthModel, self.Resize = DPTDepthModel, Resize


midas = _MiDaS()
