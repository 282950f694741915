"""Merge the pieces of one very long word, such as a line without spaces, in little time."""

from collections.abc import Mapping
from heapq import heapify, heappop, heappush
from itertools import pairwise
from math import inf


def merge_long_word(pieces: list[str], ranks: Mapping[tuple[str, ...], int]) -> list[str]:
    """Merge the characters of a word into the same pieces as Tokenizer.bpe.

    pieces: the characters, the last one with the end-of-word mark
    ranks: pair -> its rank, 0 for the merge that was learnt first

    A heap finds the next pair fast. For a word of 30,000 letters, it would take 15 s to search the
    whole word before every merge.
    """
    pieces = [*pieces, ""]  # a merged piece stands in its first place, "" in the others
    end = len(pieces) - 1
    left, right = [*range(-1, end)], [*range(1, end + 1), end]  # each place's neighbours
    heap = [(ranks.get(pair, inf), at) for at, pair in enumerate(pairwise(pieces))]
    heapify(heap)
    while heap and heap[0][0] < inf:
        rank, at = heappop(heap)
        after = right[at]
        if ranks.get((pieces[at], pieces[after])) != rank:
            continue  # one of the two has been merged in the meantime
        pieces[at], pieces[after] = pieces[at] + pieces[after], ""
        right[at] = right[after]
        left[right[at]] = at
        for start in (left[at], at):
            pair = pieces[start], pieces[right[start]]
            heappush(heap, (ranks.get(pair, inf), start))
    return [piece for piece in pieces if piece]
