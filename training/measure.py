"""The figures: AUROC, recall at a false positive rate, rates with intervals, calibration error. No torch."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

Values = npt.NDArray[np.float64]
CONFIDENCE = 0.95
RESAMPLES = 500


@dataclass(frozen=True, slots=True)
class Rate:
    """`hits` of `total`, with a 95 % Wilson interval."""

    hits: int
    total: int

    @property
    def value(self) -> float:
        """The share, or NaN of nothing."""
        return self.hits / self.total if self.total else float("nan")

    def __str__(self) -> str:
        if not self.total:
            return "none"
        low, high = stats.binomtest(self.hits, self.total).proportion_ci(CONFIDENCE, method="wilson")
        return f"{self.value:.1%} ({low:.1%} to {high:.1%}; {self.hits}/{self.total})"


def rate(fired: npt.NDArray[np.bool_]) -> Rate:
    """Count the true values."""
    return Rate(int(fired.sum()), len(fired))


def both_text(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> str:
    """Share of all pairs of one of `first` and one of `second` in which both are true, each resampled apart (bootstrap)."""
    if not len(first) or not len(second):
        return "none"
    random = np.random.default_rng(0)
    resampled = [random.choice(first, len(first)).mean() * random.choice(second, len(second)).mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(resampled, [0.025, 0.975])
    return f"{first.mean() * second.mean():.1%} ({low:.1%} to {high:.1%}; {len(first)} with each of {len(second)})"


def auroc(positives: Values, negatives: Values) -> float:
    """Chance that a positive scores above a negative, ties half (Mann-Whitney U)."""
    if not len(positives) or not len(negatives):
        return float("nan")
    statistic = stats.mannwhitneyu(positives, negatives).statistic
    return float(statistic / (len(positives) * len(negatives)))


def auroc_text(positives: Values, negatives: Values) -> str:
    """AUROC with a 95 % percentile bootstrap interval, positives and negatives resampled apart; none where no pair is misranked."""
    if len(positives) < 2 or len(negatives) < 2:
        return "none"
    if positives.min() > negatives.max():  # whatever is drawn again would say 1, which proves no more than there are pictures
        return f"1, no pair misranked ({len(positives)} against {len(negatives)})"
    random = np.random.default_rng(0)
    resampled = [
        auroc(random.choice(positives, len(positives)), random.choice(negatives, len(negatives))) for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(resampled, [0.025, 0.975])
    return f"{auroc(positives, negatives):.4f} ({low:.4f} to {high:.4f}; {len(positives)} against {len(negatives)})"


def recall_at(positives: Values, negatives: Values, false_positives: float) -> Rate:
    """Share of positives above the threshold that lets `false_positives` of the negatives through."""
    threshold = np.quantile(negatives, 1 - false_positives, method="higher")
    return rate(positives > threshold)


def calibration_error(scores: Values, truth: npt.NDArray[np.bool_], bins: int = 15) -> float:
    """Expected calibration error over bins of equal count (Nixon et al. 2019)."""
    order = np.argsort(scores)
    parts = np.array_split(order, bins)
    gaps = [abs(scores[part].mean() - truth[part].mean()) * len(part) for part in parts if len(part)]
    return float(sum(gaps) / len(scores))
