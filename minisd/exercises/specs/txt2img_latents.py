"""The whole of text-to-image, from prompts to latents."""

from itertools import pairwise
from math import isfinite

import torch

from minisd.exercises.calls import Made
from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, normal
from minisd.exercises.parts import guided_eps, starting_noise
from minisd.exercises.specs.embed_both import draw_text
from minisd.exercises.specs.starting_noise import draw_seed
from minisd.files.pictures import check_size
from minisd.pipeline import check_seeds, list_prompts
from minisd.samplers import Step
from minisd.schedule import Prediction


def txt2img_latents(sd, prompts, negative_prompt, steps, cfg_scale, seeds, height, width):
    """Draw latents from prompts. This is a generator: it yields what each step gives.

    sd.embed(texts): the contexts of a list of texts, b m d
    sd.unet(x, t, context): the predicted noise
    sd.schedule.alpha_bar: a tensor with alpha_bar of t = 0, 1, 2 …
    prompts: a list of b texts    negative_prompt: one text, the same for all prompts
    steps: less than the length of alpha_bar    cfg_scale: a number    seeds: a list of b numbers
    height, width: the size of the latents, which have 4 channels
    yields: t, the predicted x0, the predicted eps, and the new x. The last three are b 4 h w each
    """
    alpha_bar = sd.schedule.alpha_bar
    stride = len(alpha_bar) // steps
    ts = [1 + stride * k for k in reversed(range(steps))]
    contexts = sd.embed([negative_prompt] * len(prompts) + prompts)
    uncond_context, context = contexts.chunk(2)
    x = starting_noise(seeds, 4, height, width).to(context)
    for t, next_t in pairwise([*ts, 0]):
        eps = guided_eps(sd.unet, x, t, uncond_context, context, cfg_scale)
        x0 = (x - (1 - alpha_bar[t]).sqrt() * eps) / alpha_bar[t].sqrt()
        x = alpha_bar[next_t].sqrt() * x0 + (1 - alpha_bar[next_t]).sqrt() * eps
        yield t, x0, eps, x


def leading(table, steps):
    """The t of the solution."""
    stride = len(table) // steps
    return [*(1 + stride * k for k in reversed(range(steps))), 0]


def take_step(x, eps, now, after):
    """One step of DDIM, from one alpha_bar to the next."""
    x0 = (x - (1 - now).sqrt() * eps) / now.sqrt()
    return x0, after.sqrt() * x0 + (1 - after).sqrt() * eps


def vary(ts=leading, step=take_step, words=None, start=None, read_t=None):
    """The solution with one thing changed.

    ts: the t of all steps, and of the end    step: from x, eps and two alpha_bar to x0 and x
    words: the negative prompt and the prompts    start: the noise    read_t: the t of the network
    """

    def txt2img(sd, prompts, negative_prompt, steps, cfg_scale, seeds, height, width):
        table, b = sd.schedule.alpha_bar, len(prompts)
        texts = words(negative_prompt, prompts) if words else [negative_prompt] * b + prompts
        uncond_context, context = sd.embed(texts).chunk(2)
        x = starting_noise(seeds, 4, height, width).to(context)
        x = start(x, seeds, table) if start else x
        for t, next_t in pairwise(ts(table, steps)):
            seen = read_t(t, next_t) if read_t else t
            eps = guided_eps(sd.unet, x, seen, uncond_context, context, cfg_scale)
            x0, x = step(x, eps, table[t], table[next_t])
            yield t, x0, eps, x

    return txt2img


def end_clean(sd, prompts, negative_prompt, steps, cfg_scale, seeds, height, width):
    arguments = (sd, prompts, negative_prompt, steps, cfg_scale, seeds, height, width)
    *before, (t, x0, eps, _) = txt2img_latents(*arguments)
    yield from before
    yield t, x0, eps, x0


def forget_last_step(*arguments):
    yield from list(txt2img_latents(*arguments))[:-1]


def stay_in_float32(sd, prompts, negative_prompt, steps, cfg_scale, seeds, height, width):
    changed = vary(start=lambda x, seeds, table: x.float())
    arguments = (prompts, negative_prompt, steps, cfg_scale, seeds, height, width)
    yield from changed(sd, *arguments)


def without_guidance(sd, prompts, negative_prompt, steps, cfg_scale, *others):
    yield from txt2img_latents(sd, prompts, negative_prompt, steps, 1, *others)


def yield_before(sd, prompts, negative_prompt, steps, cfg_scale, seeds, height, width):
    arguments = (sd, prompts, negative_prompt, steps, cfg_scale, seeds, height, width)
    x = starting_noise(seeds, 4, height, width)
    for t, x0, eps, after in txt2img_latents(*arguments):
        yield t, x0, eps, x
        x = after


def only_x(*arguments):
    for *_, x in txt2img_latents(*arguments):
        yield x


def no_roots(x, eps, now, after):
    x0 = (x - (1 - now) * eps) / now
    return x0, after * x0 + (1 - after) * eps


def as_method(answer):
    """The core's method, with the loop of the answer. Settings that it cannot have are refused."""

    def txt2img_steps(
        self,
        prompt,
        negative_prompt="",
        steps=30,
        cfg_scale=None,
        sampler=None,
        seed=0,
        width=None,
        height=None,
        latent=None,
        spacing=None,
        clip_skip=0,
        extended=False,
    ):
        prompts = list_prompts(prompt)
        self.check_text_only()
        sampler = self.config.sampler if sampler is None else sampler
        check_settings(sampler, latent, spacing, clip_skip, extended)
        cfg_scale = self.config.cfg_scale if cfg_scale is None else cfg_scale
        check_model(self, steps, cfg_scale)
        width = self.config.size if width is None else width
        height = self.config.size if height is None else height
        check_size(width, height, self.config)
        seeds, factor = check_seeds(seed, len(prompts)), self.config.vae.factor
        size = (height // factor, width // factor)
        moves = answer(self, prompts, negative_prompt, steps, cfg_scale, seeds, *size)
        return as_steps(moves, self.schedule.sigmas)

    return txt2img_steps


def as_steps(moves, sigmas):
    """What the answer yields, as Steps."""
    for index, (t, x0, eps, x) in enumerate(moves):
        yield Step(index, t, sigmas[t].item(), Prediction(x0, eps, None, None), x)


def check_settings(sampler, latent, spacing, clip_skip, extended):
    """Raise ValueError if a setting is not one of the answer's arguments."""
    reasons = {
        "draws with DDIM only. Leave out --sampler.": sampler != "ddim",
        "draws its noise from a seed. Leave out latent.": latent is not None,
        "has its own noise levels. Leave out --spacing.": spacing is not None,
        "uses all layers of the text transformer. Leave out --clip-skip.": clip_skip != 0,
        "does not read weights or long prompts. Leave out --extended.": extended,
    }
    for reason in [words for words, holds in reasons.items() if holds]:
        raise ValueError(f"your own txt2img {reason}")


def check_model(sd, steps, cfg_scale):
    """Raise ValueError if the answer cannot draw with this model, or with these numbers."""
    config, most = sd.config.schedule, sd.config.schedule.timesteps - 1
    usual = (None, False, "eps", False)
    rules = (config.spacing, config.zero_terminal_snr, config.prediction, config.set_alpha_to_one)
    if rules not in (usual, (*usual[:3], None)):
        raise ValueError(f"your own txt2img cannot draw with {sd.config.name}. Use the mini.")
    if sd.guides:
        raise ValueError("your own txt2img has no classifier guidance. Leave out --classifier.")
    if not isfinite(cfg_scale):
        raise ValueError(f"cfg_scale must be a finite number, got {cfg_scale}.")
    if not 1 <= steps <= most:
        raise ValueError(f"your own txt2img takes 1 to {most} steps, got {steps}.")


def inputs(b, timesteps, steps, height, width):
    def draw(g):
        alpha_bar = 0.985 * (0.9**2) ** (torch.arange(timesteps) / timesteps * 12).double()
        prompts = [draw_text(g, 7 + i) for i in range(b)]
        seeds = [draw_seed(g) for _ in range(b)]
        model = Made("model", {"gain": 3.0, "alpha_bar": alpha_bar})
        scale = 2.5 + normal(g, 1).abs().item()
        return [model, prompts, draw_text(g, 8), steps, scale, seeds, height, width]

    return draw


EXERCISE = Exercise(
    name="txt2img_latents",
    lesson="10",
    place=4,
    title="The whole of text-to-image",
    question=(
        "Write text-to-image from prompts to latents. `sd` holds the trained text transformer "
        "(`sd.embed`), the trained U-Net (`sd.unet`), and the table `sd.schedule.alpha_bar`. "
        "You write the rest:\n\n"
        "1. With T entries in the table, stride = T // steps. The network runs at t = 1 + "
        "stride * k for k = steps - 1 … 0, the largest t first. The last step ends at t = 0, "
        "where a little noise is left.\n"
        "2. Embed the negative prompt (b times) and the b prompts.\n"
        "3. Draw x with `starting_noise(seeds, channels, height, width)`. Give it the dtype "
        "and the device of the contexts: `.to(context)`.\n"
        "4. In each step, compute eps with `guided_eps(network, x, t, uncond_context, "
        "context, scale)`, and x0 from x and eps. Then DDIM makes the new x: it combines x0 "
        "and eps again, with the two rates of the next t. The signal rate is the square root "
        "of alpha_bar, and the noise rate is the square root of 1 - alpha_bar.\n\n"
        "Yield t, x0, eps and the new x in each step: `yield t, x0, eps, x`."
    ),
    solution=txt2img_latents,
    stages=(
        Stage("one prompt, one step", 1, inputs(1, 40, 1, 2, 3)),
        Stage("one prompt, 6 steps", 2, inputs(1, 50, 6, 2, 3)),
        Stage("3 prompts, 7 steps", 3, inputs(3, 60, 7, 5, 3)),
    ),
    hints=(
        "Make the list of all t first, with the 0 at its end. pairwise(ts) gives each t with the "
        "next one.",
        "sd.embed([negative_prompt] * len(prompts) + prompts).chunk(2) gives both contexts. x0 = "
        "(x - noise_rate * eps) / signal_rate.",
        "The loop has four lines: eps = guided_eps(sd.unet, x, t, …); x0 = …; x = "
        "alpha_bar[next_t].sqrt() * x0 + (1 - alpha_bar[next_t]).sqrt() * eps; yield t, x0, eps, "
        "x.",
    ),
    mistakes={
        "The last step ends without noise. It should end at t = 0, where a little is left.": (
            end_clean
        ),
        "The last step is missing: it goes from t = 1 to t = 0.": forget_last_step,
        "Your t are too small by 1. They should be 1 + stride * k.": vary(
            ts=lambda table, steps: [*(t - 1 for t in leading(table, steps)[:-1]), 0]
        ),
        "Your largest t is T - 1. It should be 1 + stride * (steps - 1).": vary(
            ts=lambda table, steps: [
                *(len(table) - 1 - len(table) // steps * k for k in range(steps)),
                0,
            ]
        ),
        "Your t rise. Begin with the largest t.": vary(
            ts=lambda table, steps: [*reversed(leading(table, steps)[:-1]), 0]
        ),
        "The negative prompt is not used. You embedded the empty text.": vary(
            words=lambda negative, prompts: [""] * len(prompts) + prompts
        ),
        "The contexts are swapped: uncond_context is the one of the negative prompt.": vary(
            words=lambda negative, prompts: prompts + [negative] * len(prompts)
        ),
        "All samples start from the noise of the first seed.": vary(
            start=lambda x, seeds, table: x[:1].expand(x.shape)
        ),
        "Do not multiply the starting noise. For DDIM, its variance is 1.": vary(
            start=lambda x, seeds, table: x * ((1 - table[-1]) / table[-1]).sqrt()
        ),
        "The network reads the next t. It must read the t of this x.": vary(
            read_t=lambda t, next_t: next_t
        ),
        "The square roots are missing: the rates are the roots of alpha_bar and 1 - alpha_bar.": (
            vary(step=no_roots)
        ),
        "The new x has the rates of this t. It needs the rates of the next t.": vary(
            step=lambda x, eps, now, after: (take_step(x, eps, now, now)[0], x)
        ),
        "The new x has no noise. Add eps again, with the noise rate of the next t.": vary(
            step=lambda x, eps, now, after: (
                take_step(x, eps, now, after)[0],
                after.sqrt() * take_step(x, eps, now, after)[0],
            )
        ),
        "The new x is the guess x0. DDIM adds the noise of the next t again.": vary(
            step=lambda x, eps, now, after: (take_step(x, eps, now, after)[0],) * 2
        ),
        "You subtracted all the noise at every step. Go to the noise of the next t instead.": vary(
            step=lambda x, eps, now, after: (take_step(x, eps, now, after)[0], x - eps)
        ),
        "The rates are swapped in the new x: the signal rate belongs to x0.": vary(
            step=lambda x, eps, now, after: (
                take_step(x, eps, now, after)[0],
                take_step(x, eps, now, 1 - after)[1],
            )
        ),
        "Yield the new x, not the x with which the step began.": yield_before,
        "Yield four things in each step: t, x0, eps and the new x.": only_x,
        "There is no guidance. Pass cfg_scale to guided_eps.": without_guidance,
        "x is in float32. Give it the dtype of the contexts.": stay_in_float32,
    },
    passing=(
        "This is text-to-image, and it is yours. `minisd mine` shows which of the parts that it "
        "calls are still ours."
    ),
    difficulty=4,
    minutes=40,
    needs=("guided_eps", "starting_noise", "embed_both"),
    given=(
        "from itertools import pairwise\n\n"
        "from minisd.exercises.parts import guided_eps, starting_noise"
    ),
    replaces={"minisd.pipeline.StableDiffusion.txt2img_steps": as_method},
    draw=draw_cat,
    in_lesson=True,
)
