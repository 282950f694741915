"""The same pipeline twice, with the same random weights: ours and that of diffusers."""

from dataclasses import replace

import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTokenizer

from minisd.checkpoints.folder_tokenizer import write_tokenizer
from minisd.pipeline import StableDiffusion
from minisd.tokenizer import Tokenizer
from tests.helpers.reference_networks import ddim_scheduler, pair
from tests.helpers.tiny_models import V1, V2

PROMPTS = ["a photograph of an astronaut", "ein Café, 2 (two) cats"]
NO_FILTER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
DIFFUSERS_SETTINGS = {"num_inference_steps": 3, "guidance_scale": 5.0, "height": 64, "width": 96}
OUR_SETTINGS = {"steps": 3, "cfg_scale": 5.0, "seed": 3, "height": 64, "width": 96}


def both_pipelines(config, pipeline, folder, scheduler=None, **parts_of_theirs):
    """Our pipeline and that of diffusers, with the same random weights."""
    parts = {
        name: pair(name, config, "diffusers", "unit", torch.float32) for name in ("unet", "vae")
    }
    parts["text_encoder"] = pair("text_encoder", config, "diffusers", "unit", torch.float32)
    parts["unet"].theirs.register_to_config(sample_size=64)  # these pipelines need one
    tokenizer = Tokenizer.clip(config.text.pad_token)
    write_tokenizer(folder, tokenizer)
    ours = StableDiffusion(config, tokenizer, **{name: p.ours for name, p in parts.items()})
    theirs = pipeline(
        **{name: p.theirs for name, p in parts.items()},
        tokenizer=CLIPTokenizer.from_pretrained(folder),
        scheduler=scheduler or ddim_scheduler(config),
        **parts_of_theirs,
    )
    theirs.set_progress_bar_config(disable=True)
    return ours, theirs


def family_pair(family, folder):
    """Ours and diffusers' of a family, "v1" or "v2"."""
    return both_pipelines(
        {"v1": V1, "v2": V2}[family], StableDiffusionPipeline, folder, **NO_FILTER
    )


def eighth_pair(family, folder):
    """A pair whose latents are eight times smaller than pictures, as every ControlNet expects."""
    config = {"v1": V1, "v2": V2}[family]
    config = replace(config, vae=replace(config.vae, channels=(32, 32, 64, 64)))
    return both_pipelines(config, StableDiffusionPipeline, folder, **NO_FILTER)


def of_seeds(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def last(walk):
    *_, step = walk
    return step.x


def drawn(ours, prompts=PROMPTS):
    return last(ours.txt2img_steps(prompts, **OUR_SETTINGS))


def drawn_by_diffusers(theirs, prompts=PROMPTS, **more):
    generators = of_seeds(*range(3, 3 + len(prompts)))
    walk = theirs(prompts, **DIFFUSERS_SETTINGS, generator=generators, output_type="latent", **more)
    return walk.images


def states(sd):
    """Copies of all weights of the model."""
    parts = ("unet", "text_encoder", "vae")
    return {
        f"{part}.{name}": tensor.clone()
        for part in parts
        for name, tensor in getattr(sd, part).state_dict().items()
    }


def all_equal(before, after):
    return before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
