"""The text that the AUTOMATIC1111 web UI writes into pictures, and that many programs read.

    a cat
    Negative prompt: blurry
    Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, Model hash: 6ce0161689, …

What is in it stands in its modules/processing.py (create_infotext), how values are quoted in its
modules/infotext_utils.py.
"""

import json
import re
from decimal import Decimal
from itertools import groupby
from pathlib import PurePath

import regex

from minisd.cli.drawing_options import SPACING_CHOICES
from minisd.files.json_files import parse_json

# Name: value, … *+ passes over a name without a colon at once: to look for a colon from every
# letter of a long line would take minutes.
PARAMETER = regex.compile(r'(\w[\w /-]*+)(?:: *("(?:[^"\\]|\\.)*"|[^,]*)(?:, *|$))?')
LONGEST_WEBUI_TEXT = 50_000  # characters of the text, as of any prompt
DIGITS = 10  # of a sha256, as the web UI shows it
FEWEST_PARAMETERS = 3  # parameters in the last line; with fewer it belongs to the prompt
TAG = re.compile(r"<(lora|hypernet):([^:>]+)(?::([^>]*))?>")
# Parts of a prompt that change while it draws, or are drawn apart: unknown here.
PROMPT_PROGRAMS = re.compile(r"\bAND\b|\bBREAK\b|\[[^\[\]:|]*[:|][^\[\]]*\]")

# Of a prompt: an escaped bracket, the end ":1.2)" of a weight, a bracket, or plain text.
WEIGHT_PATTERN = re.compile(
    r"(\\[\\()\[\]])|:\s*([+-]?[\d.]+)\s*\)|([()\[\]])|([^\\()\[\]:]+|.)", re.DOTALL
)
FACTOR = {"(": 1.1, "[": 1 / 1.1}
DEEPEST_PARENTHESES = 50  # brackets open at once: the words in them count 117 times

WEBUI_SAMPLERS = {  # the web UI's name -> ours
    "DDIM": "ddim",
    "PLMS": "plms",
    "LMS": "lms",
    "Euler": "euler",
    "Euler a": "euler_ancestral",
    "Heun": "heun",
    "DPM++ 2M": "dpmpp_2m",
}
WEBUI_NAMES = {ours: theirs for theirs, ours in WEBUI_SAMPLERS.items()}  # of others it has none
ONE_SPACING = ("DDIM", "PLMS")  # there always leading, which is our default for them
IGNORED_PARAMETERS = {
    "Version": "of the web UI",
    "User": "who drew it",
    "Batch size": "every picture of a batch has a seed of its own",
    "Batch pos": "every picture of a batch has a seed of its own",
    "TI hashes": "the words stand in the prompt",
    "Lora hashes": "the LoRAs stand in the prompt",
}
READ_PARAMETERS = (
    "Steps",
    "Sampler",
    "Schedule type",
    "CFG scale",
    "Seed",
    "Size",
    "Clip skip",
    "RNG",
)
MODEL_PARAMETERS = ("Model", "Model hash", "VAE", "VAE hash")


# ---- writing ---------------------------------------------------------------------------------


def parameters_text(about: dict) -> str:
    """The settings of a picture of ours, as the web UI would write them.

    about: see picture_settings.py
    """
    hashes = about.get("hashes", {})
    values = {
        "Steps": about["steps"],
        "Sampler": WEBUI_NAMES.get(about["sampler"], about["sampler"]),
        "Schedule type": schedule_type(about),
        "CFG scale": f"{about['cfg_scale']:g}",
        "Seed": about["seed"],
        "Size": f"{about['width']}x{about['height']}",
        "Model hash": hashes.get(about["model"], "")[:DIGITS],
        "Model": plain_name(about["model"]),
        "VAE hash": ", ".join(hashes.get(one, "")[:DIGITS] for one in about.get("vae", [])),
        "VAE": ", ".join(PurePath(one).name for one in about.get("vae", [])),
        "Denoising strength": about.get("strength"),
        "Clip skip": about["clip_skip"] + 1 if about.get("clip_skip") else None,
        "Lora hashes": ", ".join(
            f"{plain_name(one)}: {hashes.get(one, '')[:DIGITS]}" for one, _ in loras(about)
        ),
        "RNG": "CPU",
        "Version": f"minisd {about['minisd']}",
    }
    tags = [f"<lora:{plain_name(one)}:{scale:g}>" for one, scale in loras(about)]
    prompt = " ".join([to_a1111_syntax(about["prompt"], about), *tags])
    negative = to_a1111_syntax(about["negative_prompt"], about)
    lines = [prompt] + [f"Negative prompt: {negative}"] * bool(negative)
    said = {key: value for key, value in values.items() if value not in (None, "")}
    return "\n".join([*lines, ", ".join(f"{key}: {quote(value)}" for key, value in said.items())])


def quote(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search("[,\n:]", text) else text


def plain_name(source: str) -> str:
    """A file's name without folders and ending, nor what would divide the text."""
    return re.sub("[,:]", "", PurePath(source).stem)


def schedule_type(about: dict) -> str | None:
    """The web UI's word for the spacing of the noise levels; its DDIM and PLMS have but one."""
    own = None if about["sampler"] in ("ddpm", "ddim", "plms") else "uniform"
    spacing = about.get("spacing") or about.get("schedule") or own
    return spacing and spacing.capitalize()


def to_a1111_syntax(prompt: str, about: dict) -> str:
    """Where brackets are only brackets to us, they are escaped: to the web UI they are weights."""
    plain = r"([\[\]])" if about.get("extended") else r"([\\()\[\]])"
    return re.sub(plain, r"\\\1", prompt)


def loras(about: dict) -> list[tuple[str, float]]:
    from minisd.cli.adapter_options import split_scale

    return [split_scale(given) for given in about.get("lora", [])]


# ---- reading ---------------------------------------------------------------------------------


def parse_parameters(text: str) -> dict[str, str]:
    """Prompt, negative prompt and every parameter, by the web UI's names.

    Raises ValueError if the text has more than LONGEST_WEBUI_TEXT characters: each step below
    copies it, and a text from a stranger could fill the memory.
    """
    if len(text) > LONGEST_WEBUI_TEXT:
        raise ValueError(
            f"says how it was drawn in {len(text):,} characters, more than {LONGEST_WEBUI_TEXT:,}. "
            "Use another picture"
        )
    *lines, last = text.strip().split("\n")
    if len(parameters_in(last)) < FEWEST_PARAMETERS:
        lines, last = [*lines, last], ""
    prompts: dict[str, list[str]] = {"Prompt": [], "Negative prompt": []}
    current = "Prompt"
    for line in map(str.strip, lines):
        if line.startswith("Negative prompt:"):
            current, line = "Negative prompt", line.removeprefix("Negative prompt:").strip()
        prompts[current].append(line)
    found = {name: "\n".join(said) for name, said in prompts.items()}
    return found | {key: unquote(value) for key, value in parameters_in(last)}


def parameters_in(line: str) -> list[tuple[str, str]]:
    found = (match.groups() for match in PARAMETER.finditer(line))
    return [(name, value) for name, value in found if value is not None]


def unquote(value: str) -> str:
    try:
        return str(parse_json(value)) if value.startswith('"') else value.strip()
    except ValueError:
        return value


def settings_from_webui(text: str, given: set[str]) -> tuple[dict[str, object], list[str]]:
    """Our settings (see picture_settings.py) for the web UI's text, and what to be warned of.

    given: names of options on the command line, which make good for what we cannot read
    Raises ValueError, naming it, for what cannot be drawn here.
    """
    said = parse_parameters(text)
    for name, value in said.items():
        known = name in READ_PARAMETERS or name in MODEL_PARAMETERS or name in IGNORED_PARAMETERS
        if not known and name not in ("Prompt", "Negative prompt"):
            raise ValueError(f"was drawn with {name}: {value}, which minisd cannot do")
    absent = [name for name in ("Steps", "Sampler", "Seed") if name not in said]
    if absent:
        raise ValueError(f"does not say its {', '.join(absent)}")
    sampler, spacing = sampler_of(said)
    width, height = find_numbers(said.get("Size", "512x512"), r"(\d+)x(\d+)", "Size")
    settings = {
        "prompt": prompt_of(said["Prompt"], given),
        "negative_prompt": prompt_of(said["Negative prompt"], given),
        "steps": find_numbers(said["Steps"], r"(\d+)", "Steps")[0],
        "cfg_scale": float(
            find_numbers(said.get("CFG scale", "7"), r"([\d.]+)", "CFG scale", float)[0]
        ),
        "seed": find_numbers(said["Seed"], r"(-?\d+)", "Seed")[0],
        "sampler": sampler,
        "spacing": spacing,
        "width": width,
        "height": height,
        "clip_skip": find_numbers(said.get("Clip skip", "1"), r"(\d+)", "Clip skip")[0] - 1,
        "extended": True,  # it always reads (word:1.2)
    }
    if said.get("VAE") and "vae" not in given:
        raise ValueError(f"was drawn with the VAE {said['VAE']}: give that file with --vae")
    return settings | model_of(said, given), warnings_for(said)


def find_numbers(text: str, pattern: str, name: str, kind: type = int) -> list:
    match = re.fullmatch(pattern, text)
    try:
        return [kind(one) for one in match.groups()]
    except (AttributeError, ValueError) as error:
        raise ValueError(f"says {name}: {text}, which is no such value") from error


def sampler_of(said: dict[str, str]) -> tuple[str, str | None]:
    """The sampler and the spacing of its noise levels.

    Since version 1.9 they stand apart, and automatic means Karras for DPM++ 2M; before, the names
    of samplers end in Karras.
    """
    name = said["Sampler"].removesuffix(" Karras")
    if name not in WEBUI_SAMPLERS:
        raise ValueError(f"was drawn by {said['Sampler']}, a sampler that minisd lacks")
    spacing = "karras" if said["Sampler"] != name else said.get("Schedule type", "").lower()
    if spacing in ("", "automatic"):
        if name in ONE_SPACING:
            return WEBUI_SAMPLERS[name], None
        spacing = "karras" if spacing and name == "DPM++ 2M" else "uniform"
    if spacing not in SPACING_CHOICES:
        raise ValueError(f"was drawn with Schedule type: {spacing}, which minisd lacks")
    return WEBUI_SAMPLERS[name], spacing


def prompt_of(prompt: str, given: set[str]) -> str:
    """Without the tags of LoRAs, which options have to name here."""
    tags_end = prompt.rfind(">") + 1  # no "<" beyond it is worth a search for its ">"
    for kind, name, scale in TAG.findall(prompt[:tags_end]):
        option = "lora" if kind == "lora" else "hypernetwork"
        if option not in given:
            scaled = f":{scale}" if scale else ""
            raise ValueError(f"was drawn with {name}: give it with --{option} FILE{scaled}")
    if found := PROMPT_PROGRAMS.search(prompt):
        raise ValueError(f"has {found[0]} in its prompt, which minisd does not read")
    without_tags = TAG.sub("", prompt[:tags_end]) + prompt[tags_end:]
    return to_minisd_syntax(without_tags.strip())


def to_minisd_syntax(prompt: str) -> str:
    r"""Its weights written out: (a) counts 1.1 times, [a] a 1.1th, and they multiply.

    A bracket that is never closed reaches to the end; one that was never opened is a letter.

    Raises ValueError for more brackets in one another, and for a weight that is no number.

    >>> in_our_syntax(r"a ((big) cat:1.5) [far] \(here\)")
    'a (big:1.65)( cat:1.5) (far:0.9090909) \\(here\\)'
    """
    pieces: list[list] = []  # each a text and its weight
    opened: list[tuple[str, int]] = []  # brackets not yet closed, each with its place in pieces
    for escaped, number, bracket, text in WEIGHT_PATTERN.findall(prompt):
        kind = "(" if number or bracket in "()" else "["
        places = [at for which, at in opened if which == kind]
        if bracket in ("(", "["):
            opened.append((bracket, len(pieces)))
            if len(opened) > DEEPEST_PARENTHESES:
                raise ValueError(f"has more than {DEEPEST_PARENTHESES} brackets in one another")
        elif (bracket or number) and places:
            factor = weight_of(number) if number else FACTOR[kind]
            scale_weights(pieces[places[-1] :], factor)
            opened.remove((kind, places[-1]))
        else:
            pieces.append([escaped[1:] or text or bracket or f":{number})", 1.0])
    for kind, at in opened:
        scale_weights(pieces[at:], FACTOR[kind])
    weighted = ((words, f"{Decimal(f'{weight:.7g}'):f}") for words, weight in merge_pieces(pieces))
    return "".join(words if weight == "1" else f"({words}:{weight})" for words, weight in weighted)


def weight_of(number: str) -> float:
    try:
        return float(number)
    except ValueError as error:
        raise ValueError(f"has the weight {number[:20]} in its prompt, which is none") from error


def scale_weights(pieces: list[list], factor: float) -> None:
    for piece in pieces:
        piece[1] *= factor


def merge_pieces(pieces: list[list]) -> list[tuple[str, float]]:
    """Neighbours of one weight as one text, its parentheses escaped as we read them."""
    runs = groupby(pieces, key=lambda piece: piece[1])
    texts = [("".join(words for words, _ in run), weight) for weight, run in runs]
    return [(re.sub(r"([()])", r"\\\1", text), weight) for text, weight in texts]


def model_of(said: dict[str, str], given: set[str]) -> dict[str, str]:
    """The model by name: a published or shipped one of that hash, unless an option names it."""
    from minisd.checkpoints.registry import OFFICIAL, SHIPPED

    if "model" in given:
        return {}
    name, digest = said.get("Model", ""), said.get("Model hash", "")
    if name in SHIPPED:
        return {"model": name}
    if len(digest) == DIGITS:
        for one, file in OFFICIAL.items():
            if file.sha256 and file.sha256.startswith(digest):
                return {"model": one}
    model = f"{name} (hash {digest})" if digest else name or "a model that it does not name"
    raise ValueError(f"was drawn by {model}: give that file with --model")


def model_hash(text: str) -> str:
    """The first ten digits of the model's sha256; "" where it says none, or eight of another sum,
    as the web UI did until 2023.
    """
    digest = parse_parameters(text).get("Model hash", "")
    return digest if len(digest) == DIGITS else ""


def warnings_for(said: dict[str, str]) -> list[str]:
    if said.get("RNG") == "CPU":
        return []
    return [
        "the web UI drew this noise on a graphics card, and other numbers come from a CPU: "
        "the picture will be another one."
    ]
