"""Turn a network into a denoiser: convert eps or v to x0, and apply classifier-free guidance."""

from collections.abc import Callable

import torch
from einops import rearrange, repeat
from torch import Tensor

from minisd.schedule import Denoiser, Level, Prediction

# network(x, t, context) -> eps or v.   x: b c h w   t: b   context: b m c   returns: b c h w
Network = Callable[[Tensor, Tensor, Tensor], Tensor]


def x0_from_eps(x: Tensor, eps: Tensor, level: Level) -> Tensor:
    """Solve x = signal_rate x0 + noise_rate eps for x0 (Ho et al. 2020, eq. 15)."""
    return (x - level.noise_rate * eps) / level.signal_rate


def x0_from_v(x: Tensor, v: Tensor, level: Level) -> Tensor:
    """Compute x0 from v = signal_rate eps - noise_rate x0 (Salimans & Ho 2022, app. D)."""
    return level.signal_rate * x - level.noise_rate * v


def eps_from_v(x: Tensor, v: Tensor, level: Level) -> Tensor:
    """Compute eps from v = signal_rate eps - noise_rate x0."""
    return level.noise_rate * x + level.signal_rate * v


def guided_denoiser(
    network: Network,
    objective: str,
    context: Tensor,
    uncond_context: Tensor | None = None,
    cfg_scale: float = 1.0,
) -> Denoiser:
    """Make the function that a sampler calls: a denoiser with classifier-free guidance.

    The formula is guided = uncond + cfg_scale (cond - uncond) (Ho & Salimans 2022, eq. 6). Here,
    uncond is the network's output for uncond_context, and cond is its output for context. Scale 1
    needs only cond, and scale 0 needs only uncond. For other scales, the network runs once on 2b
    samples: b samples with uncond_context, then b samples with context.

    If a network needs more inputs than x, t and context, wrap the network in a function that adds
    these inputs.

    objective: what the network was trained to predict, "eps" or "v"
    context: b m c, the embedded prompts
    uncond_context: b m c, the embedded negative prompts (often ""). It may be None at cfg_scale 1

    Raises ValueError if the objective is unknown. If cfg_scale is not 1, also raises ValueError if
    uncond_context is None, or if its shape differs from that of context.
    """
    check_objective(objective)
    check_contexts(context, uncond_context, cfg_scale)

    def denoise(x: Tensor, level: Level) -> Prediction:
        if cfg_scale == 1 or uncond_context is None:
            uncond, cond = None, run_network(network, x, level, context)
            guided = cond
        elif cfg_scale == 0:
            uncond, cond = run_network(network, x, level, uncond_context, len(x)), None
            guided = uncond
        else:
            uncond, cond = run_network_twice(network, x, level, uncond_context, context)
            guided = uncond + cfg_scale * (cond - uncond)
        return interpret(objective, x, level, guided=guided, uncond=uncond, cond=cond)

    return denoise


def run_network(
    network: Network, x: Tensor, level: Level, context: Tensor, free: int = 0
) -> Tensor:
    """Run the network once, in the precision of the context. The result has the precision of x.

    t stays in float32 or float64, because half precision would round it.

    free: how many samples at the start of the batch have no prompt. This number is stored in the
        context, so that the network can read it. Some ControlNets treat these samples differently
    """
    context = context[:]  # a new tensor for this call, because other threads may set another number
    vars(context)["unconditional"] = free
    precision = torch.promote_types(x.dtype, torch.float32)
    t = torch.full((len(x),), level.t, dtype=precision, device=x.device)
    return network(x.to(context.dtype), t, context).to(x.dtype)


def unconditional_rows(context: Tensor) -> int:
    """The number of samples in a context that have no prompt. These samples come first.

    run_network() stores this number in the context. If it did not, the number is 0.
    """
    return getattr(context, "unconditional", 0)


def run_network_twice(
    network: Network, x: Tensor, level: Level, uncond_context: Tensor, context: Tensor
) -> tuple[Tensor, Tensor]:
    """Run the network once on a batch of two halves: x without the prompt, x with the prompt.

    returns: the two halves of the output, b c h w each
    """
    twice = repeat(x, "b c h w -> (half b) c h w", half=2)
    contexts = torch.cat([uncond_context, context])
    both = run_network(network, twice, level, contexts, free=len(x))
    uncond, cond = rearrange(both, "(half b) c h w -> half b c h w", half=2)
    return uncond, cond


def interpret(
    objective: str,
    x: Tensor,
    level: Level,
    guided: Tensor,
    uncond: Tensor | None,
    cond: Tensor | None,
) -> Prediction:
    """Convert the network's outputs (eps or v) to x0 and eps. All tensors are b c h w."""
    if objective == "eps":
        return Prediction(x0_from_eps(x, guided, level), guided, uncond, cond)
    return Prediction(
        x0=x0_from_v(x, guided, level),
        eps=eps_from_v(x, guided, level),
        eps_uncond=None if uncond is None else eps_from_v(x, uncond, level),
        eps_cond=None if cond is None else eps_from_v(x, cond, level),
    )


def check_objective(objective: str) -> None:
    """Raise ValueError if the objective is neither "eps" nor "v"."""
    if objective not in ("eps", "v"):
        raise ValueError(f'The objective must be "eps" or "v", got "{objective}".')


def check_contexts(context: Tensor, uncond_context: Tensor | None, cfg_scale: float) -> None:
    """If cfg_scale needs two contexts: raise ValueError if one is missing or the shapes differ."""
    if cfg_scale == 1:
        return
    if uncond_context is None:
        raise ValueError(
            f"cfg_scale {cfg_scale} needs an uncond_context. Give the embedded negative prompt or "
            'the embedded empty prompt "", or use cfg_scale 1.'
        )
    if uncond_context.shape != context.shape:
        raise ValueError(
            f"The contexts must have the same shape, got {tuple(context.shape)} for the prompt and "
            f"{tuple(uncond_context.shape)} for the negative prompt. Give one negative prompt for "
            "each prompt, and embed both with the same number of chunks."
        )
