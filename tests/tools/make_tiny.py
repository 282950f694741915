"""Write weights/tiny-by-diffusers.safetensors, with which lesson 17 compares our numbers:

python -m tests.tools.make_tiny
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import diffusers
import torch
import transformers
from diffusers import StableDiffusionPipeline
from torch import Tensor

from minisd.checkpoints.checkpoint import Parts
from minisd.checkpoints.write import convert, save, write_tensors
from minisd.files.whole_files import written_whole
from minisd.pipeline import StableDiffusion
from minisd.teaching import tiny
from tests.helpers.reference_networks import Pair, pair
from tests.helpers.side_by_side import laid_out_like, watched


def reference(part: str, sd: StableDiffusion) -> Pair:
    """One network of the tiny model, and its reference with the same weights."""
    both = pair(part, sd.config, "diffusers", "small", torch.float32)
    both.ours.load_state_dict(getattr(sd, part).state_dict())  # both networks use the same memory
    return both


@torch.no_grad()
def fingerprints(sd: StableDiffusion) -> dict[str, Tensor]:
    """A few numbers of every tensor that has a name on both sides. The keys are our names."""
    kept = {}
    for part, given in tiny.inputs(sd).items():
        both = reference(part, sd)
        with watched(both.ours, [row.ours for row in both.rows]) as ours:
            both.run_ours(both.ours, *given)
        with watched(both.theirs, [both.their_name(row) for row in both.rows]) as theirs:
            both.run_theirs(both.theirs, *given)
        for row in both.rows:
            if row.ours in ours and both.their_name(row) in theirs:
                mine, other = ours[row.ours].made[0], theirs[both.their_name(row)].made[0]
                kept[f"{part}.{row.ours}"] = tiny.sample_numbers(laid_out_like(mine, other))
    return kept


def picture(sd: StableDiffusion) -> list[float]:
    """Nine numbers of a picture, as in the tests of diffusers: 3 steps of DDIM, scale 7.5."""
    parts = Parts(sd.config, sd.tokenizer, sd.text_encoder, sd.unet, sd.vae)
    with TemporaryDirectory() as folder:
        save(Path(folder) / "tiny.safetensors", parts)
        convert(Path(folder) / "tiny.safetensors", Path(folder) / "tiny")
        pipe = StableDiffusionPipeline.from_pretrained(Path(folder) / "tiny")
        pipe.set_progress_bar_config(disable=True)
        out = pipe(
            tiny.PROMPT,
            num_inference_steps=3,
            guidance_scale=7.5,
            latents=tiny.golden_latent(64),
            output_type="np",
        )
    return out.images[0, -3:, -3:, -1].flatten().tolist()


def main() -> None:
    sd = tiny.model()
    versions = {"diffusers": diffusers.__version__, "transformers": transformers.__version__}
    said = {"versions": versions, "picture": picture(tiny.model(gain=1.0))}
    header = {key: json.dumps(value) for key, value in said.items()}
    with written_whole(tiny.BY_DIFFUSERS) as unfinished:
        write_tensors(unfinished, fingerprints(sd), header, dtype=None)


if __name__ == "__main__":
    main()
