"""English to French: an encoder and a decoder with attention. Many to many.

    python examples/translation.py [--cell rnn|lstm|gru] [--framework rnnfast|torch]

Names of emoji and texts of a web framework's interface; scored by chrF on pairs that were held out.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import task_data
from seq2seq import PairTask
from task_training import chrf, main

LONGEST = 60  # letters
WHOLE = 5  # so often in training, a word is one symbol; others are spelled letter by letter


class Translation(PairTask):
    metric = "chrF, %"
    epochs, batch, rate = 8, 32, 2e-3

    def __init__(self, options: argparse.Namespace) -> None:
        french = task_data.emoji_names("fr")
        names = {name: french[emoji] for emoji, name in task_data.emoji_names("en").items() if emoji in french}
        pairs = [*names.items(), *task_data.interface_strings()]
        pairs = [(english.lower(), translated.lower()) for english, translated in pairs]
        pairs = [pair for pair in dict.fromkeys(pairs) if max(map(len, pair)) <= LONGEST]
        order = np.random.default_rng(0).permutation(len(pairs))
        super().__init__(options, [pairs[n] for n in order], held_out=500)

    def speller(self, texts: Sequence[str]) -> Callable[[str], Sequence[str]]:
        return task_data.Speller(texts, least=WHOLE)

    def score(self) -> float:
        return chrf(["".join(answer).strip() for answer in self.answers()], [french for _, french in self.unseen])

    def baselines(self) -> dict[str, float]:
        """The source as it is, and word by word: for each word the one that goes with it most (Dice's measure)."""
        pairs: defaultdict[str, Counter[str]] = defaultdict(Counter)
        english, french = Counter[str](), Counter[str]()
        for source, target in self.known:
            left, right = set(source.split()), set(target.split())
            english.update(left)
            french.update(right)
            for word in left:
                pairs[word].update(right)
        best = {
            word: max(sorted(found), key=lambda other: 2 * found[other] / (english[word] + french[other]))
            for word, found in pairs.items()
        }
        expected = [target for _, target in self.unseen]
        by_word = [" ".join(best.get(word, word) for word in source.split()) for source, _ in self.unseen]
        copied = [source for source, _ in self.unseen]
        return {"source copied": chrf(copied, expected), "word by word": chrf(by_word, expected)}

    def samples(self) -> list[str]:
        return [
            f"{source}  ->  {''.join(answer)}"
            for (source, _), answer in zip(self.unseen, self.answers(6), strict=False)
        ]


if __name__ == "__main__":
    raise SystemExit(main(Translation, __doc__))
