"""A latent as tokens. The patch size and the order of the numbers are the student's own."""

from einops import rearrange

from minisd.exercises.exercise import Exercise, Stage, normal

ORDERS = ("c p q", "p q c")


def patchify(latent, *, side=2, order="c p q"):
    """Cut a latent into patches. Each patch becomes one token.

    latent: b c h w    returns: b tokens numbers, the tokens row by row from the upper left
    """
    return rearrange(latent, f"b c (h p) (w q) -> b (h w) ({order})", p=side, q=side)


def with_pattern(pattern):
    """The answer with another pattern. {order} in it is the order of the numbers."""

    def answer(latent, *, side=2, order="c p q"):
        return rearrange(latent, pattern.replace("order", order), p=side, q=side)

    return answer


def other_order(latent, *, side=2, order="c p q"):
    first, second = ORDERS
    return patchify(latent, side=side, order=second if order == first else first)


def other_side(latent, *, side=2, order="c p q"):
    return patchify(latent, side=6 - side, order=order)


def columns_first(latent, *, side=2, order="c p q"):
    return patchify(latent, side=side, order=order.replace("p q", "q p"))


def only_reshaped(latent, *, side=2, order="c p q"):
    b, c, h, w = latent.shape
    return latent.reshape(b, h * w // side**2, c * side**2)


def of_each_place(latent, *, side=2, order="c p q"):
    return rearrange(latent, "b c h w -> b (h w) c")


def inputs(b, c, h, w):
    def draw(g):
        return [normal(g, b, c, h, w)]

    return draw


EXERCISE = Exercise(
    name="patchify",
    lesson="18",
    place=1,
    title="Patches as tokens",
    question=(
        "Write `patchify(latent)`. It cuts a latent into patches of {side} x {side} places, and "
        "makes one token of each patch. The tokens stand row by row, from the upper left. Inside a "
        "token, the numbers are in the order `{order}`: p is the row in the patch, q is the column "
        "in the patch, and c is the channel. The last of the three letters changes fastest, as "
        "always in `rearrange`. One call of `rearrange` is enough."
    ),
    solution=patchify,
    stages=(
        Stage("one channel, 4 x 4 places", 1, inputs(1, 1, 4, 4)),
        Stage("a latent of 4 channels, 8 x 8 places", 1, inputs(1, 4, 8, 8)),
        Stage("two latents of 3 channels, 8 x 12 places", 2, inputs(2, 3, 8, 12)),
    ),
    hints=(
        "rearrange can split an axis: (h p) on the left side means h groups of p rows.",
        'The left side is "b c (h p) (w q)". Say how long p and q are: p=..., q=...',
        'The right side is "b (h w) (...)". Put your order into the last parentheses.',
    ),
    mistakes={
        "The numbers of each token are in another order. `question` shows your own.": other_order,
        "Your patches have another size. `question` shows your own.": other_side,
        "The columns of a patch come before its rows. Put q after p.": columns_first,
        "The tokens stand column by column. They should stand row by row.": (
            with_pattern("b c (h p) (w q) -> b (w h) (order)")
        ),
        "The places of your patches are not neighbours. Write (h p) and (w q), not (p h).": (
            with_pattern("b c (p h) (q w) -> b (h w) (order)")
        ),
        "Your tokens stand in a grid. Join its two axes: (h w).": (
            with_pattern("b c (h p) (w q) -> b h w (order)")
        ),
        "Each channel has its own tokens. One token holds all channels of its patch.": (
            with_pattern("b c (h p) (w q) -> b (c h w) (p q)")
        ),
        "The two axes of the result are swapped. The tokens come first, then their numbers.": (
            with_pattern("b c (h p) (w q) -> b (order) (h w)")
        ),
        "The shape is right, but nothing moved. reshape reads along rows, across many patches.": (
            only_reshaped
        ),
        "Each place is a token of its own. Join the places of a patch.": of_each_place,
    },
    passing=(
        "A transformer can read these tokens as it reads words. DiT and FLUX cut latents in this "
        "way, with patches of 2 x 2 places."
    ),
    difficulty=2,
    minutes=10,
    constants=lambda rng: {"side": rng.choice([2, 4]), "order": rng.choice(ORDERS)},
    in_lesson=True,
)
