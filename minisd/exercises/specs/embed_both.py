"""The contexts of the prompts and of the negative prompt."""

import torch

from minisd import guidance
from minisd.exercises.calls import Made
from minisd.exercises.exercise import Exercise, Stage
from minisd.exercises.specs.push_away import draw_without_red


def embed_both(embed, prompts, negative_prompt):
    """Embed a negative prompt and the prompts of a batch together.

    embed: embed(texts) -> context, for a list of texts. Its m may depend on the longest text
    prompts: a list of b texts    negative_prompt: one text, the same for all prompts
    returns: the negative context and the context of the prompts, b m d each
    """
    texts = [negative_prompt] * len(prompts) + prompts
    contexts = embed(texts)
    return contexts[: len(prompts)], contexts[len(prompts) :]


def embed_apart(embed, prompts, negative_prompt):
    return embed([negative_prompt] * len(prompts)), embed(prompts)


def swap_halves(embed, prompts, negative_prompt):
    return embed_both(embed, prompts, negative_prompt)[::-1]


def negative_once(embed, prompts, negative_prompt):
    contexts = embed([negative_prompt, *prompts])
    return contexts[:1], contexts[1:]


def empty_prompt(embed, prompts, negative_prompt):
    return embed_both(embed, prompts, "")


def alternate(embed, prompts, negative_prompt):
    contexts = embed([negative_prompt] * len(prompts) + prompts)
    return contexts[::2], contexts[1::2]


def join_texts(embed, prompts, negative_prompt):
    return embed_both(embed, [f"{prompt} {negative_prompt}" for prompt in prompts], negative_prompt)


def first_prompt(embed, prompts, negative_prompt):
    return embed_both(embed, [prompts[0]] * len(prompts), negative_prompt)


def not_split(embed, prompts, negative_prompt):
    return embed([negative_prompt] * len(prompts) + prompts)


def cut_tokens(embed, prompts, negative_prompt):
    return embed([negative_prompt] * len(prompts) + prompts).chunk(2, dim=1)


def in_denoiser(answer):
    """The core's denoiser, with the contexts of the answer."""

    def denoiser(self, prompts, negative_prompt="", cfg_scale=None, **others):
        uncond, cond = answer(self.embed, prompts, negative_prompt)
        cfg_scale = self.config.cfg_scale if cfg_scale is None else cfg_scale
        return guidance.guided_denoiser(self.unet, "eps", cond, uncond, cfg_scale)

    return denoiser


def draw_text(generator, letters):
    """A text of random letters."""
    codes = torch.randint(97, 123, (letters,), generator=generator)
    return "".join(chr(code) for code in codes.tolist())


def inputs(negative, *lengths):
    def draw(g):
        prompts = [draw_text(g, letters) for letters in lengths]
        return [Made("embed", {}), prompts, draw_text(g, negative)]

    return draw


EXERCISE = Exercise(
    name="embed_both",
    lesson="10",
    place=2,
    title="Two contexts from one run",
    question=(
        "Guidance needs the context of each prompt, and the context of the negative prompt. One "
        "run of the text transformer computes all of them. It also gives all of them the same "
        "number of tokens: the longest text of a run may decide this number. Write "
        "`embed_both(embed, prompts, negative_prompt)`. Call `embed` once, with a list of 2b "
        "texts: b times the negative prompt, then the b prompts. Return the two halves."
    ),
    solution=embed_both,
    stages=(
        Stage("one prompt", 1, inputs(5, 9)),
        Stage("three prompts", 1, inputs(4, 6, 11, 8)),
        Stage("the negative prompt is the longest", 1, inputs(12, 7, 3)),
    ),
    hints=(
        "In Python, a list can be multiplied by a number, and two lists can be added.",
        "[negative_prompt] * len(prompts) + prompts is the list of texts.",
        "contexts = embed(texts) has 2b contexts. contexts.chunk(2) cuts them into two halves.",
    ),
    mistakes={
        "embed runs twice, so the contexts may differ in length. Call it once.": embed_apart,
        "Return the negative context first.": swap_halves,
        "The negative prompt is in the list once. Each prompt needs its own.": negative_once,
        "You embedded the empty text in place of the negative prompt.": empty_prompt,
        "You took every second context. Cut the batch in the middle.": alternate,
        "You appended the negative prompt to the prompts. It is a text of its own.": join_texts,
        "All samples have the first prompt.": first_prompt,
        "Return two tensors: the two halves of the contexts.": not_split,
        "You cut the tokens. Cut the batch, which is axis 0.": cut_tokens,
    },
    passing="The U-Net reads both contexts at every step. They are computed only once.",
    difficulty=1,
    minutes=8,
    in_picture={"minisd.pipeline.StableDiffusion.denoiser": in_denoiser},
    draw=draw_without_red,
)
