"""The option --lcm: draw in 4 steps without guidance, with the LCM-LoRA that fits the model.

A model whose own sampler is LCM is distilled already, so it gets no LoRA.
"""

import argparse
from dataclasses import replace

from minisd.cli.adapter_options import split_scale
from minisd.cli.file_hashes import hash_of
from minisd.config import SD15, ModelConfig

USUAL_STEPS, USUAL_SCALE = 4, 1.0
MINI_MODELS = ("mini", "mini-inpaint", "mini-depth")


def apply_lcm_option(options: argparse.Namespace) -> None:
    """Choose the sampler lcm, 4 steps and scale 1. Settings that the user gives are kept."""
    if not options.lcm:
        return
    options.sampler = options.sampler or "lcm"
    options.steps = USUAL_STEPS if options.steps is None else options.steps
    options.scale = USUAL_SCALE if options.scale is None else options.scale


def check_lcm(options: argparse.Namespace) -> None:
    """Raise ValueError if --lcm comes with a setting that contradicts it."""
    if not options.lcm:
        return
    if options.sampler != "lcm":
        what = f"--lcm and --sampler {options.sampler} exclude each other"
        raise ValueError(f"{what}: give only one of them.")
    if options.negative and options.scale == 1:
        raise ValueError(
            "--lcm draws without guidance, so a negative prompt has no effect: leave out the "
            "negative prompt, or give --scale 1.5."
        )


def add_lcm_lora(options: argparse.Namespace, config: ModelConfig) -> None:
    """With --lcm, add the model's LCM-LoRA to the options, unless --lora gives this file already.

    Raises ValueError if minisd knows no LCM-LoRA for the model, or if it is not downloaded yet.
    """
    if not options.lcm or config.sampler == "lcm":
        return
    known = lcm_lora_of(options.model, config)
    if all(hash_of(split_scale(given)[0]) != hash_of(known) for given in options.lora):
        options.lora = [*options.lora, known]


def lcm_lora_of(model: str, config: ModelConfig) -> str:
    """The name of the LCM-LoRA that fits a model. Raises ValueError if minisd knows none.

    The LoRA for Stable Diffusion v1.5 also fits the models that were fine-tuned from it. That of
    the mini fits only the mini itself: another model of this size has other weights.
    """
    if model in MINI_MODELS:
        return "mini-lcm"
    if replace(config.unet, in_channels=SD15.unet.in_channels) == SD15.unet:
        return "lcm-lora-sd15"
    instead = "give one with --lora, and --sampler lcm --steps 4 --scale 1 instead of --lcm"
    raise ValueError(f"minisd knows no LCM-LoRA for {model}: {instead}.")
