"""Measure the mini: how many of its pictures are right, where its attention goes, and its speed.

docs/make/mini_report.py writes the numbers that evaluate() returns into docs/mini.md.
"""

import io
import timeit
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import dist, isqrt
from statistics import mean

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from tqdm import tqdm

from minisd.adapters.classifier import LatentClassifier
from minisd.config import WEIGHTS
from minisd.mini.captions import SPOTS, SYNONYMS, Scene, full_caption
from minisd.mini.emoji import Emoji
from minisd.mini.judge import Judge, Seen, accuracy, look, nearest_colour
from minisd.mini.scenes import LARGE_WIDTH, SMALL_WIDTH, SPLITS, batch
from minisd.pipeline import StableDiffusion
from minisd.schedule import Schedule
from minisd.tokenizer import Tokenizer
from minisd.trace import trace
from minisd.training.loop import generator_at
from minisd.training.vae import psnr
from minisd.vae import VAE

SEED = 2  # of the scenes. Training uses 0, and the latent scale is measured with 1
DDIM_STEPS = 20
CFG_SCALES = (0, 1, 3, 5, 7.5)  # the scale in the config is measured, too
DRAWN_AT_ONCE = 64  # pictures
BORDER = 2  # px: the width of the border from which backgrounds() takes the colour
# A pixel belongs to the thing if it differs from the background by more than this number. The
# values of pixels go from -1 to 1.
DIFFERS = 0.3
ASPECTS = ("background", "thing", "style", "tint", "two things", "small thing")


@dataclass(frozen=True, eq=False)
class Judged:
    """A picture, its scene, the judge's answers, and which aspects of the picture are right.

    image: 3 h w
    scene: what the picture should show
    seen: the judge's answers, one for each thing of the scene
    background: the name of the background colour that was found in the picture
    right: aspect (see ASPECTS) -> list of verdicts. A verdict is True if the aspect is right. If
        the scene does not have the aspect, for example a tint, the list is empty
    """

    image: Tensor
    scene: Scene
    seen: list[Seen]
    background: str
    right: dict[str, list[bool]]

    @property
    def is_right(self) -> bool:
        return all(map(all, self.right.values()))


def backgrounds(images: Tensor) -> Tensor:
    """The background colour of each picture: the median over the border. b 3 h w -> b 3"""
    border = torch.ones(images.shape[2:], dtype=torch.bool)
    border[BORDER:-BORDER, BORDER:-BORDER] = False
    return images[:, :, border].median(dim=2).values


def silhouettes(images: Tensor) -> Tensor:
    """Mark the pixels that differ from the background. b 3 h w -> b h w, true or false"""
    away = images - rearrange(backgrounds(images), "b c -> b c 1 1")
    return away.abs().amax(dim=1) > DIFFERS


def is_at_spot(silhouette: Tensor, spot: str) -> bool:
    """Whether the drawn thing is small, and closer to this spot than to any other spot.

    silhouette: h w, true where the thing is
    """
    size = len(silhouette)
    if not silhouette.any():
        return False
    down, right = ((silhouette.nonzero() + 0.5) / size).mean(dim=0).tolist()
    nearest = min(SPOTS, key=lambda name: dist(SPOTS[name][0], (right, down)))
    widest = max(silhouette.any(dim=0).sum().item(), silhouette.any(dim=1).sum().item())
    return nearest == spot and widest < size * (SMALL_WIDTH + LARGE_WIDTH) / 2


def check_scene(
    scene: Scene, seen: list[Seen], background: str, silhouette: Tensor
) -> dict[str, list[bool]]:
    """Decide which aspects of a picture are right. Returns a dictionary: aspect -> verdicts.

    A verdict is True if the aspect is right. The list of verdicts is empty if the scene does not
    have the aspect. For "tint", there is one verdict for each tinted thing. A tint is right only if
    the thing is right, too.

    scene: what the picture should show
    seen: the judge's answers, one for each thing of the scene
    background: the name of the picture's background colour
    silhouette: h w, true where the picture differs from its background
    """
    known = [one.thing == thing for one, thing in zip(seen, scene.things, strict=True)]
    rows = zip(known, seen, scene.tints, strict=True)
    return {
        "background": [background == scene.background],
        "thing": [all(known)],
        "style": [all(one.style == scene.style for one in seen)],
        "tint": [right and one.tint == tint for right, one, tint in rows if tint],
        "two things": [all(known)] if len(known) == 2 else [],
        "small thing": [all(known) and is_at_spot(silhouette, scene.spot)] if scene.spot else [],
    }


def examine(judge: Judge, images: Tensor, scenes: list[Scene]) -> list[Judged]:
    """Compare each picture with the scene that it should show. images: b 3 h w"""
    found = []
    for first in range(0, len(scenes), DRAWN_AT_ONCE):
        some, asked = images[first : first + DRAWN_AT_ONCE], scenes[first : first + DRAWN_AT_ONCE]
        shades = ((backgrounds(some) + 1) * 127.5).numpy()
        rows = zip(some, asked, look(judge, some, asked), shades, silhouettes(some), strict=True)
        for image, scene, seen, shade, silhouette in rows:
            background = nearest_colour(shade)
            right = check_scene(scene, seen, background, silhouette)
            found.append(Judged(image, scene, seen, background, right))
    return found


def shares(judged: list[Judged]) -> dict[str, float]:
    """Compute the share of right verdicts. Returns a dictionary: aspect -> share.

    The dictionary has one more key: "pictures" -> the number of pictures.
    """
    found: dict[str, float] = {"pictures": len(judged)}
    for aspect in ASPECTS:
        verdicts = [one for each in judged for one in each.right[aspect]]
        if verdicts:
            found[aspect] = sum(verdicts) / len(verdicts)
    return found


def draw_scenes(sd: StableDiffusion, scenes: list[Scene], cfg_scale: float) -> Tensor:
    """Draw one picture for each scene. The prompt is the full caption. returns: b 3 h w"""
    return draw_prompts(sd, [full_caption(scene) for scene in scenes], cfg_scale)


@torch.no_grad()
def draw_prompts(sd: StableDiffusion, prompts: list[str], cfg_scale: float) -> Tensor:
    """Draw one picture for each prompt, with the seeds 0, 1, 2 … returns: b 3 h w"""
    images = []
    firsts = range(0, len(prompts), DRAWN_AT_ONCE)
    for first in tqdm(firsts, desc=row_name(cfg_scale), mininterval=5):
        some = prompts[first : first + DRAWN_AT_ONCE]
        *_, step = sd.txt2img_steps(some, "", DDIM_STEPS, cfg_scale, "ddim", seed=first)
        images.append(sd.decode(step.x).clamp(-1, 1))
    return torch.cat(images)


@torch.no_grad()
def round_trip(sd: StableDiffusion, images: Tensor) -> Tensor:
    """Encode and decode the pictures. The results show how much the VAE blurs. b 3 h w"""
    parts = [sd.decode(sd.encode(some)).clamp(-1, 1) for some in images.split(DRAWN_AT_ONCE)]
    return torch.cat(parts)


def judge_split(
    sd: StableDiffusion, judge: Judge, emoji: Emoji, split: str, count: int, others: int
) -> dict[str, list[Judged]]:
    """Judge pictures of scenes from one split. Returns a dictionary: source -> judged pictures.

    There are pictures of the same scenes from several sources:
    "real": pictures composed from emoji
    "autoencoder": the composed pictures, encoded and decoded
    "scale 1", "scale 3" …: pictures that the model draws with this guidance scale

    split: "train" or "heldout"
    count: number of scenes. "real", "autoencoder" and the config's scale have as many pictures
    others: number of pictures for each guidance scale that is not the config's
    """
    real = batch(emoji, sd.config.size, count, SEED, step=0, split=split)
    rows = {"real": examine(judge, real.images, real.scenes)}
    rows["autoencoder"] = examine(judge, round_trip(sd, real.images), real.scenes)
    for scale in sorted({*CFG_SCALES, sd.config.cfg_scale}):
        scenes = real.scenes[: count if scale == sd.config.cfg_scale else others]
        rows[row_name(scale)] = examine(judge, draw_scenes(sd, scenes, scale), scenes)
    return rows


def row_name(scale: float) -> str:
    return f"scale {scale:g}"


# ---- the classifier of noisy latents


@torch.no_grad()
def accuracy_per_t(
    classifier: LatentClassifier,
    latents: Tensor,
    labels: Tensor,
    schedule: Schedule,
    ts: Sequence[int],
) -> dict[int, float]:
    """Measure the classifier at several timesteps. Returns a dictionary: t -> accuracy.

    The accuracy is the share of latents whose thing the classifier names correctly. The same noise
    is added at every t, but its strength depends on t.

    latents: n 4 h w, without noise, multiplied by the VAE's scale. All latents form one batch, so
        pass in a few thousand at most
    labels: n, indices of the right things
    """
    x0 = latents.float()
    noise = torch.randn(x0.shape, generator=generator_at(0, 0))
    shares = {}
    for t in ts:
        x = schedule.add_noise(x0, noise, t)
        logits = classifier(x, torch.full((len(x),), t))
        shares[t] = (logits.argmax(dim=1) == labels).float().mean().item()
    return shares


# ---- attention maps: which places of the picture attend to which word


@torch.no_grad()
def word_maps(sd: StableDiffusion, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Draw pictures. Returns the pictures, and an average cross-attention map for each token.

    The average is over all heads, all layers and all steps. First, each map is enlarged to the size
    of the latent. CFG also runs the U-Net without the prompt. The maps of these runs do not count.
    At each place, the 77 maps of a picture sum to 1.

    returns: pictures, b 3 h w; maps, b 77 h/8 w/8
    """
    total, added = torch.zeros(()), 0
    with trace(sd, "unet.*.cross.weights") as seen:
        for step in sd.txt2img_steps(prompts, "", DDIM_STEPS, sampler="ddim"):
            for (weights,) in seen.values():  # each step calls each layer once
                # the half without the prompt comes first
                with_prompt = weights[-len(prompts) :].mean(dim=1)
                height = isqrt(weights.shape[2])
                grid = rearrange(with_prompt, "b (h w) m -> b m h w", h=height)
                total, added = total + F.interpolate(grid, step.x.shape[2:]), added + 1
            seen.clear()
    return sd.decode(step.x).clamp(-1, 1), total / added


def roles(scene: Scene, tokenizer: Tokenizer) -> dict[str, list[int]]:
    """Find out which of the 77 tokens belong to which part of the scene's full caption.

    Returns a dictionary: role -> positions of the tokens. A role is a part of the caption, such as
    "style", "thing" or "padding". The scene must show only one thing.
    """
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
    """The intersection over union of a silhouette and the places of the k largest weights.

    k is the number of places in the silhouette.

    weights, silhouette: h w
    """
    k = int(silhouette.sum())
    strongest = weights.flatten().topk(k).indices
    common = silhouette.flatten()[strongest].sum().item()
    return common / (2 * k - common)


def measure_attention(sd: StableDiffusion, emoji: Emoji, count: int) -> dict[str, dict[str, float]]:
    """Measure how much attention each part of the caption receives, and at which places.

    Returns one dictionary for each of three measures: role -> mean over all pictures that have this
    role. A role is a part of the caption, such as "style" (see roles()). The measures are:
    "share": the share of all attention that the role's tokens receive. It is 0 in a picture without
        the role, and all pictures count, so the shares of all roles sum to 1
    "overlap": the overlap of the role's attention map with the silhouette of the drawn thing
    "behind": the overlap of the role "thing" minus the overlap of this role, in the same picture

    The scenes come from the held-out split, and each scene shows one large thing. A place of the
    latent belongs to the silhouette if the thing covers at least half of the place. For comparison,
    "overlap" has one more role, "by chance": the overlap that random places would have.

    count: number of pictures
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
    pictures = len(found["share"]["begin"])  # every picture has this role
    means = {name: {role: mean(rows[role]) for role in rows} for name, rows in found.items()}
    means["share"] = {role: sum(some) / pictures for role, some in found["share"].items()}
    return means


# ---- word vectors


@torch.no_grad()
def word_vectors(sd: StableDiffusion, words: list[str]) -> dict[str, Tensor]:
    """Compute three kinds of vectors for words. Returns a dictionary: kind -> vectors, n c.

    "embeddings": the mean of the embeddings of the word's tokens
    "contexts": the text encoder's output for "a WORD", at the last token of the word
    "contexts less their mean": the contexts, minus the mean of all contexts

    All contexts have a large part in common, so any two contexts are similar (Ethayarajh 2019).
    Subtracting the mean removes the common part. The rest differs from word to word.
    """
    table = sd.text_encoder.token_embedding.weight
    embeddings = [table[sd.tokenizer.encode(word)].mean(dim=0) for word in words]
    phrases = [f"a {word}" for word in words]
    last = [len(sd.tokenizer.encode(phrase)) for phrase in phrases]  # position 0: begin token
    contexts = sd.embed(phrases)[torch.arange(len(words)), last]
    vectors = {"embeddings": torch.stack(embeddings), "contexts": contexts}
    return vectors | {"contexts less their mean": contexts - contexts.mean(dim=0)}


def likeness(vectors: Tensor, words: list[str], things: tuple[str, ...]) -> dict[str, float]:
    """Measure how similar the vectors of synonyms are, compared with vectors of different things.

    Returns a dictionary with three numbers:
    "synonyms": the mean cosine similarity of pairs of synonyms
    "unrelated": the mean cosine similarity of pairs of different things
    "gap": "synonyms" minus "unrelated"

    vectors: n c, one for each of n words
    """
    unit = dict(zip(words, F.normalize(vectors.float(), dim=1), strict=True))
    pairs = [(word, other) for word in SYNONYMS if word in unit for other in SYNONYMS[word]]
    similar = mean((unit[a] @ unit[b]).item() for a, b in pairs)
    unrelated = mean((unit[a] @ unit[b]).item() for a, b in combinations(things, 2))
    return {"synonyms": similar, "unrelated": unrelated, "gap": similar - unrelated}


def measure_synonyms(sd: StableDiffusion, emoji: Emoji) -> dict[str, dict[str, float]]:
    """Measure how similar the vectors of synonyms are, for each kind of vector.

    Returns a dictionary: kind (see word_vectors()) -> the result of likeness() for this kind.
    """
    others = [other for word in SYNONYMS for other in SYNONYMS[word]]
    words = list(dict.fromkeys([*emoji.things, *SYNONYMS, *others]))
    vectors = word_vectors(sd, words)
    return {name: likeness(vectors[name], words, emoji.things) for name in vectors}


# ---- speed


def fastest_of_three(action: Callable[[], object]) -> float:
    """Run the action once to warm up, then three times. Returns the seconds of the fastest run."""
    return min(timeit.repeat(action, number=1, repeat=4)[1:])


def seconds_per_picture(sd: StableDiffusion, count: int) -> float:
    """Draw `count` pictures at once. Returns the seconds per picture, from prompt to PNG."""

    def draw_all() -> None:
        pictures = sd.txt2img(["a cat on a blue background"] * count, steps=DDIM_STEPS)
        assert isinstance(pictures, list)
        for picture in pictures:
            picture.save(io.BytesIO(), "PNG")

    return fastest_of_three(draw_all) / count


def evaluate(
    sd: StableDiffusion,
    judge: Judge,
    emoji: Emoji,
    count: int = 1000,
    others: int = 250,
    fine_tuned: VAE | None = None,
) -> tuple[dict, dict[str, dict[str, list[Judged]]]]:
    """Measure the mini. Returns all measured numbers, ready for JSON, and the judged pictures.

    The judged pictures are a dictionary for each split: source -> pictures (see judge_split()).

    count: number of pictures with the guidance scale of the config
    others: number of pictures with each other guidance scale
    fine_tuned: the model's autoencoder with a better decoder. Its PSNR is measured as well. None:
        only the PSNR of the model's own autoencoder is measured
    """
    unseen = batch(emoji, sd.config.size, 1024, SEED, step=0, split="heldout").images
    vaes = {"model": sd.vae} | ({"fine-tuned": fine_tuned} if fine_tuned else {})
    judged = {split: judge_split(sd, judge, emoji, split, count, others) for split in SPLITS}
    figures = {
        "settings": {"seed": SEED, "steps": DDIM_STEPS, "cfg_scale": sd.config.cfg_scale},
        "psnr": {name: psnr(vae, unseen) for name, vae in vaes.items()},
        "judge": accuracy(judge, emoji),
        "right": {
            split: {name: shares(row) for name, row in rows.items()}
            for split, rows in judged.items()
        },
        "attention": measure_attention(sd, emoji, min(count, 128)),
        "synonyms": measure_synonyms(sd, emoji),
        "seconds": {"alone": seconds_per_picture(sd, 1), "of 16": seconds_per_picture(sd, 16)},
        "megabytes": {
            "mini": (WEIGHTS / "mini.safetensors").stat().st_size / 1e6,
            "all weights": sum(f.stat().st_size for f in WEIGHTS.rglob("*") if f.is_file()) / 1e6,
        },
    }
    return figures, judged
