"""Check that threads that work at the same time compute the same as one thread alone:

python -m tests.tools.threads
"""

import hashlib
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Barrier

import torch
from PIL import Image

import minisd
from minisd.adapters.classifier import ClassifierGuidance, load_classifier
from minisd.adapters.controlnet import ControlNet, control
from minisd.adapters.hypernetwork import hypernetwork
from minisd.adapters.lora import lora
from minisd.adapters.textual_inversion import Word, textual_inversion
from minisd.checkpoints.checkpoint import Parts
from minisd.checkpoints.read import read_tensors
from minisd.checkpoints.write import convert, save
from minisd.pipeline import StableDiffusion
from minisd.tasks.img2img import img2img
from minisd.teaching import tiny
from tests.helpers.threads import frequent_switches

THREADS = 4
Job = Callable[[], bytes]  # computes the result to compare


def fingerprint(*tensors: torch.Tensor) -> bytes:
    """A hash that is equal only for equal numbers, type, shape and device."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tensor.device} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.digest()


def embeddings(sd: StableDiffusion, count: int) -> list[Job]:
    """Jobs that embed long and short prompts, with added words of one or several vectors."""
    rng = random.Random(0)
    things = ["cat", "dog", "<one>", "<two>", "<three>", "<One>s", "(tree:1.3)", "red", "café"]

    def job() -> Job:
        length = rng.choice((1, 3, 8, 20, 60))
        prompt = " ".join(rng.choices(things, k=length)) + f" {rng.randrange(10**6)}"
        extended = rng.random() < 0.5
        # short enough that nothing is cut, so there is no warning
        short = prompt if extended else " ".join(prompt.split()[:10])
        return lambda: fingerprint(sd.embed(short, extended=extended))

    return [job() for _ in range(count)]


def loads(folder: Path, count: int) -> list[Job]:
    """Jobs that load small models in three layouts, also as pickles. Every tenth loads the mini."""
    sources: list[str | Path] = []
    for config in (tiny.TINY, tiny.TINY_V2):
        sd = tiny.model(config)
        parts = Parts(config, sd.tokenizer, sd.text_encoder, sd.unet, sd.vae)
        ours, official = (folder / f"{config.name}-{kind}.safetensors" for kind in ("own", "sd"))
        save(ours, parts)
        convert(ours, official)
        convert(ours, folder / config.name)
        torch.save({"state_dict": read_tensors(official)}, official.with_suffix(".ckpt"))
        sources += [ours, official.with_suffix(".ckpt"), folder / config.name]

    def job(number: int) -> Job:
        source = "mini" if number % 10 == 9 else sources[number % len(sources)]
        known = {} if source == "mini" else {"prediction": "eps"}

        def load() -> bytes:
            sd = minisd.load(source, **known)
            networks = sd.text_encoder, sd.unet, sd.vae
            return fingerprint(*(t for net in networks for t in net.state_dict().values()))

        return load

    return [job(number) for number in range(count)]


def pictures(count: int) -> list[Job]:
    """Jobs that draw: the mini alone and with all its adapters, and small v1 and v2 models."""
    plain, adapted = minisd.load("mini"), minisd.load("mini")
    lora(adapted, "mini-blueprint")
    textual_inversion(adapted, "mini-blorp")
    hypernetwork(adapted, "mini-sepia", 0.5)
    control(adapted, ControlNet.load("mini-edges"), torch.zeros(1, 3, 64, 64), 0.5)
    ClassifierGuidance(adapted, load_classifier("mini-classifier"), "cat", 3)
    small = {"width": 64, "height": 64}
    models = [(plain, {}), (adapted, {}), (tiny.model(), small), (tiny.model(tiny.TINY_V2), small)]
    begin = Image.effect_noise((64, 64), 50).convert("RGB")
    samplers = ("ddim", "euler_ancestral", "plms", "dpmpp_2m")

    def job(number: int) -> Job:
        sd, size = models[number % 4]
        prompts = [f"a <blorp> and {number} cats", "a dog"][: 1 + number // 4 % 2]
        settings = {"steps": 2, "seed": number, "sampler": samplers[number // 4 % 4]}

        def draw() -> bytes:
            if number // 4 % 3 == 2:
                drawn = img2img(sd, prompts, begin, **settings)
            else:
                scale = (4, 1)[number // 4 % 3]
                drawn = sd.txt2img(prompts, cfg_scale=scale, **settings, **size)
            return b"".join(picture.tobytes() for picture in drawn)

        return draw

    return [job(number) for number in range(count)]


def together(jobs: list[Job]) -> list[bytes]:
    """Run all jobs in random order, in threads that start at the same time. Returns the results."""
    order = random.Random(1).sample(range(len(jobs)), len(jobs))
    barrier, results = Barrier(THREADS), {}

    def work(first: int) -> None:
        barrier.wait()
        for number in order[first::THREADS]:
            results[number] = jobs[number]()

    with frequent_switches(5e-6), ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(work, first) for first in range(THREADS)]:
            done.result()
    return [results[number] for number in range(len(jobs))]


def differences(jobs: list[Job]) -> int:
    """How many jobs give another result together with others than alone."""
    alone = [job() for job in jobs]
    return sum(one != other for one, other in zip(alone, together(jobs), strict=True))


def all_jobs(folder: Path, counts: tuple[int, int, int]) -> dict[str, list[Job]]:
    """All jobs. counts: how many embed, load and draw"""
    sd = minisd.load("mini")
    vectors = torch.randn(6, sd.config.text.width, generator=torch.Generator().manual_seed(0))
    for word, own in zip(("<one>", "<two>", "<three>"), vectors.split((1, 2, 3)), strict=True):
        Word(sd, word, own)
    return {
        "embeddings with words": embeddings(sd, counts[0]),
        "loads": loads(folder, counts[1]),
        "pictures": pictures(counts[2]),
    }


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'':24}{'threads':>8}{'jobs':>8}{'unlike alone':>14}{'seconds':>9}")
    with TemporaryDirectory() as folder:
        for name, jobs in all_jobs(Path(folder), (4000, 400, 144)).items():
            begun = time.monotonic()
            wrong = differences(jobs)
            took = time.monotonic() - begun
            print(f"{name:24}{THREADS:8}{len(jobs):8}{wrong:14}{took:9.0f}", flush=True)


if __name__ == "__main__":
    main()
