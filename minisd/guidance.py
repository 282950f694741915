"""From network to denoiser: what eps or v says about the picture, and guidance of both kinds."""

from collections.abc import Callable

import torch
from einops import rearrange, repeat
from torch import Tensor

from minisd.schedule import Denoiser, Level, Prediction

# network(x, t, context) -> eps or v.   x: b c h w   t: b   context: b m c   returns: b c h w
Network = Callable[[Tensor, Tensor, Tensor], Tensor]
# log_prob(x, t) -> log p(class | x), b.   x: b c h w, noisy as at t   t: b
LogProb = Callable[[Tensor, Tensor], Tensor]


def x0_from_eps(x: Tensor, eps: Tensor, level: Level) -> Tensor:
    """Solve x = signal_rate x0 + noise_rate eps for x0 (Ho et al. 2020, eq. 15)."""
    return (x - level.noise_rate * eps) / level.signal_rate


def x0_from_v(x: Tensor, v: Tensor, level: Level) -> Tensor:
    """The same, knowing v = signal_rate eps - noise_rate x0 (Salimans & Ho 2022, app. D)."""
    return level.signal_rate * x - level.noise_rate * v


def eps_from_v(x: Tensor, v: Tensor, level: Level) -> Tensor:
    """The same two equations solved for eps."""
    return level.noise_rate * x + level.signal_rate * v


def guided_denoiser(
    network: Network,
    objective: str,
    context: Tensor,
    uncond_context: Tensor | None = None,
    cfg_scale: float = 1.0,
) -> Denoiser:
    """The denoiser that a sampler calls: classifier-free guidance (Ho & Salimans 2022, eq. 6).

    guided = uncond + cfg_scale (cond - uncond), for every scale. At 1 the conditional half alone is
    computed, at 0 the unconditional alone; else the network runs once, on 2b samples, the
    unconditional first. A network that wants more than x, t and context comes wrapped in a closure.

    objective: what the network was trained to say, "eps" or "v"
    context: b m c, the prompts    uncond_context: b m c, the negative prompts (often "")

    Raises ValueError on an unknown objective and on an uncond_context that is missing or unequal.
    """
    check_objective(objective)
    check_contexts(context, uncond_context, cfg_scale)

    def denoise(x: Tensor, level: Level) -> Prediction:
        if cfg_scale == 1:
            uncond, cond = None, run(network, x, level, context)
            guided = cond
        elif cfg_scale == 0:
            uncond, cond = run(network, x, level, uncond_context, len(x)), None
            guided = uncond
        else:
            uncond, cond = run_both(network, x, level, uncond_context, context)
            guided = uncond + cfg_scale * (cond - uncond)
        return interpret(objective, x, level, guided, uncond, cond)

    return denoise


def classifier_guided(denoise: Denoiser, log_prob: LogProb, scale: float) -> Denoiser:
    """Another denoiser, whose eps leans to where a classifier sees more of a class.

    eps - scale * noise_rate * gradient of log p(class | x)  (Dhariwal & Nichol 2021, algorithm 2)

    log_prob: of a classifier that knows noisy x    scale: 0 leaves the denoiser as it is
    """
    if scale == 0:
        return denoise

    def denoise_towards(x: Tensor, level: Level) -> Prediction:
        prediction = denoise(x, level)
        if level.signal_rate == 0:  # pure noise: a classifier sees nothing in it
            return prediction
        t = torch.full((len(x),), level.t, dtype=torch.float32, device=x.device)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(log_prob(leaf, t).sum(), leaf)
        eps = prediction.eps - scale * level.noise_rate * gradient
        return prediction._replace(x0=x0_from_eps(x, eps, level), eps=eps)

    return denoise_towards


def run(network: Network, x: Tensor, level: Level, context: Tensor, free: int = 0) -> Tensor:
    """Ask the network once, in the context's precision; the answer has that of x.

    Its t keeps its fraction: float32 at least, whatever x is.

    free: how many of the samples, the first, are asked without their prompt. It is noted
        on the context, for the ControlNets that treat these otherwise
    """
    context = context[:]  # a tensor of this call alone: other threads may note something else
    context.unconditional = free
    precision = torch.promote_types(x.dtype, torch.float32)
    t = torch.full((len(x),), level.t, dtype=precision, device=x.device)
    return network(x.to(context.dtype), t, context).to(x.dtype)


def unconditional_rows(context: Tensor) -> int:
    """How many rows of a context, the first, stand for no prompt; 0 where run() noted nothing."""
    return getattr(context, "unconditional", 0)


def run_both(
    network: Network, x: Tensor, level: Level, uncond_context: Tensor, context: Tensor
) -> tuple[Tensor, Tensor]:
    """Ask about the same x with and without the prompt, as one batch of two halves."""
    twice = repeat(x, "b c h w -> (half b) c h w", half=2)
    contexts = torch.cat([uncond_context, context])
    both = run(network, twice, level, contexts, len(x))
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
    """Read the network's answers as x0 and eps."""
    if objective == "eps":
        return Prediction(x0_from_eps(x, guided, level), guided, uncond, cond)
    return Prediction(
        x0=x0_from_v(x, guided, level),
        eps=eps_from_v(x, guided, level),
        eps_uncond=None if uncond is None else eps_from_v(x, uncond, level),
        eps_cond=None if cond is None else eps_from_v(x, cond, level),
    )


def check_objective(objective: str) -> None:
    """Raise ValueError unless the objective is one of the two."""
    if objective not in ("eps", "v"):
        raise ValueError(f'A network predicts "eps" or "v", got "{objective}".')


def check_contexts(context: Tensor, uncond_context: Tensor | None, cfg_scale: float) -> None:
    """Raise ValueError unless the contexts can share a batch where cfg_scale needs both."""
    if cfg_scale == 1:
        return
    if uncond_context is None:
        raise ValueError(
            f"cfg_scale {cfg_scale} needs an uncond_context: embed the negative prompt, or an "
            "empty one, or guide with cfg_scale 1."
        )
    if uncond_context.shape != context.shape:
        raise ValueError(
            f"The contexts must have one shape to share a batch, got {tuple(context.shape)} for "
            f"the prompt and {tuple(uncond_context.shape)} for the negative prompt: embed both "
            "with the same number of chunks, one for each sample."
        )
