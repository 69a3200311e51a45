"""Quality of texts: ROUGE, BLEU and chrF with their signatures, and their uncertainty by bootstrap over sentences.

A metric is sums over sentences and a function of the sums, so that a resample of the sentences is one small product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
from rouge_score import rouge_scorer
from sacrebleu.metrics import BLEU, CHRF

from kdtw_fast.machine import versions

from .plan import METRICS as METRICS

STEMMER = False  # of ROUGE
ROUGE = {"rouge1": "rouge1", "rouge2": "rouge2", "rougeL": "rougeL"}
RESAMPLES = 1000
COVERAGE = 0.95  # of every interval


@dataclass(frozen=True)
class Interval:
    """A value and its interval (95 %, percentile bootstrap over sentences)."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, resampled: np.ndarray) -> Interval:
        """The interval of a value from its resamples [B]; those that are not finite do not count."""
        finite = resampled[np.isfinite(resampled)]
        if not len(finite):
            return cls(float(value), float(value), float(value))
        low, high = np.quantile(finite, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
        return cls(float(value), float(low), float(high))


def resample(sentences: int, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """How often each of N sentences is drawn in each of B resamples: [B, N], rows sum to N.

    The same for all points, so that differences between two of them are paired.
    """
    return np.random.default_rng(seed).multinomial(sentences, np.full(sentences, 1 / sentences), size=resamples)


def signatures() -> dict[str, str]:
    """By metric: the settings and versions that it is computed with."""
    rouge = f"rouge-score {versions('rouge-score').get('rouge-score', '?')}, F, {'with' if STEMMER else 'no'} stemmer"
    corpus = {}
    for name in ("bleu", "chrf"):
        metric = _corpus_metric(name)
        metric.corpus_score(["a"], [["a"]])  # which tells it the number of references
        corpus[name] = str(metric.get_signature())
    return dict.fromkeys(ROUGE, rouge) | corpus


@cache
def _corpus_metric(name: str) -> Any:
    return BLEU(force=True) if name == "bleu" else CHRF()


@cache
def _rouge() -> rouge_scorer.RougeScorer:
    return rouge_scorer.RougeScorer(list(ROUGE), use_stemmer=STEMMER)


@lru_cache(maxsize=1 << 17)  # many points write the same text
def _rouge_of(reference: str, text: str) -> tuple[float, ...]:
    scores = _rouge().score(reference, text)
    return tuple(100.0 * scores[name].fmeasure for name in ROUGE)


@lru_cache(maxsize=1 << 18)
def _counts_of(name: str, reference: str, text: str) -> tuple[int, ...]:
    """What sacrebleu's own significance tests resample."""
    return tuple(_corpus_metric(name)._extract_corpus_statistics([text], [[reference]])[0])


@dataclass(frozen=True)
class Statistics:
    """Per sentence what the metrics are sums of: metric -> [N, number of sums]."""

    sums: dict[str, np.ndarray]

    @classmethod
    def of(cls, texts: Sequence[str], references: Sequence[str]) -> Statistics:
        """The statistics of N texts against their references; ValueError if there are none, or not as many."""
        if not texts or len(texts) != len(references):
            raise ValueError(
                f"expected as many texts as references and at least one, got {len(texts)}, {len(references)}"
            )
        rouge = np.array([_rouge_of(reference, text) for text, reference in zip(texts, references)])
        sums = {name: rouge[:, [i]] for i, name in enumerate(ROUGE)}
        for name in ("bleu", "chrf"):
            counts = [_counts_of(name, reference, text) for text, reference in zip(texts, references)]
            sums[name] = np.array(counts, dtype=np.int64)
        return cls(sums)

    @property
    def sentences(self) -> int:
        """N."""
        return len(self.sums["bleu"])

    def score(self, metric: str) -> float:
        """The metric on all sentences, 0 to 100."""
        return float(self.resampled(metric, np.ones((1, self.sentences), dtype=np.int64))[0])

    def resampled(self, metric: str, counts: np.ndarray) -> np.ndarray:
        """The metric [B] on resamples of the sentences, given by :func:`resample`."""
        sums = counts.astype(np.float64) @ self.sums[metric].astype(np.float64)  # fast; counts stay exact
        if metric in ROUGE:
            return sums[:, 0] / self.sentences
        compute = _corpus_metric(metric)._compute_score_from_stats
        return np.array([compute(row.tolist()).score for row in sums.astype(np.int64)])
