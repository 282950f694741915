"""How good the mini model is, in figures: what it draws, where it looks, what it takes.

Nothing here is typed in: sheets.py makes docs/mini.md of what evaluate() returns.
"""

import io
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from math import dist, isqrt
from statistics import mean

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from tqdm import tqdm

from minisd.config import WEIGHTS
from minisd.mini.captions import SPOTS, SYNONYMS, Scene, full_caption
from minisd.mini.emoji import LARGE, LITTLE, SPLITS, Emoji, batch
from minisd.mini.judge import Judge, Seen, accuracy, look, nearest_colour
from minisd.pipeline import StableDiffusion
from minisd.tokenizer import Tokenizer
from minisd.trace import trace
from minisd.training.vae import psnr
from minisd.vae import VAE

SEED = 2  # of the scenes to draw: training composes with 0, the latent scale is measured with 1
STEPS = 20  # of DDIM
SCALES = (0, 1, 3, 5, 7.5)  # of guidance; the config's own besides
BATCH = 64
BORDER = 2  # px
DIFFERS = 0.3  # of a range of 2: a pixel this far from the background is part of the thing
ASPECTS = ("background", "thing", "style", "tint", "two things", "small thing")


@dataclass(frozen=True, eq=False)
class Judged:
    """A picture (3 h w), what it should show, what is seen in it, and what of that is right."""

    image: Tensor
    scene: Scene
    seen: list[Seen]
    background: str
    right: dict[str, list[bool]]  # aspect -> a verdict each time the scene asks for it

    @property
    def good(self) -> bool:
        return all(map(all, self.right.values()))


def grounds(images: Tensor) -> Tensor:
    """The background's colour: each channel's median over the border. b 3 h w -> b 3."""
    border = torch.ones(images.shape[2:], dtype=torch.bool)
    border[BORDER:-BORDER, BORDER:-BORDER] = False
    return images[:, :, border].median(dim=2).values


def silhouettes(images: Tensor) -> Tensor:
    """Where the picture is not its background. b 3 h w -> b h w, true or false."""
    away = images - rearrange(grounds(images), "b c -> b c 1 1")
    return away.abs().amax(dim=1) > DIFFERS


def in_place(silhouette: Tensor, spot: str) -> bool:
    """Whether what is drawn is at this spot and no other, and rather small than large.

    silhouette: h w
    """
    size = len(silhouette)
    if not silhouette.any():
        return False
    down, right = ((silhouette.nonzero() + 0.5) / size).mean(dim=0).tolist()
    nearest = min(SPOTS, key=lambda name: dist(SPOTS[name][0], (right, down)))
    widest = max(silhouette.any(dim=0).sum().item(), silhouette.any(dim=1).sum().item())
    return nearest == spot and widest < size * (LITTLE + LARGE) / 2


def verdict(
    scene: Scene, seen: list[Seen], background: str, silhouette: Tensor
) -> dict[str, list[bool]]:
    """What is right. A tint counts only on the right thing; where none is asked for, not at all."""
    known = [one.thing == thing for one, thing in zip(seen, scene.things, strict=True)]
    both = zip(known, seen, scene.tints, strict=True)
    return {
        "background": [background == scene.background],
        "thing": [all(known)],
        "style": [all(one.style == scene.style for one in seen)],
        "tint": [right and one.tint == tint for right, one, tint in both if tint],
        "two things": [all(known)] if len(known) == 2 else [],
        "small thing": [all(known) and in_place(silhouette, scene.spot)] if scene.spot else [],
    }


def examine(judge: Judge, images: Tensor, scenes: list[Scene]) -> list[Judged]:
    """Judge pictures by the scenes that they should show. images: b 3 h w."""
    found = []
    for first in range(0, len(scenes), BATCH):
        some, asked = images[first : first + BATCH], scenes[first : first + BATCH]
        shades = ((grounds(some) + 1) * 127.5).numpy()
        rows = zip(some, asked, look(judge, some, asked), shades, silhouettes(some), strict=True)
        for image, scene, seen, shade, silhouette in rows:
            background = nearest_colour(shade)
            right = verdict(scene, seen, background, silhouette)
            found.append(Judged(image, scene, seen, background, right))
    return found


def shares(judged: list[Judged]) -> dict[str, float]:
    """How often each aspect is right where it is asked for, and of how many pictures this tells."""
    found = {"pictures": len(judged)}
    for aspect in ASPECTS:
        verdicts = [one for each in judged for one in each.right[aspect]]
        if verdicts:
            found[aspect] = sum(verdicts) / len(verdicts)
    return found


def draw(sd: StableDiffusion, scenes: list[Scene], cfg_scale: float) -> Tensor:
    """A picture of each scene's full caption, as draw_prompts draws it."""
    return draw_prompts(sd, [full_caption(scene) for scene in scenes], cfg_scale)


@torch.no_grad()
def draw_prompts(sd: StableDiffusion, prompts: list[str], cfg_scale: float) -> Tensor:
    """A picture of each prompt, with the noise seeds 0, 1, 2 … b 3 h w."""
    images = []
    for first in tqdm(range(0, len(prompts), BATCH), desc=f"scale {cfg_scale:g}", mininterval=5):
        some = prompts[first : first + BATCH]
        for step in sd.txt2img_steps(some, "", STEPS, cfg_scale, "ddim", seed=first):
            latent = step.x
        images.append(sd.decode(latent).clamp(-1, 1))
    return torch.cat(images)


@torch.no_grad()
def round_trip(sd: StableDiffusion, images: Tensor) -> Tensor:
    """The pictures through the autoencoder: what it blurs, no diffusion can sharpen."""
    return torch.cat([sd.decode(sd.encode(some)).clamp(-1, 1) for some in images.split(BATCH)])


def table(
    sd: StableDiffusion, judge: Judge, emoji: Emoji, split: str, count: int, others: int
) -> dict[str, list[Judged]]:
    """Pictures of the split's scenes: real, through the autoencoder, and drawn at each scale.

    count: of pictures    others: at scales other than the config's
    """
    real = batch(emoji, sd.config.size, count, SEED, step=0, split=split)
    rows = {
        "real": examine(judge, real.images, real.scenes),
        "autoencoder": examine(judge, round_trip(sd, real.images), real.scenes),
    }
    for scale in sorted({*SCALES, sd.config.cfg_scale}):
        scenes = real.scenes[: count if scale == sd.config.cfg_scale else others]
        rows[row_name(scale)] = examine(judge, draw(sd, scenes, scale), scenes)
    return rows


def row_name(scale: float) -> str:
    return f"scale {scale:g}"


# Word maps: where the picture looks at which word.


@torch.no_grad()
def word_maps(sd: StableDiffusion, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Pictures, b 3 h w, and how much each place of the latent looked at each token, b 77 h/8 w/8.

    The average over heads, cross-attentions (coarser ones repeated) and steps, with the prompt, not
    without: at every place a picture's 77 maps sum to 1.
    """
    total, added = 0, 0
    with trace(sd, "unet.*.cross.weights") as seen:
        for step in sd.txt2img_steps(prompts, "", STEPS, sampler="ddim"):
            for weights in seen.values():
                with_prompt = weights[-len(prompts) :].mean(dim=1)  # those without came first
                height = isqrt(weights.shape[2])
                grid = rearrange(with_prompt, "b (h w) m -> b m h w", h=height)
                total, added = total + F.interpolate(grid, step.x.shape[2:]), added + 1
            seen.clear()
    return sd.decode(step.x).clamp(-1, 1), total / added


def roles(scene: Scene, tokenizer: Tokenizer) -> dict[str, list[int]]:
    """What each of the 77 positions holds of a lone thing's full caption: role -> positions."""
    named = {
        "style": scene.style,
        "tint": scene.tints[0] or "",
        "thing": scene.things[0],
        "colour": scene.background,
        "background": "background",
    }
    found: dict[str, list[int]] = {"begin": [0]}
    rest, at = full_caption(scene), 1
    for role, words in named.items():
        before, _, rest = rest.partition(words) if words else ("", "", rest)
        for name, text in (("other words", before), (role, words)):
            positions = range(at, at + len(tokenizer.encode(text)))
            found[name] = [*found.get(name, []), *positions]
            at = at + len(positions)
    found |= {"end": [at], "padding": list(range(at + 1, tokenizer.max_length))}
    return {role: positions for role, positions in found.items() if positions}


def overlap(weights: Tensor, silhouette: Tensor) -> float:
    """Intersection over union of a silhouette with the k strongest places, k its own area. h w."""
    k = int(silhouette.sum())
    strongest = weights.flatten().topk(k).indices
    both = silhouette.flatten()[strongest].sum().item()
    return both / (2 * k - both)


def attention(sd: StableDiffusion, emoji: Emoji, count: int) -> dict[str, dict[str, float]]:
    """For each role of a word: its share of all attention, its map's overlap with what was drawn,
    and how much less that is than the overlap of the thing's word in the same pictures ("behind").

    Of held-out, large, lone things; "by chance" is the overlap of places taken at random. The
    silhouette is the drawn picture's own, on the latent's grid: places at least half covered.
    """
    made = batch(emoji, sd.config.size, 2 * count, SEED, step=0, split="heldout").scenes
    scenes = [scene for scene in made if len(scene.things) == 1 and not scene.spot][:count]
    found = {name: defaultdict(list) for name in ("share", "overlap", "behind")}
    for first in range(0, len(scenes), 16):
        some = scenes[first : first + 16]
        images, maps = word_maps(sd, [full_caption(scene) for scene in some])
        covered = F.avg_pool2d(silhouettes(images).float(), sd.config.vae.factor) >= 0.5
        for scene, of_tokens, silhouette in zip(some, maps, covered, strict=True):
            area, places = silhouette.sum().item(), silhouette.numel()
            if not area:
                continue
            at = roles(scene, sd.tokenizer)
            looked = {role: of_tokens[positions].sum(dim=0) for role, positions in at.items()}
            overlaps = {role: overlap(weights, silhouette) for role, weights in looked.items()}
            for role in at:
                found["share"][role].append(looked[role].mean().item())
                found["overlap"][role].append(overlaps[role])
                found["behind"][role].append(overlaps["thing"] - overlaps[role])
            found["overlap"]["by chance"].append(area / (2 * places - area))
    return {name: {role: mean(rows[role]) for role in rows} for name, rows in found.items()}


# Words


@torch.no_grad()
def word_vectors(sd: StableDiffusion, words: list[str]) -> dict[str, Tensor]:
    """Each word's vector, three ways, n c: the mean of its tokens' embeddings; its context; the
    same less the mean context.

    The context is that of "a word", at the word's last token. Contexts have a large part in common,
    which makes any two of them look alike (Ethayarajh 2019); what is left tells words apart.
    """
    table = sd.text_encoder.token_embedding.weight
    embeddings = [table[sd.tokenizer.encode(word)].mean(dim=0) for word in words]
    phrases = [f"a {word}" for word in words]
    last = [len(sd.tokenizer.encode(phrase)) for phrase in phrases]  # the begin mark is 0
    contexts = sd.embed(phrases)[torch.arange(len(words)), last]
    centred = contexts - contexts.mean(dim=0)
    return {
        "embeddings": torch.stack(embeddings),
        "contexts": contexts,
        "contexts less their mean": centred,
    }


def likeness(vectors: Tensor, words: list[str], things: tuple[str, ...]) -> dict[str, float]:
    """The mean cosine of synonym pairs and of pairs of different things, and their gap.

    vectors: n c, of the words
    """
    unit = dict(zip(words, F.normalize(vectors.float(), dim=1), strict=True))
    pairs = [(word, other) for word in SYNONYMS if word in unit for other in SYNONYMS[word]]
    alike = sum(unit[a] @ unit[b] for a, b in pairs).item() / len(pairs)
    strangers = list(combinations(things, 2))
    unlike = sum(unit[a] @ unit[b] for a, b in strangers).item() / len(strangers)
    return {"synonyms": alike, "unrelated": unlike, "gap": alike - unlike}


def synonyms(sd: StableDiffusion, emoji: Emoji) -> dict[str, dict[str, float]]:
    """likeness() of the words' embeddings and of their contexts."""
    others = [other for word in SYNONYMS for other in SYNONYMS[word]]
    words = list(dict.fromkeys([*emoji.things, *SYNONYMS, *others]))
    vectors = word_vectors(sd, words)
    return {name: likeness(vectors[name], words, emoji.things) for name in vectors}


# What it takes


def fastest(action: Callable[[], object]) -> float:
    """Its seconds: the best of three runs, after a warm-up."""
    spent = []
    for _ in range(4):
        began = time.perf_counter()
        action()
        spent.append(time.perf_counter() - began)
    return min(spent[1:])


def seconds(sd: StableDiffusion, count: int) -> float:
    """For a picture out of `count` at once, prompt to PNG."""

    def draw_all() -> None:
        for picture in sd.txt2img(["a cat on a blue background"] * count, steps=STEPS):
            picture.save(io.BytesIO(), "PNG")

    return fastest(draw_all) / count


def evaluate(
    sd: StableDiffusion,
    judge: Judge,
    emoji: Emoji,
    count: int = 1000,
    others: int = 250,
    fine_tuned: VAE | None = None,
) -> tuple[dict, dict[str, dict[str, list[Judged]]]]:
    """All figures, ready for JSON, and the judged pictures they tell of: split -> row -> pictures.

    count: of pictures at the config's scale    others: at each other scale
    fine_tuned: the same autoencoder with a better decoder, if there is one
    """
    unseen = batch(emoji, sd.config.size, 1024, SEED, step=0, split="heldout").images
    vaes = {"model": sd.vae} | ({"fine-tuned": fine_tuned} if fine_tuned else {})
    judged = {split: table(sd, judge, emoji, split, count, others) for split in SPLITS}
    figures = {
        "settings": {"seed": SEED, "steps": STEPS, "cfg_scale": sd.config.cfg_scale},
        "psnr": {name: psnr(vae, unseen) for name, vae in vaes.items()},
        "judge": accuracy(judge, emoji),
        "right": {
            split: {name: shares(row) for name, row in rows.items()}
            for split, rows in judged.items()
        },
        "attention": attention(sd, emoji, min(count, 128)),
        "synonyms": synonyms(sd, emoji),
        "seconds": {"alone": seconds(sd, 1), "of 16": seconds(sd, 16)},
        "megabytes": {
            "mini": (WEIGHTS / "mini.safetensors").stat().st_size / 1e6,
            "all weights": sum(f.stat().st_size for f in WEIGHTS.rglob("*") if f.is_file()) / 1e6,
        },
    }
    return figures, judged
