"""Train an LCM-LoRA, with which a model draws in four steps: latent consistency distillation.

The teacher is the model itself, with classifier-free guidance. One DDIM step of the teacher moves a
noisy x to a lower noise level. The student is the model with the LoRA, without guidance. It learns
to guess the same picture before and after this step. At t = 0, the guess is x itself. So level by
level, the student learns to guess the end of the teacher's path in one step, guidance included (Luo
et al. 2023, "Latent Consistency Models" and "LCM-LoRA").
"""

import copy
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from minisd.checkpoints.names import model_rows
from minisd.pipeline import StableDiffusion
from minisd.samplers import consistency_weights
from minisd.schedule import LCM_TIMESTEPS, Schedule
from minisd.training.adapters import AdapterDataset, TrainableLoRA, write_half
from minisd.training.loop import Draw, Hyperparameters, train

# How far one step of the teacher goes, in the 50 t. In the paper, it is 1. But the student learns
# the guesses of one t from those of the next, and a short training has time for few such steps:
# with 1, 83 % of 256 pictures of the mini were right (700 steps), and with 5, 88 % (300 steps).
SKIPPED = 5
HUBER_WIDTH = 0.001  # of differences below it, the loss is quadratic (diffusers' LCM-LoRA training)
# The layers that the published LCM-LoRAs change, by the ends of their names in diffusers
CHANGED_LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj")
CHANGED_LAYERS += ("ff.net.2", "conv1", "conv2", "conv_shortcut", "time_emb_proj")
CHANGED_LAYERS += ("downsamplers.0.conv", "upsamplers.0.conv")
Eps = Callable[[Tensor, Tensor], Tensor]  # (x, t) -> the predicted noise.   x: b c h w   t: b


def consistency_lora(sd: StableDiffusion, rank: int = 3) -> TrainableLoRA:
    """An untrained LoRA for all layers that the published LCM-LoRAs change."""
    rows = model_rows(sd.config)["unet"]
    layers = [row.ours for row in rows if row.diffusers.endswith(CHANGED_LAYERS)]
    return TrainableLoRA(sd, rank, layers)


def save_kohya(path: Path, adapter: TrainableLoRA, notes: dict[str, str]) -> None:
    """Write a LoRA with the names of the published LCM-LoRAs, which are those of kohya's trainer.

    notes: more entries for the file's header
    """
    tensors = {}
    for name, down, up in zip(adapter.official, adapter.down, adapter.up, strict=True):
        layer = f"lora_unet_{name.replace('.', '_')}"
        tensors[f"{layer}.lora_down.weight"] = down.detach()
        tensors[f"{layer}.lora_up.weight"] = up.detach()
        tensors[f"{layer}.alpha"] = torch.tensor(float(adapter.rank))
    write_half(path, tensors, notes)


def consistency_loss(
    student: Eps, teacher: Eps, schedule: Schedule, x0: Tensor, generator: torch.Generator
) -> Tensor:
    """How far the student's guess moves along one step of the teacher (Luo et al. 2023, eq. 13).

    The guess after the step is the target. No gradient passes through it.

    x0: b c h w, latents without noise
    """
    t = solver_timesteps(len(x0), schedule, generator)
    next_t = (t - SKIPPED * (schedule.config.timesteps // LCM_TIMESTEPS)).clamp(min=0)
    x = schedule.add_noise(x0, torch.randn(x0.shape, generator=generator), t)
    guess = guess_end(student, schedule, x, t)
    with torch.no_grad():
        eps = teacher(x, t)
        next_x = schedule.add_noise(predicted_x0(x, eps, schedule, t), eps, next_t)  # DDIM
        target = guess_end(student, schedule, next_x, next_t)
    return ((guess - target).square() + HUBER_WIDTH**2).sqrt().mean() - HUBER_WIDTH


def solver_timesteps(batch_size: int, schedule: Schedule, generator: torch.Generator) -> Tensor:
    """Draw one of the 50 t of Schedule.lcm for each sample, spread evenly. returns: b"""
    within = torch.rand(batch_size, generator=generator)
    share = (torch.arange(batch_size) + within) / batch_size  # 0 … 1, one in each part of a batch
    index = (share * LCM_TIMESTEPS).long().clamp(max=LCM_TIMESTEPS - 1)
    return (index + 1) * (schedule.config.timesteps // LCM_TIMESTEPS) - 1


def guess_end(student: Eps, schedule: Schedule, x: Tensor, t: Tensor) -> Tensor:
    """The student's guess of the picture: a consistency function of x and t.

    x: b c h w    t: b    returns: b c h w
    """
    weights = torch.tensor([consistency_weights(each) for each in t.tolist()])
    x_weight, x0_weight = rearrange(weights, "b two -> two b 1 1 1")
    return x_weight * x + x0_weight * predicted_x0(x, student(x, t), schedule, t)


def predicted_x0(x: Tensor, eps: Tensor, schedule: Schedule, t: Tensor) -> Tensor:
    """Solve x = signal_rate x0 + noise_rate eps for x0. x, eps: b c h w    t: b"""
    sigma = rearrange(schedule.sigma(t), "b -> b 1 1 1").to(x)
    return x * (1 + sigma**2).sqrt() - sigma * eps


def train_consistency(
    sd: StableDiffusion,
    adapter: TrainableLoRA,
    dataset: AdapterDataset,
    folder: Path,
    settings: Hyperparameters,
    batch_size: int = 16,
    seed: int = 0,
) -> nn.Module:
    """Distil the model, guided with its own scale, into the LoRA. Returns the LoRA's EMA weights.

    The model must predict eps. Its own weights do not change. If the folder holds a run, the run is
    resumed. Raises the same errors as train().
    """
    assert sd.config.schedule.prediction == "eps", sd.config.schedule.prediction
    tokens, scale = sd.tokenizer(dataset.captions), sd.config.cfg_scale
    frozen, uncond = copy.deepcopy(sd.unet), sd.embed("")

    def loss_at(draw: Draw) -> dict[str, Tensor]:
        picks = torch.randint(len(dataset.latents), (draw.batch_size,), generator=draw.generator)
        context = sd.text_encoder(tokens[picks])
        both = torch.cat([uncond.expand_as(context), context])

        def student(x: Tensor, t: Tensor) -> Tensor:
            return sd.unet(x, t, context)

        def teacher(x: Tensor, t: Tensor) -> Tensor:
            x = repeat(x, "b c h w -> (half b) c h w", half=2)
            t = repeat(t, "b -> (half b)", half=2)
            without, given = rearrange(frozen(x, t, both), "(half b) c h w -> half b c h w", half=2)
            return without + scale * (given - without)

        x0 = dataset.latents[picks].float()
        # in float32: the difference of two guesses is hardly larger than the rounding of bfloat16
        with torch.autocast("cpu", enabled=False):
            loss = consistency_loss(student, teacher, sd.schedule, x0, draw.generator)
        return {"consistency": loss}

    about = {"unet": asdict(sd.config.unet), "pictures": len(dataset.latents)}
    about |= {"rank": adapter.rank, "cfg_scale": scale}
    with adapter.attach(sd):
        return train(adapter, loss_at, settings, folder, batch_size, seed, about)
