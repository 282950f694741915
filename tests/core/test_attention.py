"""Facts about attention that parity alone would not name."""

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from minisd.attention import GEGLU, Attention, SpatialTransformer, attend

ROUNDING = 1e-12  # float64, the same sums in another order
BATCH = 1e-4  # kernels differ by batch size; architecture.md promises no more


def heads(seed: int, n: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, n, 8, generator=generator, dtype=torch.float64)


def watched(seen: list[Tensor]) -> nn.Identity:
    """A tap that somebody looks at."""
    tap = nn.Identity()
    tap.register_forward_hook(lambda module, given, made: seen.append(made))
    return tap


@pytest.mark.parametrize("masked", [False, True])
def test_the_fused_kernel_equals_the_explicit_softmax(masked: bool):
    q, k, v = heads(0, 5), heads(1, 7), heads(2, 7)
    mask = torch.full((5, 7), float("-inf"), dtype=q.dtype).triu(1) if masked else None
    seen = []
    explicit = attend(q, k, v, tap=watched(seen), mask=mask)
    fused = attend(q, k, v, tap=nn.Identity(), mask=mask)
    assert len(seen) == 1
    assert (explicit - fused).abs().max() < ROUNDING


def test_each_querys_weights_sum_to_1_and_forbidden_ones_are_0():
    q, k, v = heads(0, 7), heads(1, 7), heads(2, 7)
    mask = torch.full((7, 7), float("-inf"), dtype=q.dtype).triu(1)
    seen = []
    attend(q, k, v, tap=watched(seen), mask=mask)
    (weights,) = seen
    assert weights.shape == (2, 3, 7, 7)
    assert (weights.sum(-1) - 1).abs().max() < ROUNDING
    assert weights.triu(1).abs().max() == 0


def test_a_map_replaced_at_the_tap_is_what_mixes_the_values():
    q, k, v = heads(0, 5), heads(1, 7), heads(2, 7)
    tap = nn.Identity()
    tap.register_forward_hook(lambda module, given, made: torch.full_like(made, 1 / 7))
    answer = attend(q, k, v, tap=tap)
    assert (answer - v.mean(dim=2, keepdim=True)).abs().max() < ROUNDING


def test_scores_shrink_with_the_root_of_a_heads_width_not_of_the_whole():
    attention = Attention(width=8, context_dim=8, heads=2).double()
    for layer in (attention.to_q, attention.to_k):
        layer.weight.data = torch.eye(8, dtype=torch.float64)
    seen = []
    attention.weights.register_forward_hook(lambda module, given, made: seen.append(made))
    x = torch.randn(1, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    attention(x, context=x)
    first = x[0, :, :4]  # the first head reads the first half of the channels
    expected = (first @ first.T / 4**0.5).softmax(dim=-1)
    assert (seen[0][0, 0] - expected).abs().max() < ROUNDING


def test_geglu_gates_with_the_second_half_and_the_exact_gelu():
    geglu = GEGLU(width=1, expand=1)
    geglu.widen.weight.data = torch.tensor([[3.0], [1.0]])  # value 3, gate 1
    geglu.widen.bias.data = torch.zeros(2)
    geglu.narrow.weight.data = torch.ones(1, 1)
    geglu.narrow.bias.data = torch.zeros(1)
    gelu_of_1 = 0.5 * (1 + torch.erf(torch.tensor(1 / 2**0.5)))  # the tanh form is 1.5e-4 less
    assert geglu(torch.ones(1, 1, 1)).item() == pytest.approx(3 * gelu_of_1.item(), abs=1e-6)


def test_a_transformer_without_weights_leaves_the_picture_alone():
    transformer = SpatialTransformer(channels=8, context_dim=4, heads=2, norm_groups=2)
    nn.init.zeros_(transformer.proj_out.weight)
    nn.init.zeros_(transformer.proj_out.bias)
    x = torch.randn(1, 8, 2, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(transformer(x, torch.zeros(1, 5, 4)), x)


def test_places_are_tokens_row_by_row():
    transformer = SpatialTransformer(channels=8, context_dim=4, heads=2, norm_groups=2)
    seen = []
    transformer.proj_in.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    x = torch.randn(1, 8, 2, 3, generator=torch.Generator().manual_seed(0))
    transformer(x, torch.zeros(1, 5, 4))
    in_rows = rearrange(transformer.norm(x), "b c h w -> b h w c")
    assert torch.equal(seen[0][0, 4], in_rows[0, 1, 1])  # the fifth is row 1, column 1


def test_a_member_of_a_batch_gets_what_it_gets_alone():
    attention = Attention(width=32, context_dim=16, heads=4)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 9, 32, generator=generator)
    context = torch.randn(4, 5, 16, generator=generator)
    together = attention(x, context)
    for i in range(4):
        alone = attention(x[i : i + 1], context[i : i + 1])
        assert (together[i] - alone[0]).abs().max() < BATCH


def test_heads_must_divide_the_channels():
    with pytest.raises(AssertionError, match="10 channels do not split into 4 heads"):
        Attention(width=10, context_dim=10, heads=4)


def test_watching_half_precision_does_not_overflow():
    """Scores of 84,000 fit into float16 only once they are scaled."""
    q = torch.full((1, 1, 2, 64), 36.0, dtype=torch.float16)
    k = torch.full((1, 1, 3, 64), 36.5, dtype=torch.float16)
    tap = nn.Identity()
    handle = tap.register_forward_hook(lambda *_: None)
    assert attend(q, k, torch.ones_like(k), tap).isfinite().all()
    handle.remove()
