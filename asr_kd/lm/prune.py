"""Entropy pruning of back-off models (Stolcke 1998, "Entropy-based pruning of backoff language models")."""

import numpy as np

from asr_kd.lm.ngram import BOS, EOS, Level, NgramModel

# Mass that rounding leaves of nothing.
_NOTHING = 1e-12


def prune(model: NgramModel, threshold: float) -> NgramModel:
    """The model without the n-grams whose removal raises its perplexity by less than the share `threshold`.

    As in SRILM's `-prune`: each n-gram is judged by itself, with the back-off weight that its history would get; one
    that begins a longer n-gram stays, and so do all unigrams. Every history sums to one afterwards. The probability of
    histories is the model's own; under Kneser-Ney that of lower orders is not that of the text, so that small models
    are a little worse than pruned models of other smoothing (Chelba et al. 2010).
    """
    if threshold <= 0:
        return model
    levels = list(model.levels)
    for n in range(model.order, 1, -1):
        kept = ~_superfluous(model, n, threshold)
        if n < model.order:
            kept[levels[n].prefix] = True
        levels[n - 1] = _take(levels[n - 1], kept)
        if n < model.order:
            above = levels[n]
            rank = np.cumsum(kept) - 1
            levels[n] = Level(rank[above.prefix], above.word, above.log_prob, above.backoff)
    return with_backoffs(NgramModel.of(model.words, levels))


def with_backoffs(model: NgramModel) -> NgramModel:
    """The model with back-off weights that let every history sum to one, as far as any can."""
    levels = list(model.levels)
    levels[-1] = Level(levels[-1].prefix, levels[-1].word, levels[-1].log_prob, np.zeros(len(levels[-1])))
    for n in range(2, model.order + 1):
        partial = NgramModel(model.words, levels[:n])
        explicit, shorter = _masses(partial, n)
        left, left_below = 1 - explicit, 1 - shorter
        backoff = np.zeros(len(explicit))
        possible = (left > _NOTHING) & (left_below > _NOTHING)
        backoff[possible] = np.log10(left[possible] / left_below[possible])
        below = levels[n - 2]
        levels[n - 2] = Level(below.prefix, below.word, below.log_prob, backoff)
    return NgramModel(model.words, levels)


def _masses(model: NgramModel, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each history of n − 1 words: the probability of the words listed after it, and what a history shorter by one
    word gives to them; both (num_histories,).
    """
    level = model.levels[n - 1]
    num_histories = len(model.levels[n - 2])
    shorter = 10.0 ** model.log_probs(model.ngrams(n)[:, 1:])
    return (
        np.bincount(level.prefix, 10.0**level.log_prob, minlength=num_histories),
        np.bincount(level.prefix, shorter, minlength=num_histories),
    )


def _superfluous(model: NgramModel, n: int, threshold: float) -> np.ndarray:
    """Which n-grams of an order may go, (num_ngrams,) bool: the paper's equation 6, in natural logarithms."""
    level, history = model.levels[n - 1], model.levels[n - 1].prefix
    explicit, shorter = (mass[history] for mass in _masses(model, n))
    prob, ngrams = 10.0**level.log_prob, model.ngrams(n)
    log_prob = level.log_prob * np.log(10)
    log_lower = model.log_probs(ngrams[:, 1:]) * np.log(10)
    left, left_below = 1 - explicit, 1 - shorter
    log_backoff = model.levels[n - 2].backoff[history] * np.log(10)
    new_left, new_left_below = left + prob, left_below + np.exp(log_lower)
    log_new_backoff = np.log(np.maximum(new_left, _NOTHING)) - np.log(np.maximum(new_left_below, _NOTHING))
    change = prob * (log_lower + log_new_backoff - log_prob) + np.maximum(left, 0.0) * (log_new_backoff - log_backoff)
    with np.errstate(over="ignore"):
        return np.expm1(-_history_prob(model, n)[history] * change) < threshold


def _history_prob(model: NgramModel, n: int) -> np.ndarray:
    """Probability of each history of n − 1 words; <s> is as frequent as the end of a sentence."""
    ngrams = model.ngrams(n - 1)
    bos, eos = model.word_id[BOS], model.word_id[EOS]
    total = np.zeros(len(ngrams))
    for length in range(1, n):
        part = ngrams[:, :length]
        if length == 1:
            part = np.where(part == bos, eos, part)
        total += model.log_probs(part)
    return 10.0**total


def _take(level: Level, kept: np.ndarray) -> Level:
    return Level(level.prefix[kept], level.word[kept], level.log_prob[kept], level.backoff[kept])
