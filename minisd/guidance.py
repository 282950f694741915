"""From network to denoiser: what eps or v says about the picture, and classifier-free guidance."""

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
    """The denoiser that a sampler calls, with classifier-free guidance (Ho & Salimans 2022, eq. 6).

    guided = uncond + cfg_scale (cond - uncond), for every scale. Here, uncond is the network's
    answer to uncond_context, and cond is its answer to context. Scale 1 needs only cond, and
    scale 0 needs only uncond. For other scales, the network runs once on 2b samples. The b samples
    with uncond_context come first. If a network needs more than x, t and context, wrap the network
    in a function that adds the other inputs.

    objective: what the network was trained to predict, "eps" or "v"
    context: b m c, the embedded prompts
    uncond_context: b m c, the embedded negative prompts (often ""). None: for cfg_scale 1

    Raises ValueError if the objective is unknown. Also raises ValueError if cfg_scale is not 1 and
    uncond_context is missing or has another shape than context.
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
    """Run the network once in the context's precision. The answer has the precision of x.

    t is never rounded to half precision, so that it keeps its fraction.

    free: the number of samples at the start of the batch that have no prompt. The context carries
        this number to the network, because some ControlNets treat these samples differently
    """
    context = context[:]  # a new tensor for this call, because other threads may set another number
    vars(context)["unconditional"] = free
    precision = torch.promote_types(x.dtype, torch.float32)
    t = torch.full((len(x),), level.t, dtype=precision, device=x.device)
    return network(x.to(context.dtype), t, context).to(x.dtype)


def unconditional_rows(context: Tensor) -> int:
    """The number of samples without a prompt. They are the first samples of a context.

    The number is 0 if run_network() has not set a number.
    """
    return getattr(context, "unconditional", 0)


def run_network_twice(
    network: Network, x: Tensor, level: Level, uncond_context: Tensor, context: Tensor
) -> tuple[Tensor, Tensor]:
    """Run the network on the same x with and without the prompt, as one batch of two halves."""
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
    """Convert the network's answers to x0 and eps. All tensors are b c h w."""
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
    """Raise ValueError if cfg_scale needs two contexts, but one is missing or the shapes differ."""
    if cfg_scale == 1:
        return
    if uncond_context is None:
        raise ValueError(
            f"cfg_scale {cfg_scale} needs an uncond_context. Embed the negative prompt or an empty "
            "one, or use cfg_scale 1."
        )
    if uncond_context.shape != context.shape:
        raise ValueError(
            f"The contexts must have the same shape, got {tuple(context.shape)} for the prompt and "
            f"{tuple(uncond_context.shape)} for the negative prompt. Embed as many prompts as "
            "negative prompts, with the same number of chunks."
        )
