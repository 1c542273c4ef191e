"""BLEU (Papineni et al. 2002) of captions, by the sacrebleu library (Post 2018, arXiv 1804.08771)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..base.errors import InputError


def bleu(captions: Sequence[str], references: Sequence[Sequence[str]], order: int = 4) -> tuple[float, str]:
    """(corpus BLEU of n-grams up to `order`, from 0 to 100; sacrebleu's signature, which says how words were told apart).

    references: those of each caption, one or more. Raises InputError for captions without any, and where sacrebleu is not
    installed (pip install 'giverny[captions]').
    """
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError as error:
        raise InputError("the sacrebleu library", "none installed", "pip install 'giverny[captions]'") from error
    if not captions or len(captions) != len(references) or not all(references):
        raise InputError("captions, and one reference or more for each", f"{len(captions)} and {len(references)}")
    most = max(map(len, references))
    streams: Any = [[told[i] if i < len(told) else None for told in references] for i in range(most)]
    measure = BLEU(max_ngram_order=order, effective_order=False, lowercase=True)
    score = measure.corpus_score(list(captions), streams)
    return float(score.score), str(measure.get_signature())
