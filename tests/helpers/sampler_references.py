"""For tests of samplers: a small network, noise, and the states of a diffusers scheduler."""

import torch
import torch.nn.functional as F


class Network:
    """A nonlinear network that mixes pixels and channels, and depends on t and the context."""

    def __init__(self, dtype=torch.float64):
        generator = torch.Generator().manual_seed(3)
        self.weight = 0.3 * torch.randn(4, 4, 3, 3, generator=generator).to(dtype)
        self.calls = []

    def __call__(self, x, t, context):
        self.calls.append(t)
        shift = context.mean(dim=(1, 2)) + torch.sin(t.to(x) / 300)
        return torch.tanh(F.conv2d(x, self.weight, padding=1) + shift[:, None, None, None])


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def generators(count=2):
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


NOISE = draw(2, 4, 6, 10)
CONTEXT = draw(2, 7, 6, seed=1)


def scheduler_states(scheduler, steps, network, noise, options=lambda index: {}):
    """The state after every call of scheduler.step, in order."""
    scheduler.set_timesteps(steps)
    x = noise * scheduler.init_noise_sigma
    states = []
    for index, t in enumerate(scheduler.timesteps):
        output = network(scheduler.scale_model_input(x, t), t.expand(len(x)), CONTEXT.to(x))
        x = scheduler.step(output, t, x, **options(index)).prev_sample
        states.append(x)
    return states
