"""Guidance by any loss."""

import torch
from torch import Tensor

from minisd.exercises.calls import Made
from minisd.exercises.exercise import Exercise, Stage, draw_choice, normal
from minisd.guidance import x0_from_eps
from minisd.pipeline import StableDiffusion


def guide_by_loss(x, eps, level, loss, scale):
    """Change eps so that the guess x0 gets a smaller loss.

    x: b c h w, with noise    eps: b c h w, what the network predicts. It is a constant
    level: level.signal_rate and level.noise_rate are the rates of x
    loss: a function. The sum of all numbers in loss(x0) should become smaller
    scale: a number
    returns: the guided eps, b c h w
    """
    x = x.detach().requires_grad_(True)
    x0 = (x - level.noise_rate * eps) / level.signal_rate
    (gradient,) = torch.autograd.grad(loss(x0).sum(), x)
    return eps + scale * level.noise_rate * gradient


def slope(x, eps, level, loss):
    """The solution's gradient."""
    unit = guide_by_loss(x, eps, level, loss, 1.0) - eps
    return unit / level.noise_rate


def slope_at(x0, loss):
    """The gradient with respect to the argument of the loss."""
    leaf = x0.detach().requires_grad_(True)
    return torch.autograd.grad(loss(leaf).sum(), leaf)[0]


def uphill(x, eps, level, loss, scale):
    return guide_by_loss(x, eps, level, loss, -scale)


def loss_of_x(x, eps, level, loss, scale):
    return eps + scale * level.noise_rate * slope_at(x, loss)


def towards_x0(x, eps, level, loss, scale):
    return eps + scale * level.noise_rate * slope_at(x0_from_eps(x, eps, level), loss)


def no_rate(x, eps, level, loss, scale):
    return eps + scale * slope(x, eps, level, loss)


def other_rate(x, eps, level, loss, scale):
    return eps + scale * level.signal_rate * slope(x, eps, level, loss)


def no_scale(x, eps, level, loss, scale):
    return guide_by_loss(x, eps, level, loss, 1.0)


def only_gradient(x, eps, level, loss, scale):
    return guide_by_loss(x, eps, level, loss, scale) - eps


def move_x(x, eps, level, loss, scale):
    return x - scale * slope(x, eps, level, loss)


def return_x0(x, eps, level, loss, scale):
    return x0_from_eps(x, guide_by_loss(x, eps, level, loss, scale), level)


def towards_yellow(answer):
    """The core's denoiser. The answer leads each guess to a yellow picture."""
    core = StableDiffusion.denoiser

    def denoiser(self, *arguments, **settings):
        plain = core(self, *arguments, **settings)

        def loss(latent: Tensor) -> Tensor:
            means = self.decode(latent).mean(dim=(2, 3))
            return (means - torch.tensor([0.96, 0.74, -0.61])).square().mean(dim=1)

        def denoise(x, level):
            prediction = plain(x, level)
            with torch.enable_grad():
                eps = answer(x, prediction.eps, level, loss, 20.0).detach()
            return prediction._replace(x0=x0_from_eps(x, eps, level), eps=eps)

        return denoise

    return denoiser


def draw_open_cat(sd):
    return sd.txt2img("a cat", steps=12, seed=1)


def inputs(b, c, h, w):
    """The loss is the length of each channel, so its gradient depends on where it is computed."""

    def draw(g):
        level = Made("level", {"sigma": draw_choice(g, [0.6, 1.7, 3.1])})
        loss = Made("layer", {"name": "LPPool2d", "norm_type": 2.0, "kernel_size": (h, w)})
        return [*normal(g, 2, b, c, h, w), level, loss, 7.5]

    return draw


EXERCISE = Exercise(
    name="guide_by_loss",
    lesson="09",
    place=7,
    title="Guidance by any loss",
    question=(
        "A loss says how bad a guess x0 is. Write `guide_by_loss(x, eps, level, loss, scale)`. "
        "Compute x0 from x and eps. Compute the gradient of the loss with respect to x: "
        "`torch.autograd.grad(number, x)` returns a tuple with one tensor, and x needs "
        "`requires_grad`. Here, eps is a constant. Return eps plus `scale` times the noise rate "
        "times the gradient. (x0 is computed by subtracting eps. So adding the gradient to eps "
        "moves x0 against the gradient: the loss gets smaller.)"
    ),
    solution=guide_by_loss,
    stages=(
        Stage("one channel", 1, inputs(1, 1, 2, 3)),
        Stage("a batch of 2", 2, inputs(2, 4, 3, 5)),
    ),
    hints=(
        "x = x.detach().requires_grad_(True) makes a copy of x that remembers what is done with "
        "it. Compute x0 from this copy.",
        "torch.autograd.grad needs one number, so give it loss(x0).sum().",
        "x0 = (x - level.noise_rate * eps) / level.signal_rate, then (gradient,) = "
        "torch.autograd.grad(loss(x0).sum(), x). Return eps + scale * level.noise_rate * gradient.",
    ),
    mistakes={
        "The sign is wrong: this makes the loss larger. Add to eps.": uphill,
        "You computed the loss of x. Compute the loss of the guess x0.": loss_of_x,
        "This is the gradient with respect to x0. Compute it with respect to x.": towards_x0,
        "The noise rate is missing: multiply the gradient by it.": no_rate,
        "You multiplied by the signal rate. Multiply by the noise rate.": other_rate,
        "The scale is not used.": no_scale,
        "This is only the change. Add it to eps.": only_gradient,
        "You changed x. Change eps, and return it.": move_x,
        "You returned the new x0. Return the new eps.": return_x0,
    },
    passing="No training was needed. Any loss with a gradient can lead the mini in this way.",
    difficulty=2,
    minutes=12,
    in_picture={"minisd.pipeline.StableDiffusion.denoiser": towards_yellow},
    draw=draw_open_cat,
    in_lesson=True,
)
