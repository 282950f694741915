"""Merge the pieces of a very long word fast. A line without spaces is one very long word."""

from collections.abc import Mapping
from heapq import heapify, heappop, heappush
from itertools import pairwise
from math import inf


def merge_long_word(pieces: list[str], ranks: Mapping[tuple[str, ...], int]) -> list[str]:
    """Merge the characters of a word. The result is the same as the result of Tokenizer.bpe.

    pieces: the characters of the word. The last character has the end-of-word mark
    ranks: pair -> its rank. The pair that was learnt first has the rank 0

    With a heap, it is quick to find the next pair to merge. Without a heap, minisd would have to
    search the whole word before every merge. For a word of 30,000 letters, this would take 15 s.
    """
    pieces = [*pieces, ""]  # a merge puts both pieces into the left place, and "" into the right
    end = len(pieces) - 1
    left, right = [*range(-1, end)], [*range(1, end + 1), end]  # of each place
    heap = [(ranks.get(pair, inf), at) for at, pair in enumerate(pairwise(pieces))]
    heapify(heap)
    while heap and heap[0][0] < inf:
        rank, at = heappop(heap)
        after = right[at]
        if ranks.get((pieces[at], pieces[after])) != rank:
            continue  # one of these two pieces has been merged in the meantime
        pieces[at], pieces[after] = pieces[at] + pieces[after], ""
        right[at] = right[after]
        left[right[at]] = at
        for start in (left[at], at):
            pair = pieces[start], pieces[right[start]]
            heappush(heap, (ranks.get(pair, inf), start))
    return [piece for piece in pieces if piece]
