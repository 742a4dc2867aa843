"""Near duplicates among many texts: MinHash proposes pairs, which are then compared exactly.

A text is the set of its character 5-grams, whatever its language, ignoring case and white space. Two texts are near
duplicates if they share at least :data:`MIN_SIMILARITY` of the 5-grams that either has (Jaccard's index). Pairs are
proposed by MinHash (A. Z. Broder, "On the resemblance and containment of documents", 1997) with locality-sensitive
hashing, by the library datasketch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcli.threads import map_in_threads

NGRAM = 5
MIN_SIMILARITY = 0.8
PERMUTATIONS = 64
BANDS = (12, 5)
"""Bands of the signature, and hashes in each: of pairs at :data:`MIN_SIMILARITY` 99 % are proposed, at 0.9 all but
0.01 % (``1 - (1 - s^5)^12``)."""
MIN_ESTIMATE = 0.6
"""Pairs whose signatures agree in less than this part are not compared: the standard error at 0.8 is 0.05."""
MAX_CANDIDATES = 50
"""Proposed texts that a text is compared with exactly: the likeliest."""

Hashes = NDArray[np.uint32]
_FACTORS = tuple(np.uint32(pow(0x9E3779B1, power, 1 << 32)) for power in range(NGRAM))


def ngrams(text: str) -> Hashes:
    """Hashes of a text's character 5-grams, one after the other; a shorter text has one, of all of it."""
    folded = " ".join(text.casefold().split())
    codes = np.frombuffer(folded.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    if len(codes) < NGRAM:
        codes = np.concatenate([codes, np.zeros(NGRAM - len(codes), dtype=np.uint32)])
    windows = len(codes) - NGRAM + 1
    hashes = np.zeros(windows, dtype=np.uint32)
    for begin, factor in enumerate(_FACTORS):
        hashes += codes[begin : begin + windows] * factor
    return hashes


def similarity(first: Hashes, second: Hashes) -> float:
    """Jaccard's index of two sets of hashes, each ascending and without repetitions."""
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / (len(first) + len(second) - shared)


class Signatures:
    """Makes signatures of sets, and proposes pairs of like ones."""

    def __init__(self) -> None:
        from datasketch import MinHash

        empty = MinHash(PERMUTATIONS)
        self._common = {"permutations": empty.permutations, "scheme": empty.scheme}
        self._class = MinHash

    def of(self, sets: Iterable[Hashes]) -> Hashes:
        """Signatures ``[n, PERMUTATIONS]`` of n sets, in which hashes may occur more than once."""
        rows = map_in_threads(self._of, sets)
        return np.array(rows, dtype=np.uint32).reshape(len(rows), PERMUTATIONS)

    def _of(self, hashes: Hashes) -> Hashes:
        # "Hashing" the array as a whole spares the library's loop over its values in Python.
        minhash = self._class(PERMUTATIONS, hashfunc=lambda values: values, **self._common)
        minhash.update_batch([hashes])
        return np.asarray(minhash.hashvalues)

    def _wrap(self, signature: Hashes) -> Any:
        return self._class(PERMUTATIONS, hashvalues=signature, **self._common)

    def candidates(self, signatures: Hashes, others: Hashes | None = None) -> tuple[list[list[int]], int]:
        """For each signature the rows of like ones, the likeliest first: of ``others``, else of those before it.

        Returns
        -------
        At most :data:`MAX_CANDIDATES` rows each, and of how many signatures some were left out.
        """
        from datasketch import MinHashLSH

        index = MinHashLSH(num_perm=PERMUTATIONS, params=BANDS)
        pool = signatures if others is None else others
        if others is not None:
            for row, signature in enumerate(others):
                index.insert(row, self._wrap(signature), check_duplication=False)
        proposed, cut = [], 0
        for row, signature in enumerate(signatures):
            minhash = self._wrap(signature)
            rows = np.array(sorted(index.query(minhash)), dtype=np.intp)
            equal = (pool[rows] == signature).mean(axis=1)
            rows = rows[np.argsort(-equal, kind="stable")][: int((equal >= MIN_ESTIMATE).sum())]
            cut += len(rows) > MAX_CANDIDATES
            proposed.append(rows[:MAX_CANDIDATES].tolist())
            if others is None:
                index.insert(row, minhash, check_duplication=False)
        return proposed, cut


def best_match(own: Sequence[Hashes], others: Iterable[tuple[int, Sequence[Hashes]]]) -> tuple[int, float] | None:
    """Of other texts that are in some parts each, the most similar one if it is a near duplicate in every part.

    ``own`` has the parts prompt, A and B, or the prompt alone; A and B may be exchanged.
    """
    best: tuple[int, float] | None = None
    for name, parts in others:
        orders = [parts] if len(parts) == 1 else [parts, (parts[0], parts[2], parts[1])]
        value = max(min(map(similarity, own, order)) for order in orders)
        if value >= MIN_SIMILARITY and (best is None or value > best[1]):
            best = (name, value)
    return best
