"""minisd trace: draw a picture, and write every tensor of the computation into a file."""

import argparse
from pathlib import Path

from minisd.cli.messages import print_message, print_results


def add_trace(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("prompt", help='in quotes, such as "a cat on a blue background"')
    add("-o", "--output", type=Path, default=Path("run.safetensors"), help="(run.safetensors)")
    add("--model", default="mini", help="FILE, FOLDER or NAME (mini)")
    add("--steps", type=int, default=2, help="how many (2): each step makes the file larger")
    add(
        "--cfg",
        dest="cfg_scale",
        type=float,
        metavar="CFG",
        help="how strongly the prompt guides (the model's)",
    )
    add("--sampler", help="name of the sampler (the model's)")
    add("--seed", type=int, default=0, help="seed of the noise (0)")
    add("--only", action="append", default=[], metavar="GLOB", help="like unet.mid.*; repeatable")
    add("--inputs", action="store_true", help="also keep the inputs of each module")
    add("--stats", action="store_true", help="keep a few numbers instead of each tensor")


def trace_command(options: argparse.Namespace) -> None:
    """Draw a picture, print how large the file of its tensors will be, then write the file."""
    import minisd
    from minisd.checkpoints.first_bytes import size_in_words
    from minisd.cli.record_run import record_run
    from minisd.compare.sides import our_side
    from minisd.compare.trace_file import fingerprints, trace_tensors, write_trace

    sd = minisd.load(options.model)
    names = ("prompt", "steps", "cfg_scale", "sampler", "seed")
    settings = {name: getattr(options, name) for name in names}
    kept = (tuple(options.only), options.inputs, options.stats)
    calls, inputs = record_run(sd, lambda: sd.txt2img(**settings), *kept)
    tensors = trace_tensors(calls, inputs)
    size = sum(tensor.nbytes for tensor in tensors.values())
    print_message(f"writing {len(tensors)} tensors, {size_in_words(size)}, to {options.output}.")
    write_trace(options.output, tensors, settings, fingerprints(our_side(sd, "").networks))
    print_results(options.output)
