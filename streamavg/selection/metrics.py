"""Whether more or less of a metric is better, by its name."""

from __future__ import annotations

import re

MONITORED = "val_loss"
"""What Keras' callbacks monitor unless told otherwise."""
_DOWN = (
    "loss", "error", "err", "mse", "mae", "mape", "msle", "rmse", "crossentropy", "nll", "hinge",
    "poisson", "logcosh", "divergence", "kld", "perplexity", "ppl", "wer", "cer",
)  # fmt: skip
_UP = (
    "accuracy", "acc", "auc", "auroc", "auprc", "precision", "recall", "sensitivity", "specificity",
    "f1", "f2", "fbeta", "iou", "miou", "dice", "jaccard", "r2", "correlation", "bleu", "rouge",
    "ndcg", "kappa", "mcc", "psnr", "ssim",
)  # fmt: skip
_DIRECTIONS = {**dict.fromkeys(_DOWN, False), **dict.fromkeys(_UP, True)}
_WORD_ENDS = re.compile(r"[^a-z0-9]+")
_CAMEL_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def more_is_better(metric: str) -> bool | None:
    """Tells the direction of a metric by the words in its name.

    Keras puts the metric last (`val_head_accuracy`, `dice_loss`) and may count it (`auc_1`), so the
    last word decides if it is known; otherwise all known words must agree (`f1_score`,
    `error_rate`). The words of Keras' own metrics have the directions that Keras gives them.

    Args:
        metric: such as "val_loss", "valAccuracy" or "top-5-accuracy".

    Returns:
        True for accuracy and the like, False for losses and errors, None if the name does not tell.
    """
    words = _words(metric)
    if words and words[-1] in _DIRECTIONS:
        return _DIRECTIONS[words[-1]]
    directions = {_DIRECTIONS[word] for word in words if word in _DIRECTIONS}
    return directions.pop() if len(directions) == 1 else None


def _words(metric: str) -> list[str]:
    text = _CAMEL_HUMP.sub("_", metric).lower().replace("io_u", "iou")  # Keras' mean_io_u
    words = [word for word in _WORD_ENDS.split(text) if word]
    while len(words) > 1 and words[-1].isdigit():
        words.pop()
    return words
