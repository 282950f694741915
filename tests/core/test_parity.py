"""Every tensor on the way equals the reference's, for random weights; see reference_networks.py.

An error here is the largest difference over the reference's spread. The original code runs in
float32 only. Full sizes: pytest -m slow.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

from minisd.config import SD15, SD20_BASE, ModelConfig, TextConfig, UNetConfig, VAEConfig
from tests.helpers.reference_networks import DRAWS, pair
from tests.helpers.side_by_side import Case, Run, fed, inputs, relative_error, run_both

# Both sides compute the same formula in another order: float64 loses 1e-16 per operation and we
# see 1e-13 in all, float32 6e-8 and we see 5e-5. A wrong epsilon shows as 1e-7 at the least.
FLOAT64 = 1e-8
FLOAT32_BLOCK = 3e-5  # one block, fed the reference's input
FLOAT32_END = 1e-4  # end to end: everything before has added its own rounding
SHOWS = 5  # a wrong epsilon must miss by this many times the tolerance

# ---- what is compared -----------------------------------------------------------------------

V1 = ModelConfig(
    name="v1",
    text=TextConfig(vocab_size=60, width=64, layers=2, heads=4),
    unet=UNetConfig(channels=(32, 64, 64), attention=(True, True, False), context_dim=24, heads=4),
    vae=VAEConfig(channels=(32, 32, 64)),
)
V2 = replace(
    V1,
    name="v2",
    text=replace(V1.text, layers=3, activation="gelu", pad_token=0),
    unet=replace(V1.unet, head_width=16, linear_projection=True),
)
# The rest differ in few things: small enough to be quick, and of another shape again.
SMALL = {"channels": (32, 64), "attention": (False, True), "res_blocks": 1}
V2_V = replace(
    V2,
    name="v2-v",
    unet=replace(V2.unet, **SMALL),
    schedule=replace(V2.schedule, prediction="v"),
)
INPAINT = replace(V1, name="inpaint", unet=replace(V1.unet, in_channels=9, **SMALL))
DEPTH = replace(V2, name="depth", unet=replace(V2.unet, in_channels=5, **SMALL))


def cases(part: str, configs: list[ModelConfig], original: list[torch.dtype]) -> list[Case]:
    """original: the precisions that the original code can run in."""
    kinds = [("original", dtype) for dtype in original]
    kinds += [("diffusers", torch.float32), ("diffusers", torch.float64)]
    return [
        Case(part, config, layout, dtype, draw)
        for config in configs
        for layout, dtype in kinds
        for draw in DRAWS
    ]


FLOAT32_ONLY, BOTH = [torch.float32], [torch.float32, torch.float64]
TINY = [
    *cases("unet", [V1, V2, V2_V, INPAINT, DEPTH], FLOAT32_ONLY),
    *cases("vae", [V1], FLOAT32_ONLY),
    *cases("text_encoder", [V1], []),  # v1's original text transformer is Hugging Face's
    *cases("text_encoder", [V2], BOTH),
]
FULL = [
    *cases("unet", [SD15, SD20_BASE], FLOAT32_ONLY),
    *cases("vae", [SD15], FLOAT32_ONLY),
    *cases("text_encoder", [SD15], []),
    *cases("text_encoder", [SD20_BASE], BOTH),
]


# Modules that one side only names: the original's VAE levels hold blocks and are never called, a
# parameter is no module, and torch's MultiheadAttention calls none of its projections.
NEVER_CALLED = {
    ("unet", "original"): "nothing",
    ("unet", "diffusers"): "nothing",
    ("vae", "original"): r"(en|de)coder\.(down\.\d|up\.\d|mid)",
    ("vae", "diffusers"): "nothing",
    ("text_encoder", "original"): r"position_embedding|layers\.\d+\.attn\.to_(q|k|v|out)",
    ("text_encoder", "diffusers"): "position_embedding",
}
# Blocks that the reference gives another input: ours turns t into waves itself, and the original
# has no level, only its last block.
FED_OTHERWISE = {"diffusers": "time", "original": r"time|(down|up)\.\d+"}


def name_of(case: Case) -> str:
    precision = str(case.dtype).removeprefix("torch.")
    return f"{case.config.name}-{case.part}-{case.layout}-{precision}-{case.draw}"


@pytest.fixture(
    scope="module",
    params=[*TINY, *[pytest.param(case, marks=pytest.mark.slow) for case in FULL]],
    ids=name_of,
)
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    threads = torch.get_num_threads()
    if request.param in FULL:
        torch.set_num_threads(os.cpu_count())
    yield run_both(request.param)
    torch.set_num_threads(threads)


def test_every_tensor_on_the_way_equals_the_references(run: Run):
    errors = {
        name: relative_error(ours, theirs)
        for name, our_call, their_call in run.shared()
        # not strict: some of our blocks return more tensors than the reference's
        for ours, theirs in zip(our_call.made, their_call.made, strict=False)
    }
    errors |= {
        f"output {i}": relative_error(*both)
        for i, both in enumerate(zip(run.ours, run.theirs, strict=True))
    }
    tolerance = FLOAT64 if run.case.dtype == torch.float64 else FLOAT32_END
    assert {name: off for name, off in errors.items() if not off < tolerance} == {}


def test_each_block_fed_the_references_input_makes_its_output(run: Run):
    modules = dict(run.pair.ours.named_modules())
    errors = {
        name: relative_error(ours, theirs)
        for name, _, call in run.shared()
        if not re.fullmatch(FED_OTHERWISE[run.case.layout], name)
        # not strict: some of our blocks return more tensors than the reference's
        for ours, theirs in zip(fed(modules[name], call), call.made, strict=False)
    }
    tolerance = FLOAT64 if run.case.dtype == torch.float64 else FLOAT32_BLOCK
    assert {name: off for name, off in errors.items() if not off < tolerance} == {}


def test_no_module_escapes_the_comparison(run: Run):
    compared = {name for name, _, _ in run.shared()}
    escaped = {row.ours for row in run.pair.rows} - compared
    expected = NEVER_CALLED[run.case.part, run.case.layout]
    assert {name for name in escaped if not re.fullmatch(expected, name)} == set()
    assert len(compared) >= 20


@pytest.mark.parametrize(
    "part, config",
    [("unet", V1), ("unet", V2_V), ("vae", V1), ("text_encoder", V1), ("text_encoder", V2)],
    ids=["unet-v1", "unet-v2", "vae", "text-v1", "text-v2"],
)
def test_any_one_epsilon_ten_times_too_large_shows(part: str, config: ModelConfig):
    """In every single norm, in float64, where big activations cannot hide it behind rounding."""
    case = Case(part, config, "diffusers", torch.float64, "small")
    both = pair(part, config, case.layout, case.draw, case.dtype)
    given = inputs(case)
    errors = {}
    with torch.no_grad():
        theirs = both.run_theirs(both.theirs, *given)
        for name, norm in norms(both.ours):
            eps = norm.eps
            norm.eps = 10 * eps
            ours = both.run_ours(both.ours, *given)
            norm.eps = eps
            errors[name] = max(
                relative_error(*outputs) for outputs in zip(ours, theirs, strict=True)
            )
    assert {name: off for name, off in errors.items() if off < SHOWS * FLOAT64} == {}
    assert min(errors.values()) > 0 and len(errors) >= 5


@pytest.mark.parametrize(
    "part, config, layout",
    [
        ("unet", V1, "original"),
        ("unet", V2, "original"),
        ("vae", V1, "original"),
        ("text_encoder", V1, "diffusers"),
        ("text_encoder", V2, "original"),
    ],
    ids=["unet-v1", "unet-v2", "vae", "text-v1", "text-v2"],
)
def test_any_epsilon_ten_times_too_large_shows_in_float32(
    part: str, config: ModelConfig, layout: str
):
    """Against the code that the official weights were trained with, norm by norm."""
    run = run_both(Case(part, config, layout, torch.float32, "small"))
    calls = {name: call for name, _, call in run.shared()}
    errors = {}
    for name, norm in norms(run.pair.ours):
        norm.eps = 10 * norm.eps
        errors[name] = relative_error(fed(norm, calls[name])[0], calls[name].made[0])
    assert {name: off for name, off in errors.items() if off < SHOWS * FLOAT32_BLOCK} == {}
    assert len(errors) >= 5


def norms(network: nn.Module) -> list[tuple[str, nn.Module]]:
    kinds = (nn.GroupNorm, nn.LayerNorm)
    return [(name, module) for name, module in network.named_modules() if isinstance(module, kinds)]
