"""Fixtures of several test files, and the hooks that count skips."""

import os
import secrets
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray takes the token from here and writes none to the home folder.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)

import pytest
import torch
from hypothesis import HealthCheck, settings
from transformers import AutoTokenizer
from transformers.utils import logging

from bigcircuit.config.schema import ModelConfig
from bigcircuit.model.load import load_frozen, load_tokenizer
from tests.helpers.skips import pytest_addoption, pytest_sessionfinish, pytest_terminal_summary  # noqa: F401

SHARED = Path(__file__).parents[2] / "shared"
torch.set_num_threads(1)
logging.disable_progress_bar()
# A busy machine is slow, which is no fault of the code.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of pretrained models and pair files; tests that need it skip without it."""
    if not (SHARED / "models").is_dir():
        pytest.skip("the folder ../shared with pretrained models is not here")
    return SHARED


@pytest.fixture(scope="session")
def embedded():
    """The embedded model, frozen, with its tokenizer."""
    config = ModelConfig()
    return load_frozen(config), load_tokenizer(config)


@pytest.fixture(scope="session")
def gpt2_tokenizer(shared):
    """The real GPT-2 tokenizer."""
    return AutoTokenizer.from_pretrained(shared / "data/tokenizers/gpt2")


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, closed after each file, because its event loop disturbs other tests; skips tests without it."""
    from tests.helpers.browser import chromium

    with chromium() as found:
        yield found


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """The folder of a short run on the embedded model; tests change nothing in it."""
    from tests.helpers.short_runs import run

    return run(tmp_path_factory.mktemp("run") / "a")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The folder of a run without interruption, with the checkpoint of every fourth step; tests copy what they change."""
    from bigcircuit.distributed.ranks import Ranks
    from tests.helpers.interrupted_runs import run_or_resume

    return run_or_resume(tmp_path_factory.mktemp("undisturbed") / "run", Ranks(), train__keep_checkpoints=100)


@pytest.fixture(scope="session")
def stopped_run(tmp_path_factory):
    """A stopped run on its own copies of all files; tests restore what they change."""
    from tests.helpers.interrupted_runs import stopped_run_on_own_files

    return stopped_run_on_own_files(tmp_path_factory.mktemp("stopped"))


@pytest.fixture(scope="session")
def reported(tmp_path_factory):
    """Short runs with their reports."""
    from tests.helpers.short_reports import make_reports

    return make_reports(tmp_path_factory.mktemp("reported"))


@pytest.fixture(scope="session")
def swept(tmp_path_factory):
    """The folder of a sweep, with its tables, front and page."""
    from bigcircuit.report.sweep_outputs import write_sweep_outputs
    from tests.helpers.sweep_dir import make_sweep

    folder = make_sweep(tmp_path_factory.mktemp("swept") / "s")
    write_sweep_outputs(folder)
    return folder
