"""Facts about the text transformer that parity alone would not name."""

from dataclasses import replace

import pytest
import torch
from ldm.modules.encoders.modules import FrozenOpenCLIPEmbedder
from torch import Tensor, nn
from transformers.activations import QuickGELUActivation

from minisd.clip import TextTransformer, quick_gelu
from minisd.config import SD15, SD20_BASE, ModelConfig, TextConfig
from tests.helpers import references  # noqa: F401  (gives the next import the open_clip that it asks for)
from tests.helpers.reference_networks import Pair, ours, pair, randomise

FLOAT64 = 1e-12  # the same sums in another order
BATCH = 1e-4  # kernels differ by batch size; architecture.md promises no more
V1 = replace(SD15, text=TextConfig(vocab_size=60, width=64, layers=3, heads=4))
V2 = replace(SD20_BASE, text=replace(V1.text, activation="gelu", pad_token=0))


def tiny() -> TextTransformer:
    text = ours("text_encoder", V1)
    randomise(text, 1.0, seed=0)
    return text


def some_tokens(length: int = 77) -> Tensor:
    return torch.randint(0, 60, (2, length), generator=torch.Generator().manual_seed(1))


def in_float64(config: ModelConfig, layout: str) -> Pair:
    return pair("text_encoder", config, layout, "unit", torch.float64)


def test_v2_stops_before_the_last_layer_and_then_normalises():
    """Stability's own embedder, with layer="penultimate", around an open_clip tower."""
    both = in_float64(V2, "original")
    embedder = FrozenOpenCLIPEmbedder.__new__(FrozenOpenCLIPEmbedder)
    nn.Module.__init__(embedder)
    embedder.model, embedder.layer_idx = both.theirs, 1
    for block in both.theirs.transformer.resblocks:
        block.attn.batch_first = False  # as in the open_clip of its time
    tokens = some_tokens()
    theirs = embedder.encode_with_transformer(tokens)
    assert len(both.theirs.transformer.resblocks) == len(both.ours.layers) + 1
    assert (both.ours(tokens) - theirs).abs().max() < FLOAT64


def test_v1_context_is_taken_after_the_final_norm():
    text, seen = tiny(), []
    text.norm_out.register_forward_hook(lambda module, given, made: seen.append(made))
    assert torch.equal(text(some_tokens()), seen[0])


@pytest.mark.parametrize("skip", [1, 2])
def test_clip_skip_leaves_out_the_last_layers_and_keeps_the_norm(skip: int):
    both, tokens = in_float64(V1, "diffusers"), some_tokens()
    hidden = both.theirs(tokens, output_hidden_states=True).hidden_states
    final_norm = both.theirs.get_submodule("final_layer_norm")
    theirs = final_norm(hidden[-(skip + 1)])  # as diffusers' pipelines take it
    assert (both.ours(tokens, clip_skip=skip) - theirs).abs().max() < FLOAT64


def test_a_later_token_changes_nothing_before_it():
    text, tokens = tiny(), some_tokens()
    changed = tokens.clone()
    changed[:, 40] = (changed[:, 40] + 1) % 60
    before, after = text(tokens), text(changed)
    assert torch.equal(before[:, :40], after[:, :40])
    assert (before[:, 40:] - after[:, 40:]).abs().amax(dim=(0, 2)).min() > 0


def test_a_shorter_row_of_tokens_reads_the_first_positions():
    text, tokens = tiny().double(), some_tokens()
    assert (text(tokens[:, :10]) - text(tokens)[:, :10]).abs().max() < FLOAT64


def test_quick_gelu_is_the_references_and_not_the_exact_one():
    x = torch.linspace(-5, 5, 101)
    assert torch.equal(quick_gelu(x), QuickGELUActivation()(x))
    assert (quick_gelu(x) - nn.functional.gelu(x)).abs().max() > 0.01


def test_v1_uses_quick_gelu_and_v2_the_exact_one():
    assert (SD15.text.activation, SD20_BASE.text.activation) == ("quick_gelu", "gelu")


@pytest.mark.parametrize("config, heads", [(SD15, 12), (SD20_BASE, 16)], ids=["v1", "v2"])
def test_a_text_head_is_64_wide(config: ModelConfig, heads: int):
    attn = ours("text_encoder", config).layers[0].attn
    assert attn.heads == heads
    assert attn.to_q.out_features // heads == 64


@pytest.mark.parametrize(
    "config, parameters", [(SD15, 123_060_480), (SD20_BASE, 340_387_840)], ids=["v1", "v2"]
)
def test_text_transformer_has_as_many_numbers_as_published(config: ModelConfig, parameters: int):
    assert sum(p.numel() for p in ours("text_encoder", config).parameters()) == parameters


def test_a_member_of_a_batch_gets_what_it_gets_alone():
    text, tokens = tiny(), some_tokens()
    together = text(tokens)
    for i in range(2):
        assert (together[i] - text(tokens[i : i + 1])[0]).abs().max() < BATCH
