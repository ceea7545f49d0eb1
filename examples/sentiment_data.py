"""Texts, labels and baselines of the sentiment task, for its two forms. Needs NumPy alone."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import task_data


def words_of(text: str) -> list[str]:
    """Lower-case words, and the signs that carry a mood: smileys, exclamation and question marks."""
    return re.findall(r"[a-z']+|[:;=8xX]-?[()\[\]dDpP/\\|*oO3]+|<3|[!?]+|\.\.+", text.lower()) or ["."]


class Tweets(NamedTuple):
    """Words and ratings to train on, the same held out, and the held-out texts."""

    x: list[list[str]]
    y: np.ndarray
    x_held_out: list[list[str]]
    y_held_out: np.ndarray
    texts: list[str]
    vocabulary: task_data.Vocabulary
    valence: np.ndarray  # of each of the vocabulary's words, by the lexicon; 0 where it has none


def load(limit: int | None) -> Tweets:
    tweets = [tweet for tweet in task_data.rated_texts("tweets") if tweet.rating][:limit]
    train, held_out = task_data.split(len(tweets), 0.2, [tweet.text for tweet in tweets])
    known, unseen = [tweets[n] for n in train], [tweets[n] for n in held_out]
    (x, y), (x_held_out, y_held_out) = (
        ([words_of(item.text) for item in items], np.array([item.rating for item in items], np.float32))
        for items in (known, unseen)
    )
    lexicon = task_data.word_valences()
    vocabulary = task_data.Vocabulary(x, least=2, always=[word for word in lexicon if words_of(word) == [word]])
    valence = np.array([lexicon.get(word, 0) for word in vocabulary.symbols], np.float32)
    return Tweets(x, y, x_held_out, y_held_out, [item.text for item in unseen], vocabulary, valence)


def strength(rating: np.ndarray) -> np.ndarray:
    """How positive a text is for a network that learns it, from 0 to 1: a text that divides its readers is near 1/2."""
    return 1 / (1 + np.exp(-2 * rating))


def baselines(tweets: Tweets) -> dict[str, float]:
    """The more frequent answer; naive Bayes, a sum of log odds of words, whatever their order; the sum of the words'
    valences."""
    y, y_held_out = tweets.y > 0, tweets.y_held_out > 0
    seen = task_data.Vocabulary(tweets.x, least=2)
    counts = np.ones((2, len(seen)))
    for words, label in zip(tweets.x, y, strict=True):
        np.add.at(counts[int(label)], seen.encode(words), 1)
    odds = np.log(counts[1] / counts[1].sum()) - np.log(counts[0] / counts[0].sum())
    prior = np.log(y.mean() / (1 - y.mean()))
    bayes = np.array([odds[seen.encode(words)].sum() + prior > 0 for words in tweets.x_held_out])
    summed = np.array([tweets.valence[tweets.vocabulary.encode(words)].sum() > 0 for words in tweets.x_held_out])
    answers = {"more frequent answer": np.full(len(y_held_out), y.mean() > 0.5), "naive Bayes": bayes}
    answers["lexicon"] = summed
    return {name: 100 * float((answer == y_held_out).mean()) for name, answer in answers.items()}
