"""The `features` architecture: no pretrained network, no download, minutes on a laptop.

Two models work together. A linear model (:mod:`.words`) scores answers by their words: its input is the difference
between A's and B's weights of words and word pairs, so swapping the answers negates its score. A LightGBM booster
(:mod:`.booster`) predicts A, B or tie from the statistics of the texts (:mod:`.statistics`) and that score. In
training, the scores of the booster's battles come from linear models that have not seen their prompts (cross-fitting);
otherwise the booster would trust them too much.

Small neural networks (:mod:`.network`) on the booster's own columns are joined to it where that helps on the inner
folds.

Every battle is trained on in both orders, and a prediction is the mean over both orders, so swapping A and B swaps
their probabilities exactly.

Where enough training battles name the models that answered, the statistics and words that strong models write are
learnt from the models' ratings, and their scores are further columns (:mod:`.authors`).

Where votes come from several sources (:mod:`prefcli.storage.sources`), the booster is trained on top of each source's
base, and a source with enough votes has a booster of its own for what they say beyond the common one. It is trained on
the common one's cross-fitted scores and kept if it helps on held-out prompts.

A folder holds ``booster.txt`` (LightGBM's own format; ``booster-1.txt`` and so on are of single sources,
``authors-1.txt`` and ``authors-2.txt`` of author scores), ``model.safetensors`` (the words' weights, the prior, the
networks) and ``features.json`` (versions, columns and checksums). Nothing is pickled.
"""

from prefcli.models.features.authors import Authors, author_names
from prefcli.models.features.booster import MAX_ROUNDS, SMALL_DATASET, memory_of
from prefcli.models.features.model import (
    BOOSTER,
    MANIFEST,
    WEIGHTS,
    BattleSources,
    FeaturesModel,
    expected_rounds,
    fit,
    load,
    most_rounds,
)
from prefcli.models.features.names import COLUMNS

__all__ = [
    "BOOSTER",
    "COLUMNS",
    "MANIFEST",
    "MAX_ROUNDS",
    "SMALL_DATASET",
    "WEIGHTS",
    "Authors",
    "BattleSources",
    "FeaturesModel",
    "author_names",
    "expected_rounds",
    "fit",
    "load",
    "memory_of",
    "most_rounds",
]
