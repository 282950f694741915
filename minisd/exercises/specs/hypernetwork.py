"""A hypernetwork changes what keys and values are made of."""

import torch.nn.functional as F

from minisd.adapters.handle import Handle
from minisd.adapters.hypernetwork import attentions
from minisd.adapters.hypernetwork import hypernetwork as add_hypernetwork
from minisd.config import WEIGHTS
from minisd.exercises.exercise import Exercise, Stage, normal


def keys_and_values(context, to_k, to_v, net_k, net_v, strength):
    """The keys and the values of an attention layer with a hypernetwork.

    context: b m width    to_k, to_v: d width, the weights of the two projections
    net_k, net_v: two small networks. Each is a list of four tensors: the weight and the bias of the
        first layer, the weight and the bias of the second layer
    returns: two tensors, b m d
    """

    def change(net):
        weight1, bias1, weight2, bias2 = net
        hidden = F.relu(F.linear(context, weight1, bias1))
        return F.linear(hidden, weight2, bias2)

    k = F.linear(context + strength * change(net_k), to_k)
    v = F.linear(context + strength * change(net_v), to_v)
    return k, v


def change(context, net, activation=F.relu):
    weight1, bias1, weight2, bias2 = net
    return F.linear(activation(F.linear(context, weight1, bias1)), weight2, bias2)


def project(to_k, to_v, for_k, for_v):
    return F.linear(for_k, to_k), F.linear(for_v, to_v)


def no_residual(context, to_k, to_v, net_k, net_v, strength):
    changes = [strength * change(context, net) for net in (net_k, net_v)]
    return project(to_k, to_v, *changes)


def swap_nets(context, to_k, to_v, net_k, net_v, strength):
    return keys_and_values(context, to_k, to_v, net_v, net_k, strength)


def one_net(context, to_k, to_v, net_k, net_v, strength):
    return keys_and_values(context, to_k, to_v, net_k, net_k, strength)


def keys_only(context, to_k, to_v, net_k, net_v, strength):
    k, _ = keys_and_values(context, to_k, to_v, net_k, net_v, strength)
    return k, F.linear(context, to_v)


def values_only(context, to_k, to_v, net_k, net_v, strength):
    _, v = keys_and_values(context, to_k, to_v, net_k, net_v, strength)
    return F.linear(context, to_k), v


def one_after_the_other(context, to_k, to_v, net_k, net_v, strength):
    for_k = context + strength * change(context, net_k)
    return project(to_k, to_v, for_k, for_k + strength * change(for_k, net_v))


def without_strength(context, to_k, to_v, net_k, net_v, strength):
    return keys_and_values(context, to_k, to_v, net_k, net_v, 1)


def strength_of_all(context, to_k, to_v, net_k, net_v, strength):
    return tuple(strength * one for one in keys_and_values(context, to_k, to_v, net_k, net_v, 1))


def blend(context, to_k, to_v, net_k, net_v, strength):
    mixed = [(1 - strength) * context + strength * change(context, net) for net in (net_k, net_v)]
    return project(to_k, to_v, *mixed)


def after_projection(context, to_k, to_v, net_k, net_v, strength):
    k, v = project(to_k, to_v, context, context)
    return k + strength * change(k, net_k), v + strength * change(v, net_v)


def add_after_projection(context, to_k, to_v, net_k, net_v, strength):
    k, v = project(to_k, to_v, context, context)
    return k + strength * change(context, net_k), v + strength * change(context, net_v)


def no_activation(context, to_k, to_v, net_k, net_v, strength):
    changes = [change(context, net, lambda x: x) for net in (net_k, net_v)]
    return project(to_k, to_v, *(context + strength * one for one in changes))


def gelu(context, to_k, to_v, net_k, net_v, strength):
    changes = [change(context, net, F.gelu) for net in (net_k, net_v)]
    return project(to_k, to_v, *(context + strength * one for one in changes))


def activation_twice(context, to_k, to_v, net_k, net_v, strength):
    changes = [F.relu(change(context, net)) for net in (net_k, net_v)]
    return project(to_k, to_v, *(context + strength * one for one in changes))


def without_bias(context, to_k, to_v, net_k, net_v, strength):
    net_k, net_v = ([net[0], 0 * net[1], net[2], 0 * net[3]] for net in (net_k, net_v))
    return keys_and_values(context, to_k, to_v, net_k, net_v, strength)


def inputs(b, m, width, d):
    def draw(g):
        wide = 2 * width
        shapes = [(wide, width), (wide,), (width, wide), (width,)]
        nets = [[normal(g, *shape) for shape in shapes] for _ in range(2)]
        return [normal(g, b, m, width), normal(g, d, width), normal(g, d, width), *nets, 0.6]

    return draw


def as_networks(answer):
    """The answer instead of minisd's apply_networks(), for nets of two layers with a relu."""

    def apply_networks(unet, networks, strength):
        def hook_of(layer, which):
            nets = [
                [tensor.to(layer.to_k.weight) for pair in net.layers for tensor in pair]
                for net in networks[layer.to_k.in_features]
            ]
            weights = layer.to_k.weight, layer.to_v.weight
            return lambda module, arguments, output: answer(
                arguments[0], *weights, *nets, strength
            )[which]

        layers = [one for one in attentions(unet).values() if one.to_k.in_features in networks]
        return Handle(
            projection.register_forward_hook(hook_of(layer, which))
            for layer in layers
            for which, projection in enumerate((layer.to_k, layer.to_v))
        )

    return apply_networks


def draw_sepia(sd):
    """A cat with the hypernetwork of old photographs."""
    with add_hypernetwork(sd, WEIGHTS / "mini-sepia.pt"):
        return sd.txt2img("a cat on a yellow background", steps=8, seed=2)


EXERCISE = Exercise(
    name="hypernetwork",
    lesson="15",
    place=5,
    title="A network before keys and values",
    question=(
        "A hypernetwork has two small networks. Each reads the context, and its answer is added to "
        "the context: context + strength * net(context). The keys are made from the context that "
        "net_k changed, and the values from the context that net_v changed. Each network is a "
        "linear layer, a relu and a second linear layer. There is no relu at the end. Write "
        "`keys_and_values(context, to_k, to_v, net_k, net_v, strength)`. to_k and to_v are weights "
        "without a bias, for F.linear(x, weight)."
    ),
    solution=keys_and_values,
    stages=(
        Stage("one token", 1, inputs(1, 1, 3, 3)),
        Stage("five tokens", 1, inputs(1, 5, 4, 4)),
        Stage("a batch of 2, and 4 channels to 6", 2, inputs(2, 7, 4, 6)),
    ),
    hints=(
        "Write a function change(net) for one small network, and call it twice.",
        "F.linear(x, weight, bias) is one layer. F.relu comes between the two layers.",
        "k = F.linear(context + strength * change(net_k), to_k), and the same with net_v and to_v "
        "for v.",
    ),
    mistakes={
        "The context itself is missing. Add the networks' answers to it.": no_residual,
        "The two networks are swapped. net_k is for the keys.": swap_nets,
        "You used net_k twice. Use net_v for the values.": one_net,
        "Only the keys have a changed context. The values need one, too.": keys_only,
        "Only the values have a changed context. The keys need one, too.": values_only,
        "net_v reads the context that net_k changed. It should read the context itself.": (
            one_after_the_other
        ),
        "The strength is missing. Multiply by it what is added.": without_strength,
        "You multiplied the context by the strength. Multiply only the change.": strength_of_all,
        "You multiplied the context by 1 - strength. It keeps its full size.": blend,
        "Your networks read the keys and the values. They should read the context.": (
            after_projection
        ),
        "You added the change after the projection. Add it to the context.": add_after_projection,
        "The relu is missing. It stands between the two layers.": no_activation,
        "You used a gelu. Use a relu.": gelu,
        "You put a relu after the second layer. There is only one, before it.": activation_twice,
        "The biases are missing. Each layer of a network has one.": without_bias,
    },
    passing="At strength 0, the layer works as before. A hypernetwork never changes the queries.",
    difficulty=2,
    minutes=15,
    in_picture={"minisd.adapters.hypernetwork.apply_networks": as_networks},
    draw=draw_sepia,
)
