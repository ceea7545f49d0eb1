"""The example tasks, run in a short form on small packages; with the real ones where the cache folder has them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import programs
import small_packages

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
TASKS = ["sentiment", "translation", "letters_to_sounds", "vowels", "characters"]
METRICS = {
    "sentiment": "accuracy, %",
    "translation": "chrF, %",
    "letters_to_sounds": "phoneme error rate, %",
    "vowels": "accuracy, %",
    "characters": "bits per character",
}


def run(name: str, *arguments: str, data: Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    variables = {"OPENBLAS_NUM_THREADS": "1", **os.environ, "RNNFAST_DATA": str(data)}
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    return programs.run(command, env=variables, timeout=600, cwd=cwd)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    small_packages.make(folder)
    return folder


@pytest.fixture
def task_data(packages: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("RNNFAST_DATA", str(packages))
    import task_data

    return task_data


@pytest.fixture
def training(task_data: ModuleType) -> ModuleType:
    pytest.importorskip("torch")
    import task_training

    return task_training


@pytest.fixture(scope="module")
def compared(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What the comparison printed, and the folder of its reports."""
    for name in ("torch", "tqdm", "matplotlib"):
        pytest.importorskip(name)
    folder = tmp_path_factory.mktemp("reports")
    short = ["--seeds", "1", "--epochs", "1", "--limit", "60", "--threads", "1"]
    done = run("compare_tasks.py", "--tasks", *TASKS, "--cells", "gru", *short, "--folder", str(folder), data=packages)
    assert done.returncode == 0, done.stderr
    return done.stdout, folder


@pytest.mark.parametrize("task", TASKS)
def test_both_frameworks_train_the_same_model(task: str, compared: tuple[str, Path]) -> None:
    _, folder = compared
    reports: list[dict[str, Any]] = []
    for framework in ("torch", "rnnfast"):
        (path,) = folder.glob(f"{task}-gru-{framework}-*.json")
        reports.append(json.loads(path.read_text()))
        picture = path.with_suffix(".png").read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert len(picture) > 10_000
        report = reports[-1]
        assert report["framework"] == framework
        assert report["metric"] == METRICS[task]
        assert len(report["losses"]) == len(report["scores"]) == len(report["seconds"]) == 1
        assert report["recurrent"] > 0
        assert all(np.isfinite(value) for value in report["baselines"].values())
    torch, rnnfast = reports
    assert torch["baselines"] == rnnfast["baselines"]
    np.testing.assert_allclose(torch["losses"], rnnfast["losses"], rtol=1e-3)


def test_the_comparison_prints_a_line_for_each_task(compared: tuple[str, Path]) -> None:
    printed, folder = compared
    lines = [line.split(" | ") for line in printed.splitlines() if line.startswith("| ")][1:]
    assert [line[0] for line in lines] == [f"| {task.replace('_', ' ')}" for task in TASKS]
    for task, line in zip(TASKS, lines, strict=True):
        torch, rnnfast = (
            json.loads(path.read_text())
            for framework in ("torch", "rnnfast")
            for path in folder.glob(f"{task}-gru-{framework}-*.json")
        )
        assert line[2:4] == [f"{report['seconds'][0]:.2f}" for report in (torch, rnnfast)]
        assert line[4] == f"{torch['seconds'][0] / rnnfast['seconds'][0]:.2f}"
        assert line[5] == f"{torch['recurrent'] / rnnfast['recurrent']:.2f}"
    assert "geometric means" in printed


def test_a_comparison_goes_on_where_it_was(compared: tuple[str, Path], packages: Path) -> None:
    printed, folder = compared
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    short = ["--seeds", "1", "--epochs", "1", "--limit", "60", "--threads", "1"]
    done = run("compare_tasks.py", "--tasks", *TASKS, "--cells", "gru", *short, "--folder", str(folder), data=packages)
    assert done.stdout == printed
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.json")} == before


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_sentiment_with_numpy_alone_learns(cell: str, packages: Path) -> None:
    pytest.importorskip("tqdm")
    done = run("sentiment_numpy.py", "--cell", cell, "--epochs", "40", "--limit", "80", "--threads", "1", data=packages)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) > 80  # the small packages' moods are easy


def test_the_numpy_form_computes_the_gradient_of_its_loss(task_data: ModuleType) -> None:
    pytest.importorskip("tqdm")
    import sentiment_numpy

    model = sentiment_numpy.Classifier("lstm", np.linspace(-2, 2, 7, dtype=np.float32), seed=0)
    model.mask = lambda *shape: np.ones(shape, np.float32)
    words, lengths = sentiment_numpy.padded([np.array([1, 2, 3]), np.array([4]), np.array([5, 6])])
    y = np.array([1, 0, 1], np.float32)
    loss, gradients = model.gradients(words, lengths, y)
    z = model(words, lengths)
    assert loss == pytest.approx(np.mean(np.log1p(np.exp(np.where(y > 0, -z, z)))), rel=1e-5)
    for name, at in (("E", (2, 5)), ("E", (4, 0)), ("w", (3,)), ("b", (0,)), ("weight_hh_l0_reverse", (1, 2))):
        array, step, losses = model.parameters[name], 0.02, []
        for sign in (1, -1):
            array[at] += sign * step
            losses.append(model.gradients(words, lengths, y)[0])
            array[at] -= sign * step
        assert gradients[name][at] == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=0.02, abs=2e-5)


def test_tweets_are_read_from_an_archive_in_an_archive(task_data: ModuleType) -> None:
    tweets = task_data.rated_texts("tweets")
    assert len(tweets) == 80
    assert {tweet.rating for tweet in tweets} == {1.5, -1.5}
    assert tweets[3].text.endswith(" 3")
    moods = {2.5: small_packages.GOOD, -2.5: small_packages.BAD}
    assert task_data.word_valences() == {word: value for value, words in moods.items() for word in words}


def test_catalogues_give_texts_without_place_holders(task_data: ModuleType) -> None:
    assert task_data.interface_strings() == [("Change my password", "Modifier le mot"), ('The "end"', 'La "fin"')]


def test_pronunciations_are_words_with_sounds_without_stress(task_data: ModuleType) -> None:
    words = dict(task_data.pronunciations())
    assert words["aaa"] == ["T", "R", "IH", "P"]
    assert "'bout" not in words
    assert not [word for word in words if "(" in word]


def test_vowels_are_series_of_twelve_channels(task_data: ModuleType) -> None:
    x, y = task_data.vowels("TRAIN")
    assert len(x) == len(y) == 54
    assert set(y) == set(range(9))
    assert {row.shape[1] for row in x} == {12}
    assert len({row.shape[0] for row in x}) > 1


def test_debian_packages_are_read(task_data: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "fonts_1_all.deb"
    small_packages.debian(path, "./usr/share/fonts/a.ttf", b"abc")
    assert task_data.member(path, "*/a.ttf") == b"abc"
    with pytest.raises(task_data.DataError, match=r"0 files \*\.otf"):
        task_data.member(path, "*.otf")


@pytest.mark.parametrize("name", ["a.whl", "a.deb", "a.tar.gz"])
def test_a_broken_package_is_told(name: str, task_data: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"!<arch>\nno archive")
    with pytest.raises(task_data.DataError, match=r"(?s)cannot read .*remove it"):
        task_data.member(path, "*")


def test_what_is_missing_without_a_network_is_told(tmp_path: Path) -> None:
    for name in ("torch", "tqdm", "matplotlib"):
        pytest.importorskip(name)
    variables = {
        **os.environ,
        "RNNFAST_DATA": str(tmp_path / "new"),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path),
    }
    command = [sys.executable, str(EXAMPLES / "vowels.py")]
    done = programs.run(command, env=variables)
    assert done.returncode == 2
    assert "needs the package aeon 1.6.0" in done.stderr
    assert "aeon==1.6.0" in done.stderr
    assert str(tmp_path / "new") in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "new").iterdir())


def test_a_split_keeps_groups_together(task_data: ModuleType) -> None:
    groups = [n // 3 for n in range(300)]
    train, held_out = task_data.split(300, 0.2, groups)
    assert sorted([*train, *held_out]) == list(range(300))
    assert len(held_out) == 60
    assert not {groups[n] for n in train} & {groups[n] for n in held_out}


def test_a_vocabulary_goes_both_ways(task_data: ModuleType) -> None:
    vocabulary = task_data.Vocabulary(["aab", "abc"], least=2)
    numbers = vocabulary.encode("abz")
    assert numbers.tolist() == [4, 5, vocabulary.OTHER]
    assert vocabulary.decode([*numbers, vocabulary.STOP, 4]) == ["a", "b", "\N{REPLACEMENT CHARACTER}"]


@pytest.mark.parametrize(
    ("found", "expected", "distance"), [("", "abc", 3), ("abc", "", 3), ("kitten", "sitting", 3), ("ab", "ba", 2)]
)
def test_edit_distances(found: str, expected: str, distance: int, training: ModuleType) -> None:
    assert training.edits(found, expected) == distance
    if expected:
        assert training.error_rate([found, expected], [expected, expected]) == 50 * distance / len(expected)


def test_chrf_of_equal_different_and_half_equal_texts(training: ModuleType) -> None:
    assert training.chrf(["the cat"], ["the cat"]) == pytest.approx(100)
    assert training.chrf(["xyz"], ["abc"]) == 0
    # unigrams: precision 1, recall 2/3; bigrams: precision 1, recall 1/2; F2 = 5 p r / (4 p + r)
    expected = 100 * (5 * (2 / 3) / (4 + 2 / 3) + 5 * (1 / 2) / (4 + 1 / 2)) / 2
    assert training.chrf(["ab"], ["abc"], longest=2) == pytest.approx(expected)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_a_translator_pays_no_heed_to_its_neighbours(cell: str, training: ModuleType) -> None:
    import seq2seq
    import torch

    torch.manual_seed(0)
    model = seq2seq.Translator(cell, 9, 8, embedding=5, hidden=6).eval()
    sources = training.Sequences([torch.tensor(row) for row in ([4, 5, 6, 7], [8], [5, 4])])
    targets = training.Sequences([torch.tensor(row) for row in ([1, 4], [1, 5, 6, 7], [1])])
    together = model(sources.packed(torch.arange(3)), targets.packed(torch.arange(3)))
    for n, length in enumerate(targets.lengths):
        alone = model(sources.packed(torch.tensor([n])), targets.packed(torch.tensor([n])))
        torch.testing.assert_close(together[n, :length], alone[0])
    written = model.write(sources.packed(torch.arange(3)), longest=5)
    first = [int(row[0]) for row in together[:, 0].argmax(dim=-1, keepdim=True)]
    assert [row[0] for row in written] == first  # all three inputs start with START


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_a_captioner_starts_from_the_picture(cell: str, training: ModuleType) -> None:
    import captions
    import torch

    torch.manual_seed(0)
    model = captions.Captioner(cell, 8, hidden=6).eval()
    inputs = training.Sequences([torch.tensor([1, 4]), torch.tensor([1, 5, 6])])
    pictures = torch.rand(2, 3, captions.SIDE, captions.SIDE)
    logits = model(pictures, inputs.packed(torch.arange(2)))
    assert logits.shape == (2, 3, 8)
    assert not torch.allclose(logits[0, 0], logits[1, 0])  # START in both
    assert [row[0] for row in model.write(pictures, 3)] == logits[:, 0].argmax(dim=-1).tolist()


def real(pattern: str) -> bool:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rnnfast" / "packages"
    return any(cache.glob(pattern))


def test_captions_of_real_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "tqdm", "matplotlib", "PIL", "fontTools"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}")
    if not real("fonts-noto-color-emoji_*.deb") or not real("emoji-2.16.0-*.whl"):
        pytest.skip("the packages have not been downloaded: run examples/captions.py once")
    monkeypatch.delenv("RNNFAST_DATA", raising=False)
    command = [sys.executable, str(EXAMPLES / "captions.py"), "--epochs", "1", "--limit", "80", "--threads", "1"]
    done = programs.run(command, timeout=240, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "nearest picture" in done.stdout
    assert (tmp_path / "captions.png").read_bytes().startswith(b"\x89PNG")
