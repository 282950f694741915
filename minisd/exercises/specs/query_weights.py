"""How much one query reads of each token."""

from minisd.exercises.exercise import Exercise, Stage, normal


def query_weights(q, keys):
    """The attention weights of one query.

    q: d    keys: m d, one key for each token    returns: m, positive numbers that sum to 1
    """
    scores = keys @ q / len(q) ** 0.5
    return scores.softmax(dim=0)


def without_scale(q, keys):
    return query_weights(q * len(q) ** 0.5, keys)


def scale_by_d(q, keys):
    return query_weights(q / len(q) ** 0.5, keys)


def scale_by_tokens(q, keys):
    return (keys @ q / len(keys) ** 0.5).softmax(dim=0)


def return_scores(q, keys):
    return keys @ q / len(q) ** 0.5


def return_powers(q, keys):
    return return_scores(q, keys).exp()


def divide_by_sum(q, keys):
    scores = return_scores(q, keys)
    return scores / scores.sum()


def let_overflow(q, keys):
    powers = return_powers(q, keys)
    return powers / powers.sum()


def use_sigmoid(q, keys):
    return return_scores(q, keys).sigmoid()


def use_cosine(q, keys):
    return (keys @ q / (keys.norm(dim=1) * q.norm())).softmax(dim=0)


def use_distance(q, keys):
    return ((keys - q).norm(dim=1) / len(q) ** 0.5).softmax(dim=0)


EXERCISE = Exercise(
    name="query_weights",
    lesson="07",
    place=1,
    title="The weights of one query",
    question=(
        "One place of the picture has the query `q`. Each token of the prompt has a key, one row "
        "of `keys`. The score of a token is the dot product of `q` and its key, divided by the "
        "square root of d. Write `query_weights(q, keys)`. It returns the softmax of the scores: "
        "for each token, how much the query reads of it. Your softmax must also work if a score "
        "is 1000."
    ),
    solution=query_weights,
    stages=(
        Stage("two tokens", 1, lambda g: [normal(g, 4), normal(g, 2, 4)]),
        Stage("seven tokens", 1, lambda g: [normal(g, 9), normal(g, 7, 9)]),
        Stage("large scores", 1, lambda g: [60 * normal(g, 9), 60 * normal(g, 5, 9)]),
    ),
    hints=(
        "keys @ q gives all dot products at once, one for each token. d is len(q).",
        "The softmax takes exp() of each score, and divides it by the sum of all exp(). "
        "exp(1000) is too large for a float. tensor.softmax() takes care of this.",
        "scores = keys @ q / len(q) ** 0.5. There is only one axis, so the softmax is "
        "scores.softmax(dim=0).",
    ),
    mistakes={
        "The scores are not divided by the square root of d.": without_scale,
        "You divided by d, not by its square root.": scale_by_d,
        "You divided by the square root of m, the number of tokens. d is the length of q.": (
            scale_by_tokens
        ),
        "These are the scores. Take their softmax.": return_scores,
        "exp() is applied, but the results do not sum to 1 yet.": return_powers,
        "You divided the scores by their sum. The softmax takes exp() of each score first.": (
            divide_by_sum
        ),
        "exp() of a large score overflows. Use softmax(), or subtract the largest score first.": (
            let_overflow
        ),
        "sigmoid() looks at each score alone. The softmax makes them sum to 1.": use_sigmoid,
        "These are cosines. Divide by the square root of d, not by the lengths of the vectors.": (
            use_cosine
        ),
        "These are distances. A score is a dot product.": use_distance,
    },
    passing=(
        "Each place of the picture has such weights in each head of each attention. The "
        "attention computes all of them at once."
    ),
    difficulty=1,
    minutes=8,
)
