"""Stable Diffusion's own schedule: the table of alpha_bar."""

import torch

from minisd import schedule
from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage
from minisd.schedule import LARGEST_SIGMA, Schedule


def alpha_bar_table(beta_start, beta_end, timesteps):
    """alpha_bar at t = 0, 1, ... timesteps - 1.

    beta_start, beta_end: the first and the last beta    returns: timesteps, float64
    """
    roots = torch.linspace(beta_start**0.5, beta_end**0.5, timesteps, dtype=torch.float64)
    return torch.cumprod(1 - roots**2, dim=0)


def from_betas(make_betas):
    """The table of other betas."""
    return lambda start, end, count: torch.cumprod(1 - make_betas(start, end, count), dim=0)


def ramp(start, end, count):
    return torch.linspace(start, end, count, dtype=torch.float64)


def right_betas(start, end, count):
    """The betas of the solution."""
    return ramp(start**0.5, end**0.5, count) ** 2


def one_step_late(start, end, count):
    table = alpha_bar_table(start, end, count)
    return torch.cat([torch.ones(1, dtype=torch.float64), table[:-1]])


def as_constructor(answer):
    """The answer as Schedule.__init__. Models with betas of another rule keep the usual one."""
    usual_init = Schedule.__init__

    def init(self, config):
        if config.betas is not None or config.beta_schedule != "scaled_linear":
            usual_init(self, config)
            return
        self.config = config
        self.alpha_bar = answer(config.beta_start, config.beta_end, config.timesteps)
        if config.zero_terminal_snr:
            self.alpha_bar = schedule.with_zero_terminal_snr(self.alpha_bar)
        self.sigmas = ((1 - self.alpha_bar) / self.alpha_bar).sqrt()
        self._log_sigmas = self.sigmas.log().numpy()
        self.finite_sigmas = self.sigmas.nan_to_num(posinf=LARGEST_SIGMA).numpy()

    return init


EXERCISE = Exercise(
    name="alpha_bar_table",
    lesson="01",
    place=2,
    title="The table of alpha_bar",
    question=(
        "Write `alpha_bar_table(beta_start, beta_end, timesteps)`. In Stable Diffusion, the "
        "square roots of the betas are evenly spaced: the first is the root of beta_start, the "
        "last is the root of beta_end. alpha_bar at t is the product of (1 - beta) over all "
        "betas up to t. The beta of t is included. Return the table, one number for each t, in "
        "float64 (`dtype=torch.float64`)."
    ),
    solution=alpha_bar_table,
    stages=(
        Stage("a table of 4", 1, lambda g: [0.1, 0.4, 4]),
        Stage("Stable Diffusion's table of 1000", 1, lambda g: [0.00085, 0.012, 1000]),
    ),
    hints=(
        "torch.linspace(first, last, count, dtype=torch.float64) gives evenly spaced numbers.",
        "Space the square roots evenly, then square them: these are the betas.",
        "torch.cumprod(1 - betas, dim=0) multiplies all numbers up to each place.",
    ),
    mistakes={
        "Here, the betas are evenly spaced. Their square roots should be.": from_betas(ramp),
        "The roots are evenly spaced, but you did not square them again.": (
            from_betas(lambda start, end, count: ramp(start**0.5, end**0.5, count))
        ),
        "You squared evenly spaced betas. Take the roots of both ends first.": (
            from_betas(lambda start, end, count: ramp(start, end, count) ** 2)
        ),
        "You took the roots of evenly spaced betas. Space the roots evenly, then square them.": (
            from_betas(lambda start, end, count: ramp(start, end, count) ** 0.5)
        ),
        "This is 1 - beta at each t. alpha_bar is the product of all of them up to t.": (
            lambda start, end, count: 1 - right_betas(start, end, count)
        ),
        "These are the betas. alpha_bar is the product of all 1 - beta up to t.": right_betas,
        "This is the product of the betas. Multiply 1 - beta.": (
            lambda start, end, count: right_betas(start, end, count).cumprod(0)
        ),
        "This is 1 - alpha_bar. Return alpha_bar.": (
            lambda start, end, count: 1 - alpha_bar_table(start, end, count)
        ),
        "These are the signal rates: the roots of alpha_bar. Leave out the root.": (
            lambda start, end, count: alpha_bar_table(start, end, count).sqrt()
        ),
        "You took the sum of all 1 - beta. Take their product.": (
            lambda start, end, count: (1 - right_betas(start, end, count)).cumsum(0)
        ),
        "You subtracted the betas one after another. Take the product of all 1 - beta.": (
            lambda start, end, count: 1 - right_betas(start, end, count).cumsum(0)
        ),
        "The table starts one step late: alpha_bar at t = 0 already holds the first beta.": (
            one_step_late
        ),
        "This is one number, the product of all. Return a table: torch.cumprod.": (
            lambda start, end, count: (1 - right_betas(start, end, count)).prod()
        ),
        "Your loop changes the number that it has stored. Write p = p * (1 - beta), not p *= .": (
            lambda start, end, count: alpha_bar_table(start, end, count)[-1:].expand(count)
        ),
        "The last root must be that of beta_end: divide by timesteps - 1, or use linspace.": (
            from_betas(
                lambda start, end, count: (
                    (
                        start**0.5
                        + (end**0.5 - start**0.5) * torch.arange(count, dtype=torch.float64) / count
                    )
                    ** 2
                )
            )
        ),
        "The table is in float32. Pass dtype=torch.float64.": (
            lambda start, end, count: (
                1 - torch.linspace(start**0.5, end**0.5, count) ** 2
            ).cumprod(0)
        ),
    },
    passing="Stable Diffusion's whole schedule is this table. All sigmas come from it.",
    difficulty=2,
    minutes=10,
    replaces={"minisd.schedule.Schedule.__init__": as_constructor},
    draw=draw_cat,
    in_lesson=True,
)
