"""Stable Diffusion, written by hand in plain PyTorch: small enough to read, exact enough to trust.

>>> sd = minisd.load("mini")
>>> sd.txt2img("a cat on a blue background").save("cat.png")
"""

from __future__ import annotations

import typing

if typing.TYPE_CHECKING:
    from pathlib import Path

    import torch

    from minisd.pipeline import StableDiffusion

__version__ = "0.1.0"


def load(
    source: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    prediction: str | None = None,
    ema: bool = False,
    vae: str | Path | None = None,
    mmap: bool = True,
    engine: str | None = None,
) -> StableDiffusion:
    """Load a model, ready to draw.

    source: "mini", a .safetensors or .ckpt file, or a folder in the layout of diffusers
    dtype: the dtype of the weights in memory: torch.float32, bfloat16, float16 or float64. None:
        float32, even if the file has another dtype. With float16, the autoencoder stays in float32
    prediction: what the U-Net predicts, "eps" or "v". None: minisd reads this from the file, or
        runs the U-Net to find out
    ema: whether to load the EMA weights (model_ema.*) instead of the last weights. Some training
        checkpoints hold both
    vae: a VAE file, a folder with a VAE file, or the published name of a VAE. This VAE replaces the
        model's own VAE. If the model's file has no VAE, you must give one
    mmap: True: weights that already have the right dtype and device stay in the file, and are read
        when they are needed. You may replace the file by a new file of the same name, but do not
        shorten it or write into it while you use the model. False: all weights are copied into
        memory
    engine: what runs the networks. "openvino" is faster on a CPU (docs/speed.md). None: PyTorch

    Raises ValueError if the file is not a model, if it is cut off, if its tensors have wrong names
    or shapes, or if the engine cannot be used. The message says what to do. A weight that is NaN or
    infinite is an error only when a picture is drawn with it. The message then names the weight.
    """
    import torch  # imported here, because importing torch takes seconds

    from minisd.checkpoints.load import check_dtype
    from minisd.checkpoints.load import load as load_parts
    from minisd.pipeline import StableDiffusion

    dtype = torch.float32 if dtype is None else dtype
    check_dtype(dtype)
    try:
        torch.zeros(1, device=device, dtype=dtype).item()
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {str(device)!r} cannot be used ({reason}). Try cpu.") from error
    runner = None
    if engine is not None:
        from minisd.engine.openvino_engine import make_engine

        runner = make_engine(engine, dtype, device)
    parts = load_parts(source, device, dtype, prediction, ema, vae, mmap)
    sd = StableDiffusion(parts.config, parts.tokenizer, parts.text_encoder, parts.unet, parts.vae)
    sd.engine = runner
    return sd
