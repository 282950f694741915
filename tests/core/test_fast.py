"""The tricks of fast.py compute what the plain definitions compute, and hide nothing."""

import copy
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import minisd
from minisd import attention, fast, strips, unet, vae
from minisd.adapters.lora import lora
from minisd.config import UNetConfig, VAEConfig
from minisd.fast import fast_copy
from minisd.tasks.img2img import img2img
from minisd.trace import trace

CLOSE = 1e-5  # the largest difference, as a share of the spread


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def difference(ours, plain):
    return float((ours - plain).abs().max() / plain.std())


X, MAP = random(2, 35, 24), random(2, 12, 6, 9)
SMALL_UNET = UNetConfig(
    channels=(16, 24), attention=(True, False), context_dim=10, heads=2, norm_groups=4
)
SMALL_VAE = VAEConfig(channels=(16, 24), res_blocks=1, norm_groups=4)
TRICKS = dict(fast.TRICKS)
CALL = [random(2, 4, 6, 8), torch.tensor([3.0, 700.0]), random(2, 7, 10)]
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
    "U-Net": (lambda: unet.UNet(SMALL_UNET), CALL),
    "encoder": (lambda: vae.Encoder(SMALL_VAE), [random(2, 3, 12, 10)]),
    "decoder": (lambda: vae.Decoder(SMALL_VAE), [random(2, 4, 6, 5)]),
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
    assert used[0] is TRICKS[type(module).forward]
    assert len(used) == 1 or name in ("U-Net", "encoder", "decoder")  # these hold other tricks


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
        torch.testing.assert_close(shown[0][part][0], shown[1][part][0], rtol=0, atol=0)


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
    every = {trick.__name__ for trick in TRICKS.values()}
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


# ---- less memory -------------------------------------------------------------------------------


@pytest.fixture(params=[1, 300, 10**9])
def in_strips(request, monkeypatch):
    """Compute every feature map in strips: of one row, of a few rows, and of all rows."""
    monkeypatch.setattr(strips, "LARGE", 0)
    monkeypatch.setattr(strips, "STRIP", request.param)


@pytest.mark.parametrize("name", MODULES)
@torch.no_grad()
def test_strips_equal_the_plain_definition(name, in_strips):
    test_a_trick_equals_the_plain_definition(name)


@torch.no_grad()
def test_strips_leave_no_seams(monkeypatch, sd):
    """The autoencoder of the mini, and one of SD's sizes: far below one level of 255."""
    monkeypatch.setattr(strips, "LARGE", 2**12)
    monkeypatch.setattr(strips, "STRIP", 2**14)
    official = vae.VAE(VAEConfig()).eval()
    for seed, weight in enumerate(official.parameters()):
        spread = weight[0].numel() ** -0.5 if weight.dim() > 1 else 0.1
        weight.copy_(random(*weight.shape, seed=seed) * spread + (weight.dim() == 1))
    for network, side in ((sd.vae, 16), (official, 9)):
        z = random(1, 4, side, side + 3)
        plain = network.decode(z)
        levels = 127.5 / max(1, plain.abs().max())  # a random network does not end at -1 and 1
        assert (fast_copy(network).decode(z) - plain).abs().max() * levels < 0.01
        image = plain.clamp(-1, 1)
        assert difference(fast_copy(network).encode(image).mean, network.encode(image).mean) < 1e-4


@torch.no_grad()
def test_strips_in_16_bits_are_as_near_as_the_plain_code(monkeypatch):
    """On average over many decoders: the rounding of one decoder is chance."""
    monkeypatch.setattr(strips, "LARGE", 0)
    monkeypatch.setattr(strips, "STRIP", 300)
    shares = []
    for seed in range(12):
        decoder = vae.Decoder(SMALL_VAE).eval()
        for place, weight in enumerate(decoder.parameters()):
            weight.copy_(random(*weight.shape, seed=1000 * seed + place))
        z = random(2, 4, 6, 5, seed=seed)
        exact, half, z = decoder(z), decoder.to(torch.bfloat16), z.to(torch.bfloat16)
        ours, plain = ((run(z).float() - exact).std() for run in (fast_copy(half), half))
        shares.append(float(ours / plain))
    assert sum(shares) / len(shares) < 1.1


@torch.no_grad()
def test_a_large_batch_runs_in_parts(monkeypatch):
    monkeypatch.setattr(fast, "PLACES_AT_ONCE", 100)
    network = build("U-Net")[0]
    x, t, context = random(5, 4, 6, 8), random(5).abs(), random(5, 7, 10)
    middle, skips = network.encode(network.conv_in(x), network.time(t), context)
    control = [random(*each.shape, seed=place) for place, each in enumerate([*skips, middle])]
    plain, controlled = network(x, t, context), network(x, t, context, control)
    twin = fast_copy(network)
    seen = []
    monkeypatch.setattr(
        unet.UNet, "encode", lambda *a, true=unet.UNet.encode: seen.append(len(a[1])) or true(*a)
    )
    assert difference(twin(x, t, context), plain) < CLOSE
    assert seen == [2, 2, 1]
    assert difference(twin(x, t, context, control), controlled) < CLOSE


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep the pages")
def test_pages_of_a_file_are_released_and_read_again(tmp_path):
    """Converting to 16 bits needs the converted weights in memory, but not the file as well."""
    save_file({"weight": torch.ones(25_000_000)}, tmp_path / "a.safetensors")
    code = f"""
from pathlib import Path
import torch
from minisd.checkpoints.load import fill
from minisd.checkpoints.read import read_tensors
status = lambda: Path("/proc/self/status").read_text(encoding="utf-8")
resident = lambda: int(status().split("RssFile:")[1].split()[0]) * 1024
stored = read_tensors({str(tmp_path / "a.safetensors")!r})
network = torch.nn.Linear(5000, 5000, bias=False, device="meta")
state = {{"weight": stored["weight"].view(5000, 5000)}}
before = resident()
fill(network, state, "cpu", torch.bfloat16, "a")
assert resident() - before < 20e6, resident() - before
assert bool((network.weight == 1).all()) and float(stored["weight"].sum()) == 25e6
assert resident() - before > 80e6  # read again
"""
    subprocess.run([sys.executable, "-c", code], check=True)
