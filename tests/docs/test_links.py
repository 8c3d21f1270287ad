"""The documentation: what it mentions exists, and the glossary has the entries of every table."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from bigcircuit.ablation.kinds import KINDS
from bigcircuit.attribution.baselines import BASELINES
from bigcircuit.cli import parse_verb
from bigcircuit.config.load import dotted_keys
from bigcircuit.config.verbs import VERBS
from bigcircuit.export.formats import EXPORT_FORMATS
from bigcircuit.gates.parametrisation import PARAMETRISATIONS
from bigcircuit.metrics.registry import SCORES
from bigcircuit.model.granularity import GRANULARITIES
from bigcircuit.sweep.config import SweepSettings

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")),
    "launchers/README.md",
    "docker/README.md",
    "configs/ray/README.md",
]
GLOSSARY = "docs/glossary.md"
TOP = (".ci", "benchmarks", "bigcircuit", "configs", "docker", "docs", "launchers", "scripts", "tests")
KEYS = {*dotted_keys(), *(f"sweep.{key}" for key in dotted_keys(SweepSettings))}
SECTIONS = {key.rpartition(".")[0] for key in KEYS if "." in key}
_FILE = re.compile(r".*\.(py|md|json|jsonl|yaml|csv|html|safetensors)")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_MODULE = re.compile(r"python\S* -m ((?:bigcircuit|benchmarks|scripts|tests)[\w.]*)")
_COMMAND = re.compile(r"^(?:.* )?(?<!from )(?<!--name )(?:bigcircuit(?= +[a-z])|launchers/(\w+)\.py) +([^|']+)")
_IMPORT = re.compile(r"^from (bigcircuit[\w.]*) import (.+)$", re.MULTILINE)


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def inline_code(page: str) -> list[str]:
    """The contents of inline code; a page without its fenced blocks."""
    return re.findall(r"`([^`\n]+)`", _FENCE.sub("", text_of(page)))


def words(page: str) -> list[str]:
    """Words of inline code and of fenced blocks, without option names and quotes."""
    code = [*inline_code(page), *_FENCE.findall(text_of(page))]
    return [word.rpartition("=")[2].strip("'\"(),;:") for part in code for word in part.split()]


def is_repository_path(word: str) -> bool:
    """Whether a word reads like a file or folder of this repository: below a folder of its root, or a Python file."""
    below = word.partition("/")[0] in TOP and bool(re.search(r"/[^/\d]", word))
    return below or bool(re.fullmatch(r"[\w./]+\.py", word))


def exists(word: str, page: str) -> bool:
    """From the root, from the folder of the page, or from the package, where `*` and `<name>` stand for anything."""
    pattern = re.sub(r"<[^>]+>", "*", word.partition("::")[0]).rstrip("/")
    places = (ROOT, (ROOT / page).parent, ROOT / "bigcircuit")
    return any(any(place.glob(pattern)) for place in places)


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_to_files(page):
    links = [link for link in _LINK.findall(text_of(page)) if "://" not in link]
    for link in links:
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}, link


@pytest.mark.parametrize("page", PAGES)
def test_files_in_code_exist(page):
    missing = {word for word in words(page) if is_repository_path(word) and not exists(word, page)}
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_modules_and_imports_exist(page):
    for name in _MODULE.findall(text_of(page)):
        path = ROOT / name.replace(".", "/")
        assert path.with_suffix(".py").exists() or path.is_dir(), name
    for module, names in _IMPORT.findall(text_of(page)):
        found = __import__(module, fromlist=["*"])
        for name in names.split(","):
            assert hasattr(found, name.strip()), f"{module}.{name}"


@pytest.mark.parametrize("page", PAGES)
def test_settings_in_code_are_known(page):
    named = {word.removeprefix("--") for word in words(page) if not _FILE.fullmatch(word)}
    keys = {name for name in named if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", name)}
    open_ended = ("task.columns.", "task.chat.arguments.")
    settings = {key for key in keys if key.partition(".")[0] in SECTIONS and not key.startswith(open_ended)}
    assert settings - KEYS - SECTIONS - {"sweep.space"} == set()


def commands(page: str) -> Iterator[tuple[str, list[str]]]:
    """Verb and words of the commands in fenced blocks and inline code; those with `...` are left out."""
    fenced = "\n".join(_FENCE.findall(text_of(page))).replace("\\\n", " ").splitlines()
    for line in [*fenced, *inline_code(page)]:
        found = _COMMAND.match(line.partition(" #")[0])
        if found and "..." not in line:
            words_after = [*filter(None, [found[1]]), *shlex.split(found[2])]
            verb = " ".join(words_after[:2])
            verb = verb if verb in VERBS else words_after[0]
            yield verb, words_after[len(verb.split()) :]


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_valid(page):
    for verb, given in commands(page):
        if "--help" not in given:
            parse_verb(verb, given)


def test_commands_are_found():
    assert sum(len(list(commands(page))) for page in PAGES) >= 30


@pytest.mark.parametrize("table", [GRANULARITIES, KINDS, PARAMETRISATIONS, SCORES, BASELINES, EXPORT_FORMATS])
def test_glossary_has_every_entry_of_a_table(table):
    assert [name for name in table if not re.search(rf"^\|.*`{name}`.*\|", text_of(GLOSSARY), re.MULTILINE)] == []


@pytest.mark.parametrize("name", SCORES)
def test_glossary_has_headings_and_direction_of_a_score(name):
    kind = SCORES[name]
    [row] = re.findall(rf"^\| `{name}` \| (.+) \| (.+) \| .+ \| .+ \| (.+) \|$", text_of(GLOSSARY), re.MULTILINE)
    assert row == (kind.short, kind.long, "lower" if kind.lower_is_better else "higher")


def test_readme_has_one_line_that_runs_the_tests():
    """CI finds its command there."""
    assert len(re.findall(r"^.*-m pytest.*$", text_of("README.md"), re.MULTILINE)) == 1
