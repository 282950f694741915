"""Writes and reads the text that the AUTOMATIC1111 web UI puts into pictures.

Many other programs read this text. An example:

    a cat
    Negative prompt: blurry
    Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, Model hash: 6ce0161689, …

Sources: two files of the web UI. modules/processing.py (create_infotext) decides what the text
holds. modules/infotext_utils.py decides how values are put in quotes.
"""

import json
import re
from contextlib import suppress
from decimal import Decimal
from itertools import groupby
from pathlib import PurePath
from typing import Any

import regex

from minisd.cli.drawing_options import SPACING_CHOICES
from minisd.files.json_files import parse_json

# Matches "Name: value, …". If no colon follows a name, the *+ gives up after one try. A plain *
# would look for the colon again after each letter of the name. On a long line, this takes minutes.
PARAMETER = regex.compile(r'(\w[\w /-]*+)(?:: *("(?:[^"\\]|\\.)*"|[^,]*)(?:, *|$))?')
LONGEST_WEBUI_TEXT = 50_000  # characters; the same limit as for a prompt
DIGITS = 10  # the web UI shows this many digits of a sha256
FEWEST_PARAMETERS = 3  # a last line with fewer parameters belongs to the prompt
TAG = re.compile(r"<(lora|hypernet):([^:>]+)(?::([^>]*))?>")
# Syntax that minisd does not read. [cat:dog:10] and [cat|dog] change the prompt from step to step.
# AND and BREAK divide the prompt into prompts that are computed separately.
PROMPT_PROGRAMS = re.compile(r"\bAND\b|\bBREAK\b|\[[^\[\]:|]*[:|][^\[\]]*\]")

# The pieces of a prompt: an escaped bracket, the end ":1.2)" of a weight, a bracket, plain text.
WEIGHT_PATTERN = re.compile(
    r"(\\[\\()\[\]])|:\s*([+-]?[\d.]+)\s*\)|([()\[\]])|([^\\()\[\]:]+|.)", re.DOTALL
)
FACTOR = {"(": 1.1, "[": 1 / 1.1}
DEEPEST_PARENTHESES = 50  # levels of brackets. A word in 50 parentheses has the weight 1.1^50 = 117

# The web UI's name of a sampler -> minisd's name.
WEBUI_SAMPLERS = {name: name.lower() for name in ("DDIM", "PLMS", "LMS", "Euler", "Heun")}
WEBUI_SAMPLERS |= {"Euler a": "euler_ancestral", "DPM++ 2M": "dpmpp_2m"}
# The web UI's LCM uses other noise levels than minisd's, so its pictures cannot be drawn again.
WEBUI_NAMES = {ours: theirs for theirs, ours in WEBUI_SAMPLERS.items()} | {"lcm": "LCM"}
# In the web UI, these samplers always use leading spacing. In minisd, leading spacing is only their
# default.
ONE_SPACING = ("DDIM", "PLMS")
# These parameters do not change the picture. Each picture of a batch has its own seed. The prompt
# holds the words of textual inversion, and names the LoRAs. "User" is the person who drew it.
IGNORED_PARAMETERS = {"Version", "User", "Batch size", "Batch pos", "TI hashes", "Lora hashes"}
KNOWN_PARAMETERS = {"Prompt", "Negative prompt", "Steps", "Sampler", "Schedule type", "CFG scale"}
KNOWN_PARAMETERS |= {"Seed", "Size", "Clip skip", "RNG", "Model", "Model hash", "VAE", "VAE hash"}
OTHER_NOISE = (
    "the web UI drew its noise on a graphics card. A CPU draws other numbers, so the picture "
    "will be different."
)


# ---- writing ---------------------------------------------------------------------------------


def parameters_text(about: dict) -> str:
    """Write the settings of a picture in the form of the web UI. Returns the text.

    about: the settings: name (see collect_settings() in picture_settings.py) -> value
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
    known = {key: value for key, value in values.items() if value not in (None, "")}
    return "\n".join([*lines, ", ".join(f"{key}: {quote(value)}" for key, value in known.items())])


def quote(value: object) -> str:
    """The value as text. A text with a comma, a colon or a line break is put in quotes."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search("[,\n:]", text) else text


def plain_name(source: str) -> str:
    """A file's name without folders, ending, commas and colons."""
    return re.sub("[,:]", "", PurePath(source).stem)


def schedule_type(about: dict) -> str | None:
    """The web UI's name for the spacing of the noise levels.

    If the sampler is DDPM, DDIM, PLMS or LCM, and no spacing was chosen, the result is None. The
    web UI has only one spacing for each of these samplers.
    """
    own = None if about["sampler"] in ("ddpm", "ddim", "plms", "lcm") else "uniform"
    spacing = about.get("spacing") or about.get("schedule") or own
    return spacing and spacing.capitalize()


def to_a1111_syntax(prompt: str, about: dict) -> str:
    r"""Put a backslash before each bracket that is plain text in minisd: "(" becomes "\(".

    Without the backslash, the web UI would read the brackets as weights.
    """
    plain = r"([\[\]])" if about.get("extended") else r"([\\()\[\]])"
    return re.sub(plain, r"\\\1", prompt)


def loras(about: dict) -> list[tuple[str, float]]:
    """The LoRAs of a picture, as pairs of file and scale."""
    from minisd.cli.adapter_options import split_scale

    return [split_scale(given) for given in about.get("lora", [])]


# ---- reading ---------------------------------------------------------------------------------


def parse_parameters(text: str) -> dict[str, str]:
    """Read the web UI's text. Returns a dictionary: name -> value.

    The names are "Prompt", "Negative prompt", and the parameters in the text, such as "Steps".

    Raises ValueError if the text has more than LONGEST_WEBUI_TEXT characters. Each step of this
    function copies the text, so a very long text from a stranger could fill the memory.
    """
    if len(text) > LONGEST_WEBUI_TEXT:
        raise ValueError(
            f"has settings of {len(text):,} characters, but at most {LONGEST_WEBUI_TEXT:,} are "
            "allowed: give another picture"
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
    found = {name: "\n".join(words) for name, words in prompts.items()}
    return found | {key: unquote(value) for key, value in parameters_in(last)}


def parameters_in(line: str) -> list[tuple[str, str]]:
    """The parameters of a line, as pairs of name and value."""
    found = (match.groups() for match in PARAMETER.finditer(line))
    return [(name, value) for name, value in found if value is not None]


def unquote(value: str) -> str:
    """Remove the quotes around a value. A value without quotes keeps its text."""
    try:
        return str(parse_json(value)) if value.startswith('"') else value.strip()
    except ValueError:
        return value


def settings_from_webui(text: str, given: set[str]) -> tuple[dict[str, Any], list[str]]:
    """Translate the web UI's text to minisd's settings. Returns the settings, and warnings.

    The settings are a dictionary: name (a key of PICTURE_SETTINGS in picture_settings.py) -> value.
    The warnings are a list of sentences.

    given: the names of the options on the command line. If one of these options gives a file, the
        file that the text names is not needed

    Raises ValueError if the text has a setting that minisd does not have, or if the text does not
    have all the settings that minisd needs. The caller puts the name of the picture before the
    message: "cat.png was drawn with …".
    """
    parameters = {"Size": "512x512", "CFG scale": "7", "Clip skip": "1"} | parse_parameters(text)
    for name, value in parameters.items():
        if name not in KNOWN_PARAMETERS and name not in IGNORED_PARAMETERS:
            raise ValueError(f"was drawn with {name}: {value}, which minisd does not have")
    absent = [name for name in ("Steps", "Sampler", "Seed") if name not in parameters]
    if absent:
        raise ValueError(f"does not state {', '.join(absent)}: give another picture")
    sampler, spacing = sampler_of(parameters)
    width, height = find_numbers(parameters, "Size", r"(\d+)x(\d+)")
    settings = {
        "prompt": prompt_of(parameters["Prompt"], given),
        "negative_prompt": prompt_of(parameters["Negative prompt"], given),
        "steps": find_numbers(parameters, "Steps", r"(\d+)")[0],
        "cfg_scale": find_numbers(parameters, "CFG scale", r"([\d.]+)", float)[0],
        "seed": find_numbers(parameters, "Seed", r"(-?\d+)")[0],
        "sampler": sampler,
        "spacing": spacing,
        "width": width,
        "height": height,
        "clip_skip": find_numbers(parameters, "Clip skip", r"(\d+)")[0] - 1,
        "extended": True,  # the web UI always reads (word:1.2)
    }
    if parameters.get("VAE") and "vae" not in given:
        raise ValueError(f"was drawn with the VAE {parameters['VAE']}: give that file with --vae")
    warnings = [] if parameters.get("RNG") == "CPU" else [OTHER_NOISE]
    return settings | model_of(parameters, given), warnings


def find_numbers(parameters: dict[str, str], name: str, pattern: str, kind: type = int) -> list:
    """Read the numbers in the value of a parameter, such as 512 and 768 in "Size: 512x768".

    parameters: name of a parameter -> its value
    name: the name of the parameter to read
    pattern: a regular expression with one group for each number
    kind: the type of the numbers

    Raises ValueError if the value does not match the pattern, or if a group is not a number.
    """
    match = re.fullmatch(pattern, parameters[name])
    with suppress(ValueError):  # for example, float("1.2.3") raises ValueError
        if match:
            return [kind(number) for number in match.groups()]
    raise ValueError(f"has the invalid setting {name}: {parameters[name]}. Give another picture")


def sampler_of(parameters: dict[str, str]) -> tuple[str, str | None]:
    """The sampler, and the spacing of its noise levels (None for the sampler's default).

    Before version 1.9, the web UI wrote the spacing into the sampler's name: "Euler Karras". Since
    version 1.9, the spacing has a parameter of its own, "Schedule type". If this parameter is
    "Automatic", the spacing of DPM++ 2M is Karras.

    Raises ValueError if minisd does not have the sampler or the spacing.
    """
    name = parameters["Sampler"].removesuffix(" Karras")
    if name == "LCM":
        raise ValueError("was drawn by the web UI's LCM, which uses other noise levels than minisd")
    if name not in WEBUI_SAMPLERS:
        raise ValueError(f"was drawn by the sampler {parameters['Sampler']}, which minisd lacks")
    stated = parameters.get("Schedule type", "").lower()
    spacing = "karras" if parameters["Sampler"] != name else stated
    if spacing in ("", "automatic"):
        if name in ONE_SPACING:
            return WEBUI_SAMPLERS[name], None
        spacing = "karras" if spacing and name == "DPM++ 2M" else "uniform"
    if spacing not in SPACING_CHOICES:
        raise ValueError(f"was drawn with Schedule type: {spacing}, which minisd does not have")
    return WEBUI_SAMPLERS[name], spacing


def prompt_of(prompt: str, given: set[str]) -> str:
    """The prompt in minisd's syntax, without the tags of LoRAs and hypernetworks.

    A tag is, for example, <lora:style:0.8>. It names a file.

    Raises ValueError if no option gives the file of a tag, or if the prompt has syntax that minisd
    does not read.
    """
    tags_end = prompt.rfind(">") + 1  # no tag ends after this index, so the search can stop there
    for kind, name, scale in TAG.findall(prompt[:tags_end]):
        option = "lora" if kind == "lora" else "hypernetwork"
        if option not in given:
            scaled = f":{scale}" if scale else ""
            raise ValueError(f"was drawn with the {option} {name}: give --{option} FILE{scaled}")
    if found := PROMPT_PROGRAMS.search(prompt):
        raise ValueError(f"has {found[0]} in its prompt, a syntax that minisd does not read")
    without_tags = TAG.sub("", prompt[:tags_end]) + prompt[tags_end:]
    return to_minisd_syntax(without_tags.strip())


def to_minisd_syntax(prompt: str) -> str:
    r"""Write every weight as (words:number), the form that minisd reads.

    In the web UI, (a) has the weight 1.1, and [a] has the weight 1/1.1. The weights of nested
    brackets multiply. If a bracket is never closed, its weight holds to the end of the prompt. A
    closing bracket without an opening bracket is plain text.

    Raises ValueError if brackets are nested too deeply, or if a weight is not a number.

    >>> to_minisd_syntax(r"a ((big) cat:1.5) [far] \(here\)")
    'a (big:1.65)( cat:1.5) (far:0.9090909) \\(here\\)'
    """
    pieces: list[list] = []  # pairs of a text and its weight
    opened: list[tuple[str, int]] = []  # open brackets, each with its index in pieces
    for escaped, number, bracket, text in WEIGHT_PATTERN.findall(prompt):
        kind = "(" if number or bracket in "()" else "["
        places = [at for which, at in opened if which == kind]
        if bracket in ("(", "["):
            opened.append((bracket, len(pieces)))
            if len(opened) > DEEPEST_PARENTHESES:
                raise ValueError(
                    f"has more than {DEEPEST_PARENTHESES} nested brackets in its prompt"
                )
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
    """The weight as a number. Raises ValueError if the text is not a number ("1.2.3" is not)."""
    try:
        return float(number)
    except ValueError as error:
        raise ValueError(f"has the prompt weight {number[:20]}, which is not a number") from error


def scale_weights(pieces: list[list], factor: float) -> None:
    """Multiply the weight of each piece by the factor, in place. A piece is [text, weight]."""
    for piece in pieces:
        piece[1] *= factor


def merge_pieces(pieces: list[list]) -> list[tuple[str, float]]:
    """Join neighbouring pieces of equal weight. Then put a backslash before each parenthesis.

    A piece is [text, weight].
    """
    runs = groupby(pieces, key=lambda piece: piece[1])
    texts = [("".join(words for words, _ in run), weight) for weight, run in runs]
    return [(re.sub(r"([()])", r"\\\1", text), weight) for text, weight in texts]


def model_of(parameters: dict[str, str], given: set[str]) -> dict[str, str]:
    """A dictionary with one key: "model" -> the name of the model in minisd.

    The dictionary is empty if a command-line option already names the model.

    Raises ValueError if minisd does not know the model. minisd knows the models that came with it
    by their names, and published models by their hashes.
    """
    from minisd.checkpoints.registry import OFFICIAL, SHIPPED

    if "model" in given:
        return {}
    name, digest = parameters.get("Model", ""), parameters.get("Model hash", "")
    if name in SHIPPED:
        return {"model": name}
    if len(digest) == DIGITS:
        for one, file in OFFICIAL.items():
            if file.sha256 and file.sha256.startswith(digest):
                return {"model": one}
    model = f"{name} (hash {digest})" if digest else name or "a model that it does not name"
    raise ValueError(f"was drawn by {model}: give that file with --model")


def model_hash(text: str) -> str:
    """The first ten digits of the model's sha256, or "" if the text does not state them.

    Until 2023, the web UI wrote eight digits of another checksum. These eight digits are ignored.
    """
    digest = parse_parameters(text).get("Model hash", "")
    return digest if len(digest) == DIGITS else ""
