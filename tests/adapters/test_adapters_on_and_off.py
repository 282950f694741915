"""Adapters put on and taken off a thousand times, in any order: the model is as it was."""

import gc
import random
import weakref

import pytest
import torch

import minisd
from minisd.adapters import hypernetwork, lora
from minisd.adapters.classifier import ClassifierGuidance, load_classifier
from minisd.adapters.controlnet import ControlNet, control
from minisd.adapters.handle import Handle
from minisd.adapters.textual_inversion import Word, read_words
from minisd.adapters.vae_file import SwappedVAE
from minisd.checkpoints.load import load_vae
from minisd.config import WEIGHTS

PROMPT = "a <blorp> and a cat"  # the word of mini-blorp
DECODER = WEIGHTS / "mini-decoder.safetensors"


@pytest.fixture(scope="module")
def sd():
    return minisd.load("mini")


@pytest.fixture(scope="module")
def put_on(sd):
    """Name -> what puts such an adapter on. Their files are read once, since that takes longest."""
    changes = {
        getattr(sd, part).get_submodule(name): change
        for (part, name), change in lora.read_lora("mini-blueprint", sd.config).items()
    }
    ((word, vectors),) = read_words(WEIGHTS / "mini-blorp.safetensors").items()
    networks = hypernetwork.read_hypernetwork("mini-sepia")
    edges, hint = ControlNet.load("mini-edges"), torch.zeros(1, 3, 64, 64)
    classifier, vae = load_classifier("mini-classifier"), load_vae(DECODER, sd.config.vae)
    return {
        "lora": lambda: lora.apply_updates(changes, 1.0),
        "word": lambda: Word(sd, word, vectors),
        "hypernetwork": lambda: hypernetwork.apply_networks(sd.unet, networks, 1.0),
        "control": lambda: control(sd, edges, hint),
        "vae": lambda: SwappedVAE(sd, vae),
        "classifier": lambda: ClassifierGuidance(sd, classifier, "cat", 3),
    }


def state(sd):
    """All that an adapter may change, and every attribute of the model's parts."""
    networks = (sd.text_encoder, sd.unet, sd.vae)
    modules = [module for network in networks for module in network.modules()]
    hooks = [list(vars(m)[name]) for m in modules for name in vars(m) if name.endswith("_hooks")]
    names = [sorted(vars(part)) for part in (sd, sd.tokenizer, *modules)]
    weights = [tensor.clone() for network in networks for tensor in network.state_dict().values()]
    lists = sd.vae, [*sd.guides], [*sd.swaps], dict(sd.tokenizer.added_words.ids)
    return (hooks, names, lists), weights


def drawn(sd):
    *_, step = sd.txt2img_steps(PROMPT, steps=1)
    return sd.decode(step.x)


def assert_unchanged(sd, before, picture):
    (shape, weights), (shape_before, weights_before) = state(sd), before
    assert shape == shape_before
    assert all(map(torch.equal, weights, weights_before))
    assert torch.equal(drawn(sd), picture)


@pytest.mark.parametrize("name", ["lora", "word", "hypernetwork", "control", "vae", "classifier"])
def test_on_and_off_leaves_nothing(sd, put_on, name):
    """Neither objects nor hooks nor recursion grow, and removing twice does no harm."""
    rounds = {"lora": 100, "control": 20, "hypernetwork": 300}.get(name, 1000)
    before, picture = state(sd), drawn(sd)
    with put_on[name]() as handle:
        assert not torch.equal(drawn(sd), picture)
    handle.remove()
    gc.collect()
    objects = len(gc.get_objects())
    for _ in range(rounds):
        handle = put_on[name]()
        handle.remove()
        handle.remove()
    gc.collect()
    assert len(gc.get_objects()) - objects < rounds / 3
    assert_unchanged(sd, before, picture)


def test_a_thousand_in_any_order(sd, put_on):
    rng, on = random.Random(0), []
    before, picture = state(sd), drawn(sd)
    quick = [put_on[name] for name in ("lora", "hypernetwork", "vae", "classifier")]
    for number in range(1000):
        on.append(rng.choice(quick)())
        if number == 500:
            on += [put_on["control"](), put_on["word"](), put_on["vae"]()]
        while on and rng.random() < (0.6 if len(on) < 6 else 1.0):
            on.pop(rng.randrange(len(on))).remove()
    for handle in on:
        handle.remove()
    assert_unchanged(sd, before, picture)


def test_classifiers_guide_in_the_order_they_came_and_do_not_nest(sd, put_on):
    """A thousand of them would be a thousand calls deep if each wrapped the model's method."""
    picture = drawn(sd)
    first = put_on["classifier"]()
    guided = drawn(sd)
    others = [put_on["classifier"]() for _ in range(3)]
    assert len(sd.guides) == 4 and "denoiser" not in vars(sd)
    for handle in others:
        handle.remove()
    assert torch.equal(drawn(sd), guided) and not torch.equal(guided, picture)
    first.remove()
    assert torch.equal(drawn(sd), picture)


def test_an_autoencoder_set_by_hand_stays(sd):
    own, vae = sd.vae, load_vae(DECODER, sd.config.vae)
    first, same = SwappedVAE(sd, vae), SwappedVAE(sd, vae)
    first.remove()
    assert sd.vae is vae
    same.remove()
    assert sd.vae is own and sd.swaps == []
    handle = SwappedVAE(sd, vae)
    sd.vae = by_hand = load_vae(DECODER, sd.config.vae)
    after = SwappedVAE(sd, load_vae(DECODER, sd.config.vae))
    handle.remove()
    after.remove()
    assert sd.vae is by_hand and sd.swaps == []
    sd.vae = own


def test_a_block_that_raises_takes_its_adapter_off(sd, put_on):
    before, picture = state(sd), drawn(sd)
    for name in put_on:
        with pytest.raises(KeyboardInterrupt), put_on[name]():
            raise KeyboardInterrupt
    assert_unchanged(sd, before, picture)


def test_an_adapter_that_fails_half_way_is_off(sd):
    """Ctrl-C, or memory that runs out, while hooks are put on one by one."""
    before, picture, calls = state(sd), drawn(sd), []
    changes = {
        getattr(sd, part).get_submodule(name): change
        for (part, name), change in lora.read_lora("mini-blueprint", sd.config).items()
    }

    class Stops:
        """Two widths are found, then memory runs out."""

        def get(self, width, default):
            calls.append(width)
            if len(calls) > 3:
                raise MemoryError
            return hypernetwork.read_hypernetwork("mini-sepia").get(width, default)

    def some():
        for number, layer in enumerate(changes):
            if number == 3:
                raise KeyboardInterrupt
            yield layer.register_forward_hook(lambda *given: None)

    with pytest.raises(KeyboardInterrupt):
        Handle(some())
    with pytest.raises(MemoryError):
        hypernetwork.apply_networks(sd.unet, Stops(), 1.0)
    assert_unchanged(sd, before, picture)


def test_a_removed_network_is_freed_though_its_handle_is_kept(sd):
    kept, networks = [], []
    hint = torch.zeros(1, 3, 64, 64)
    known = len(sd.unet._forward_pre_hooks)
    edges = ControlNet.load("mini-edges")
    kept.append(control(sd, edges, hint))
    (hook,) = list(sd.unet._forward_pre_hooks.values())[known:]
    own = [c.cell_contents for c in hook.__closure__ if isinstance(c.cell_contents, ControlNet)]
    networks += [weakref.ref(own.pop()), weakref.ref(edges)]
    classifier = load_classifier("mini-classifier")
    kept.append(ClassifierGuidance(sd, classifier, "cat", 3))
    vae = load_vae(DECODER, sd.config.vae)
    kept.append(SwappedVAE(sd, vae))
    networks += [weakref.ref(classifier), weakref.ref(vae)]
    del hook, edges, classifier, vae
    drawn(sd)
    for handle in kept:
        handle.remove()
    gc.collect()
    assert [network() for network in networks] == [None] * 4
