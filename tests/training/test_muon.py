"""Muon: what it does to singular values, torch's own Muon, and which parameters it gets."""

import pytest
import torch

from minisd.config import MINI
from minisd.training.diffusion import TextAndUNet
from minisd.training.muon import Muon, orthogonalize, split_for_muon
from minisd.vae import VAE

SHAPES = {"square": (24, 24), "tall": (40, 12), "wide": (8, 72), "row": (1, 9), "column": (9, 1)}
hidden_layers = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def random_matrix(shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(shape, generator=generator, dtype=dtype)


def quintic_of(values, times=5):
    """What the published iteration makes of singular values (coefficients of Jordan 2024)."""
    for _ in range(times):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return values


@hidden_layers
def test_levelling_keeps_the_directions_and_sends_every_singular_value_through_the_quintic(shape):
    matrix = random_matrix(shape)
    u, singular, v = torch.linalg.svd(matrix, full_matrices=False)
    expected = u @ torch.diag(quintic_of(singular / singular.square().sum().sqrt())) @ v
    torch.testing.assert_close(orthogonalize(matrix), expected, rtol=1e-6, atol=1e-6)


@hidden_layers
def test_singular_values_end_near_one(shape):
    for seed in range(10):
        values = torch.linalg.svdvals(orthogonalize(random_matrix(shape, seed)))
        whole = torch.linalg.svdvals(random_matrix(shape, seed))
        values = values[whole / whole.norm() > 0.005]  # smaller ones are still on their way to 1
        assert values.min() > 0.65
        assert values.max() < 1.25


@hidden_layers
def test_levelling_in_float32_is_as_good(shape):
    matrix = random_matrix(shape, dtype=torch.float32)
    found = orthogonalize(matrix)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), orthogonalize(matrix.double()), rtol=0, atol=1e-4)


def test_no_gradient_is_no_change():
    assert torch.equal(orthogonalize(torch.zeros(4, 6)), torch.zeros(4, 6))


def step_both(ours, theirs, steps=4):
    """Gradients at random for both optimizers; theirs are those of the flattened tensor."""
    one = Muon([ours], lr=0.05, momentum=0.9, weight_decay=0.02)
    other = torch.optim.Muon([theirs], lr=0.05, momentum=0.9, weight_decay=0.02)
    for seed in range(steps):
        ours.grad = random_matrix(ours.shape, seed)
        theirs.grad = ours.grad.flatten(1).clone()
        one.step()
        other.step()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
@pytest.mark.parametrize(
    "shape", [*SHAPES.values(), (16, 4, 3, 3), (16, 4, 1, 1)], ids=[*SHAPES, "conv", "1x1 conv"]
)
def test_the_steps_are_those_of_torch(shape, monkeypatch):
    """Momentum, look-ahead, orthogonalizing, weight decay, the larger step of a tall matrix."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)  # torch would level in it
    ours = torch.nn.Parameter(random_matrix(shape, seed=9))
    theirs = torch.nn.Parameter(ours.detach().flatten(1).clone())
    step_both(ours, theirs)
    torch.testing.assert_close(ours.flatten(1), theirs, rtol=1e-6, atol=1e-6)


def test_a_resumed_muon_steps_as_an_unbroken_one():
    whole = torch.nn.Parameter(random_matrix((6, 4)))
    parted = torch.nn.Parameter(whole.detach().clone())
    one, other = Muon([whole], lr=0.1), Muon([parted], lr=0.1)
    for seed in range(4):
        whole.grad = parted.grad = random_matrix((6, 4), seed)
        one.step()
        other.step()
        state, other = other.state_dict(), Muon([parted], lr=0.5)
        other.load_state_dict(state)
    assert torch.equal(whole, parted)


@pytest.fixture(scope="module")
def networks():
    both = TextAndUNet(MINI)
    return {"vae": VAE(MINI.vae), "unet": both.unet, "text": both.text_encoder, "both": both}


@pytest.mark.parametrize("name", ["vae", "unet", "text", "both"])
def test_every_parameter_has_one_optimizer(networks, name):
    hidden, others = split_for_muon(networks[name])
    split = sorted(id(parameter) for parameter in hidden + others)
    assert split == sorted(id(parameter) for parameter in networks[name].parameters())
    assert all(parameter.ndim in (2, 4) for parameter in hidden)
    share = sum(map(torch.Tensor.numel, hidden)) / sum(map(torch.Tensor.numel, hidden + others))
    assert share > 0.75


BORDER = {
    "vae": {f"{half}coder.conv_{end}.weight" for half in ("en", "de") for end in ("in", "out")},
    "unet": {"conv_in.weight", "conv_out.weight"},
    "text": {"token_embedding.weight", "position_embedding"},
}


@pytest.mark.parametrize("name", BORDER)
def test_adam_gets_the_matrices_at_the_border_alone(networks, name):
    others = {id(parameter) for parameter in split_for_muon(networks[name])[1]}
    named = networks[name].named_parameters()
    assert {key for key, p in named if p.ndim >= 2 and id(p) in others} == BORDER[name]
