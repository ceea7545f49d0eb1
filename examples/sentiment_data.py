"""Texts, labels and baselines of the sentiment task, for its two forms. Needs NumPy alone."""

from __future__ import annotations

import re

import numpy as np
import task_data


def words_of(text: str) -> list[str]:
    """Lower-case words, and the signs that carry a mood: smileys, exclamation and question marks."""
    return re.findall(r"[a-z']+|[:;=8xX]-?[()\[\]dDpP/\\|*oO3]+|<3|[!?]+|\.\.+", text.lower()) or ["."]


def load(limit: int | None) -> tuple[list[list[str]], np.ndarray, list[list[str]], np.ndarray, list[str]]:
    """Words and ratings to train on, words and ratings held out, and the held-out texts."""
    tweets = [tweet for tweet in task_data.rated_texts("tweets") if tweet.rating][:limit]
    train, held_out = task_data.split(len(tweets), 0.2, [tweet.text for tweet in tweets])
    known, unseen = [tweets[n] for n in train], [tweets[n] for n in held_out]
    (x, y), (x_held_out, y_held_out) = (
        ([words_of(item.text) for item in items], np.array([item.rating for item in items], np.float32))
        for items in (known, unseen)
    )
    return x, y, x_held_out, y_held_out, [item.text for item in unseen]


def strength(rating: np.ndarray) -> np.ndarray:
    """How positive a text is for a network that learns it, from 0 to 1: a text that divides its readers is near 1/2."""
    return 1 / (1 + np.exp(-2 * rating))


def baselines(
    x: list[list[str]], y: np.ndarray, x_held_out: list[list[str]], y_held_out: np.ndarray
) -> dict[str, float]:
    """The more frequent answer, and naive Bayes: a sum of log odds of words, whatever their order."""
    y, y_held_out = y > 0, y_held_out > 0
    vocabulary = task_data.Vocabulary(x, least=2)
    counts = np.ones((2, len(vocabulary)))
    for words, label in zip(x, y, strict=True):
        np.add.at(counts[int(label)], vocabulary.encode(words), 1)
    odds = np.log(counts[1] / counts[1].sum()) - np.log(counts[0] / counts[0].sum())
    prior = np.log(y.mean() / (1 - y.mean()))
    bayes = np.array([odds[vocabulary.encode(words)].sum() + prior > 0 for words in x_held_out])
    majority = max(y_held_out.mean(), 1 - y_held_out.mean())
    return {"more frequent answer": 100 * float(majority), "naive Bayes": 100 * float((bayes == y_held_out).mean())}
