"""How is a word pronounced? English letters to sounds. Many to many.

    python examples/letters_to_sounds.py [--cell rnn|lstm|gru] [--framework rnnfast|torch]

Words of the CMU Pronouncing Dictionary; scored by edits per sound (phoneme error rate) on words that were held out.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict

import numpy as np
import task_data
from seq2seq import PairTask
from task_training import error_rate, main

WORDS = 12_000  # of 117,000: enough for a good score in half a minute


class LettersToSounds(PairTask):
    metric, best = "phoneme error rate, %", min
    epochs, batch, rate = 5, 64, 3e-3
    hidden = 128

    def __init__(self, options: argparse.Namespace) -> None:
        pairs = task_data.pronunciations()
        order = np.random.default_rng(0).permutation(len(pairs))[:WORDS]
        super().__init__(options, [pairs[n] for n in order], held_out=1000)

    def score(self) -> float:
        return error_rate(self.answers(), [sounds for _, sounds in self.unseen])

    def baselines(self) -> dict[str, float]:
        """The sound that a letter between its neighbours most often has, in words with as many sounds as letters."""
        counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for word, sounds in self.known:
            if len(word) == len(sounds):
                for at, sound in enumerate(sounds):
                    for context in (word[at], contexts(word)[at]):
                        counts[context][sound] += 1
        found = [
            [
                choice.most_common(1)[0][0]
                for at in range(len(word))
                if (choice := counts[contexts(word)[at]] or counts[word[at]])
            ]
            for word, _ in self.unseen
        ]
        return {"letter with its neighbours": error_rate(found, [sounds for _, sounds in self.unseen])}

    def samples(self) -> list[str]:
        words = [word for word, _ in self.unseen]
        return [f"{word:16} {' '.join(sounds)}" for word, sounds in zip(words, self.answers(6), strict=False)]


def contexts(word: str) -> list[str]:
    """Each letter with the one before and the one after it."""
    return [f"^{word}$"[at : at + 3] for at in range(len(word))]


if __name__ == "__main__":
    raise SystemExit(main(LettersToSounds, __doc__))
