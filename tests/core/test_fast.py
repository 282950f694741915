"""The tricks of fast.py compute what the plain definitions compute, and hide nothing."""

import copy

import pytest
import torch
from torch import nn

import minisd
from minisd import attention, fast, unet, vae
from minisd.adapters.lora import lora
from minisd.fast import fast_copy
from minisd.tasks.img2img import img2img
from minisd.trace import trace

CLOSE = 1e-5  # the largest difference, as a share of the spread


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def difference(ours, plain):
    return float((ours - plain).abs().max() / plain.std())


X, MAP = random(2, 35, 24), random(2, 12, 6, 9)
MODULES = {
    "GEGLU": (lambda: attention.GEGLU(24), [X]),
    "self-attention": (lambda: attention.Attention(24, 24, 3), [X, X]),
    "cross-attention": (lambda: attention.Attention(24, 10, 3), [X, random(2, 7, 10)]),
    "U-Net block": (lambda: unet.ResBlock(12, 20, 16, 4), [MAP, random(2, 16)]),
    "U-Net block without a shortcut": (lambda: unet.ResBlock(12, 12, 16, 4), [MAP, random(2, 16)]),
    "VAE block": (lambda: vae.ResBlock(12, 20, 4), [MAP]),
    "VAE upsampling": (lambda: vae.Upsample(12), [MAP]),
    "VAE upsampling of one pixel": (lambda: vae.Upsample(12), [MAP[:, :, :1, :1]]),
    "U-Net upsampling": (lambda: unet.Upsample(12), [MAP, []]),
    "to an even size": (lambda: unet.Upsample(12), [MAP, [random(2, 5, 12, 18)]]),
    "to an odd size": (lambda: unet.Upsample(12), [MAP, [random(2, 5, 11, 17)]]),
}


def build(name):
    make, inputs = MODULES[name]
    module = make().eval().requires_grad_(False)
    for seed, weight in enumerate(module.parameters()):
        weight.copy_(random(*weight.shape, seed=seed))
    return module, inputs


@pytest.fixture
def used(monkeypatch):
    """The tricks that have been used so far, in order."""
    found = []

    def counted(trick):
        return lambda *given, **named: found.append(trick) or trick(*given, **named)

    tricks = {plain: counted(trick) for plain, trick in fast.TRICKS.items()}
    monkeypatch.setattr(fast, "TRICKS", tricks)
    return found


@pytest.fixture
def sd():
    return minisd.load("mini")


@pytest.mark.parametrize("name", MODULES)
@torch.no_grad()
def test_a_trick_equals_the_plain_definition(name):
    module, inputs = build(name)
    before = copy.deepcopy(inputs)
    plain = module(*inputs)
    assert difference(fast_copy(module)(*inputs), plain) < CLOSE
    for given, kept in zip(inputs, before, strict=True):  # no trick changes what it is given
        assert all(map(torch.equal, *[[*each] for each in (given, kept)]))


def test_every_trick_is_in_this_test():
    kinds = {type(build(name)[0]).forward for name in MODULES}
    assert kinds == fast.TRICKS.keys()


@pytest.mark.parametrize("name", MODULES)
@torch.no_grad()
def test_a_trick_is_used(name, used):
    """Otherwise, the tests above would compare the plain code with itself."""
    module, inputs = build(name)
    fast_copy(module)(*inputs)
    assert len(used) == 1


@pytest.mark.parametrize("name", MODULES)
@torch.no_grad()
def test_whoever_watches_a_part_sees_what_the_plain_module_shows(name):
    module, inputs = build(name)
    shown = []
    for network in (module, fast_copy(module)):
        with trace(module) as t:
            network(*inputs)
        shown.append(t)
    assert shown[0].keys() == shown[1].keys()
    for part in shown[0]:
        assert torch.equal(shown[0][part][0], shown[1][part][0]), part


def test_gradients_come_from_the_plain_code():
    for name in MODULES:
        module, inputs = build(name)
        grads = []
        for network in (module, fast_copy(module)):
            x = inputs[0].clone().requires_grad_()
            network(x, *inputs[1:]).square().sum().backward()
            grads.append(x.grad)
        assert torch.equal(*grads), name


@torch.no_grad()
def test_other_modules_are_left_alone():
    class Other(unet.ResBlock):
        def forward(self, x, time):
            return 2 * super().forward(x, time)

    network = unet.Mid(12, minisd.config.UNetConfig(channels=(4, 12), norm_groups=4, heads=3))
    network.res[0] = Other(12, 12, 16, 4)  # a class that minisd does not have
    network.res[1].forward = lambda x, time: 3 * x  # somebody replaced forward()
    twin = fast_copy(network.eval())
    assert twin.res[0] is network.res[0] and twin.res[1] is network.res[1]
    assert "forward" in vars(twin.attn.ff) and "forward" not in vars(network.attn.ff)


@torch.no_grad()
def test_remembered_keys_follow_the_context_and_the_weights():
    module, (x, context) = build("cross-attention")
    twin = fast_copy(module)
    twin(x, context)
    last = twin.last
    twin(x, context.clone())
    assert twin.last is last  # the same numbers: nothing is computed again
    context.mul_(2)
    assert difference(twin(x, context), module(x, context)) < CLOSE
    module.to_k.weight.mul_(2)
    assert difference(twin(x, context), module(x, context)) < CLOSE
    module.to_v.weight = nn.Parameter(-module.to_v.weight, requires_grad=False)
    assert difference(twin(x, context), module(x, context)) < CLOSE
    twin = fast_copy(build("VAE upsampling")[0])
    twin(MAP)
    twin.conv.weight.requires_grad_(False).mul_(2)
    assert difference(twin(MAP), type(twin).forward(twin, MAP)) < CLOSE


@torch.no_grad()
def test_whole_networks_equal_the_plain_ones(sd):
    x, t, context = random(2, 4, 8, 12), torch.tensor([3, 700]), sd.embed(["a cat", "a dog"])
    assert difference(fast_copy(sd.unet)(x, t, context), sd.unet(x, t, context)) < 1e-4
    odd = random(1, 4, 7, 9)
    assert (
        difference(fast_copy(sd.unet)(odd, t[:1], context[:1]), sd.unet(odd, t[:1], context[:1]))
        < 1e-4
    )
    z, image = random(1, 4, 6, 5), random(1, 3, 64, 48).clamp(-1, 1)
    assert difference(fast_copy(sd.vae).decode(z), sd.vae.decode(z)) < 1e-4
    assert difference(fast_copy(sd.vae).encode(image).mean, sd.vae.encode(image).mean) < 1e-4


@torch.no_grad()
def test_drawing_uses_every_trick_and_tracing_uses_none(sd, used):
    every = {trick.__name__ for trick in (fast.geglu, fast.attention_layer, fast.unet_res_block)}
    every |= {
        trick.__name__ for trick in (fast.unet_upsample, fast.vae_res_block, fast.vae_upsample)
    }
    picture = sd.txt2img("a cat", steps=2)
    img2img(sd, "a dog", picture, steps=2)
    assert {trick.__name__ for trick in used} == every
    count = len(used)
    with trace(sd, "unet.mid.attn.ff", "vae.decoder.mid"):  # one watched part is enough
        sd.txt2img("a cat", steps=2)
    assert len(used) == count
    with lora(sd, "mini-blueprint"):  # a LoRA watches nothing
        sd.txt2img("a cat", steps=2)
    assert len(used) > count


@torch.no_grad()
def test_a_lora_changes_the_copy_and_is_gone_afterwards(sd):
    x, t, context = random(2, 4, 8, 8), torch.tensor([3, 700]), sd.embed(["a cat", "a dog"])
    twin = fast_copy(sd.unet)
    without = twin(x, t, context)
    with lora(sd, "mini-blueprint", 1.0):
        assert difference(twin(x, t, context), sd.unet(x, t, context)) < 1e-4
        assert difference(twin(x, t, context), without) > 0.01
    assert torch.equal(twin(x, t, context), without)
