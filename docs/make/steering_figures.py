"""Measure how well each way to steer works, for the tables of docs/steering.md.

steering_report.py writes what these functions return into the page.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import minisd
from docs.make.mini_report import Cell, sheet
from minisd.adapters.classifier import load_classifier
from minisd.adapters.controlnet import ControlNet, control
from minisd.adapters.lora import lora
from minisd.adapters.textual_inversion import textual_inversion
from minisd.checkpoints.load import load_vae
from minisd.config import WEIGHTS
from minisd.depth.small import load_estimator
from minisd.files.pictures import from_pil
from minisd.mini.agreement import classifier_draw, edge_agreement
from minisd.mini.captions import Scene, brief_caption, full_caption
from minisd.mini.evaluate import DDIM_STEPS, DRAWN_AT_ONCE, draw_prompts, examine
from minisd.mini.judge import load_judge
from minisd.pipeline import StableDiffusion
from minisd.tasks.canny import canny
from minisd.tasks.depth2img import depth2img_steps
from minisd.tasks.img2img import img2img_steps
from minisd.tasks.inpaint import inpaint, mask_tensor
from minisd.training.vae import decibels

COUNT = 64  # pictures for each figure
LCM_COUNT = 256  # pictures for each row of the table on few steps
CLASSIFIER_SCALES = (0, 2, 8, 32)


def correlation(a: Tensor, b: Tensor) -> float:
    """The correlation of two depths, averaged over pictures. Both: b 1 h w"""
    pairs = zip(a.flatten(1), b.flatten(1), strict=True)
    return torch.stack([torch.stack(pair).corrcoef()[0, 1] for pair in pairs]).mean().item()


@torch.no_grad()
def measure_edges(sd: StableDiffusion, real: Tensor, scenes: list[Scene]) -> dict[str, float]:
    """How well the edges of drawn and real pictures agree, with and without the ControlNet.

    The prompts do not name the style: together with the thing, it would say which of the mini's few
    drawings to draw. Real pictures after encoding and decoding show what the mini can reach.

    real: b 3 h w
    """
    hint, prompts = canny(real), [brief_caption(scene) for scene in scenes]

    def agreement() -> float:
        return edge_agreement(canny(draw_prompts(sd, prompts, sd.config.cfg_scale)), hint)

    found = {"without": agreement()}
    with control(sd, ControlNet.load(WEIGHTS / "mini-edges.safetensors"), hint):
        found["with"] = agreement()
    through = sd.decode(sd.encode(real)).clamp(-1, 1)
    return found | {"the autoencoder alone": edge_agreement(canny(through), hint)}


@torch.no_grad()
def measure_depth(sd: StableDiffusion, real: Tensor, scenes: list[Scene]) -> dict[str, float]:
    """The correlation of the depth of drawn and real pictures, with and without the depth channel.

    Both are image-to-image at strength 1, and the prompts name neither style nor place. So almost
    only the depth channel says where things are.
    """
    wide = minisd.load("mini-depth")
    estimate = load_estimator(WEIGHTS / "mini-depth.safetensors")
    truth, prompts = estimate(real), [brief_caption(replace(one, spot=None)) for one in scenes]
    settings = {"strength": 1.0, "steps": DDIM_STEPS, "seed": list(range(len(prompts)))}
    *_, led = depth2img_steps(wide, prompts, real, truth, **settings)
    *_, free = img2img_steps(sd, prompts, real, **settings)
    drawn = {"with": wide.decode(led.x), "without": sd.decode(free.x)}
    return {name: correlation(estimate(image), truth) for name, image in drawn.items()}


def measure_outside(
    real: Tensor, scenes: list[Scene], mask: Image.Image
) -> dict[str, dict[str, float]]:
    """How much pixels outside the mask change, from 0 to 255: the largest change and the mean."""
    found: dict = {}
    prompts = [brief_caption(scene) for scene in scenes[:8]]
    kept = mask_tensor(mask, real)[0, 0] < 0.5
    for model in ("mini", "mini-inpaint"):
        sd = minisd.load(model)
        for paste in (False, True):
            drawn = inpaint(sd, prompts, real[:8], mask, steps=DDIM_STEPS, paste=paste, seed=1)
            apart = torch.cat([from_pil(one) for one in drawn]) - real[:8]
            apart = 127.5 * apart.abs()[:, :, kept]
            name = f"{model}, {'pasted' if paste else 'as drawn'}"
            found[name] = {"most": apart.max().item(), "mean": apart.mean().item()}
    return found


def fine_detail(images: Tensor) -> Tensor:
    """The details of a picture that are finer than about four pixels. b 3 h w -> b 3 h w"""
    coarse = F.interpolate(F.avg_pool2d(images, 4), images.shape[2:], mode="bilinear")
    return images - coarse


@torch.no_grad()
def measure_detail(sd: StableDiffusion, real: Tensor) -> dict[str, dict[str, float]]:
    """How well the mini's decoder and the fine-tuned one draw the same latents.

    Measures dB, dB of the fine detail alone, and how much of the spread of the fine detail is left
    (blur makes it smaller).
    """
    latents, found = sd.encode(real), {}
    tuned = load_vae(WEIGHTS / "mini-decoder.safetensors", sd.config.vae)
    for name, vae in {"the mini's": sd.vae, "fine-tuned": tuned}.items():
        drawn = vae.decode(latents / sd.config.vae.scale).clamp(-1, 1)
        found[name] = {
            "dB": decibels(drawn, real),
            "dB of the fine detail": decibels(fine_detail(drawn), fine_detail(real)),
            "spread of the fine detail": (
                fine_detail(drawn).std() / fine_detail(real).std()
            ).item(),
        }
    return found


def classifier_row(sd: StableDiffusion) -> tuple[dict[str, float], Image.Image]:
    """How often the judge sees the thing to which the classifier steers, and some pictures."""
    guide = load_classifier(WEIGHTS / "mini-classifier.safetensors")
    things = list(guide.config.things)[:: len(guide.config.things) // COUNT or 1][:COUNT]
    scenes = [Scene((thing,), (None,), "noto", "white") for thing in things]
    judge, found, cells = load_judge(), {}, []
    for scale in CLASSIFIER_SCALES:
        images = classifier_draw(sd, guide, things, scale)
        seen = examine(judge, images, scenes)
        found[f"{scale:g}"] = sum(one.right["thing"][0] for one in seen) / len(seen)
        cells += [Cell(images[i], f"{things[i]}, scale {scale:g}") for i in range(6)]
    return found, sheet(cells, 6)


def measure_word(sd: StableDiffusion) -> dict[str, float]:
    """How often the judge sees a fox if the prompt says <blorp>, with and without its file."""
    colours = ("red", "green", "blue", "white", "yellow", "pink")
    prompts = [f"a <blorp> on a {colour} background" for colour in colours for _ in range(4)]
    scenes = [Scene(("fox",), (None,), "noto", "white")] * len(prompts)
    judge, found = load_judge(), {}

    def share() -> float:
        seen = examine(judge, draw_prompts(sd, prompts, sd.config.cfg_scale), scenes)
        return sum(one.right["thing"][0] for one in seen) / len(seen)

    found["without"] = share()
    with textual_inversion(sd, WEIGHTS / "mini-blorp.safetensors"):
        found["with"] = share()
    return found


def measure_lcm(sd: StableDiffusion, scenes: list[Scene]) -> dict[str, float]:
    """How often all of a picture is right: in 30 steps, and in a few with and without the LoRA."""
    few = {"steps": 4, "sampler": "ddim", "spacing": "trailing"}
    found = {
        "DDIM, 30 steps": share_right(sd, scenes, steps=30, sampler="ddim"),
        "DDIM, 4 steps": share_right(sd, scenes, **few),
    }
    with lora(sd, WEIGHTS / "mini-lcm.safetensors"):
        for steps in (1, 2, 4, 8):
            lcm = {"steps": steps, "sampler": "lcm", "cfg_scale": 1.0}
            found[f"LCM, {steps} step{'s' * (steps > 1)}"] = share_right(sd, scenes, **lcm)
    return found


@torch.no_grad()
def share_right(sd: StableDiffusion, scenes: list[Scene], **settings) -> float:
    """Draw one picture for each scene. Returns the share of pictures that are right in all aspects.

    The prompts are the full captions, and the noise has the seeds 0, 1, 2 …

    settings: arguments of txt2img_steps
    """
    images = []
    for first in range(0, len(scenes), DRAWN_AT_ONCE):
        prompts = [full_caption(scene) for scene in scenes[first : first + DRAWN_AT_ONCE]]
        *_, step = sd.txt2img_steps(prompts, seed=first, **settings)
        images.append(sd.decode(step.x).clamp(-1, 1))
    seen = examine(load_judge(), torch.cat(images), scenes)
    return sum(one.is_right for one in seen) / len(seen)
