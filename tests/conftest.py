"""What all tests share.

``RNNFAST_REQUIRE_TORCH=1`` turns a missing torch into an error; otherwise tests that compare with it are skipped.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

# Before NumPy is imported: the reference's products are small, and OpenBLAS's idle threads would spin on the cores that
# the tests need.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
from hypothesis import settings

# The same examples in every run: a failure that comes and goes tells nobody anything. No deadline: a first call may
# have to start threads or wait for a busy machine.
settings.register_profile("rnnfast", deadline=None, derandomize=True, database=None)
settings.load_profile("rnnfast")


def pytest_configure() -> None:
    if os.environ.get("RNNFAST_REQUIRE_TORCH") == "1" and importlib.util.find_spec("torch") is None:
        raise pytest.UsageError("RNNFAST_REQUIRE_TORCH is set, but torch is not installed")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    own = any("isa" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    if "isa" in metafunc.fixturenames and not own:
        import rnnfast as rf  # here, so that tests without the fixture do not depend on it

        metafunc.parametrize("isa", rf.available_isas(), indirect=True)


@pytest.fixture
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once for each instruction set of this machine, which is in use during the test."""
    import rnnfast as rf

    with rf.use_isa(request.param):
        yield request.param


@pytest.fixture
def plain_memory() -> None:
    """For tests that measure or limit memory: AddressSanitizer reserves terabytes, and keeps what was freed."""
    if "libasan" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("AddressSanitizer has a memory management of its own")
