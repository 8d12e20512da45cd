"""The documentation keeps its word: links, commands, settings, figures of tables and snippets are those of the code."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from cryptopulse import cli, errors
from cryptopulse.cli.audit import INCOMPLETE
from cryptopulse.lake.dataset import read
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.tables import TABLES
from cryptopulse.settings import Settings, load_settings
from cryptopulse.settings.text import described
from cryptopulse.simulator.faults import Faults
from support import Lake, Trade, at

pytestmark = pytest.mark.texts

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NO_FILES = {"utils.py", "protocol.py"}
"""Named as something that must not be, or within a folder that the sentence names."""
_SHELL_ENDS = {"|", "||", "&&", ";", ">", "&"}


def blocks(language: str) -> list[Any]:
    """The fenced blocks of one language on all pages, as test parameters."""
    found = []
    for page in PAGES:
        texts = [text for kind, text in _FENCE.findall(page.read_text()) if kind == language]
        found += [pytest.param(text, id=f"{page.stem}-{number}") for number, text in enumerate(texts, 1)]
    return found


def command_lines() -> list[Any]:
    """Every line `cryptopulse …` of the shell blocks, without the name, as test parameters."""
    found = []
    for page in PAGES:
        for kind, text in _FENCE.findall(page.read_text()):
            if kind in ("sh", "bash", "console"):
                found += [
                    pytest.param(words, id=f"{page.stem}: {' '.join(' '.join(words).split())[:40]}")
                    for line in _lines(text)
                    if (words := _own_words(line)) is not None
                ]
    return found


def _lines(text: str) -> Iterator[str]:
    """The lines of a shell block; one that ends within quotes goes on."""
    line = ""
    for part in text.splitlines():
        line += part
        if line.count('"') % 2:
            line += "\n"
        else:
            yield line
            line = ""


def _own_words(line: str) -> list[str] | None:
    words = shlex.split(line.removeprefix("$ "), comments=True)
    words = list(itertools.dropwhile(lambda word: re.match(r"[A-Z_]+=", word), words))
    if not words or Path(words[0]).name != "cryptopulse":
        return None
    return list(itertools.takewhile(lambda word: word not in _SHELL_ENDS, words[1:]))


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """The command that the first of `words` name, and the rest of the words."""
    command: Any = typer.main.get_command(cli.app)
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory, and no variables of ours."""
    for name in list(os.environ):
        if name.startswith("CRYPTOPULSE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a small `demo-lake` that has a hole, a crash and a bad message, as the snippets expect it."""
    folder = tmp_path_factory.mktemp("docs")
    lake = Lake(folder / "demo-lake")
    trades = [
        Trade(symbol, 100 + number, at(number), price=str(100 - number // 40))
        for symbol in ("BTC-USD", "ETH-USD")
        for number in range(120)
        if number not in (70, 71)
    ]
    lake.take_in([trade.match() for trade in trades] + [trades[0].match(price="cheap")])
    yield folder
    lake.close()


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """`docs/generate.py` as a module."""
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        goal = (page.parent / path).resolve() if path else page
        assert goal.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", goal.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_every_page_can_be_reached_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    missing = [page.name for page in PAGES if page.parent.name == "docs" and f"(docs/{page.name})" not in readme]
    assert not missing


@pytest.mark.parametrize("page", ["tables.md", "settings.md"])
def test_generated_pages_are_current(page: str, generate: ModuleType) -> None:
    path = ROOT / "docs" / page
    current = generate.current(path, generate.pages()[path])
    assert path.read_text() == current, "run: python docs/generate.py"


def test_the_man_page_is_current_and_installed(generate: ModuleType, tmp_path: Path) -> None:
    page = generate.MAN_PAGE
    assert page.read_text() == generate.man_text() + "\n", "run: python docs/generate.py"
    shared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert shared["shared-data"] == {"src/man/cryptopulse.1": "share/man/man1/cryptopulse.1"}
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    shown = subprocess.run(
        ["groff", "-man", "-ww", "-Tutf8", "-P-c", "-rLL=200n", page], capture_output=True, text=True, check=True
    )
    assert not shown.stderr
    plain = re.sub(r".\x08", "", shown.stdout)
    for text in (
        "cryptopulse export [OPTIONS] WHAT FILE",
        "s3://… or abfss://…",
        "--lake PLACE",
        "130    ended by Ctrl-C",
    ):
        assert text in plain
    assert "`" not in plain


@pytest.mark.parametrize("words", command_lines())
def test_every_command_shown_is_understood(words: list[str]) -> None:
    command, rest = command_of(words)
    command.make_context("cryptopulse", rest)  # parses, and runs nothing; raises for what it does not know


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_named_in_a_sentence_exists(page: Path) -> None:
    for text in re.findall(r"`cryptopulse ([^`\n]+)`", page.read_text()):
        command, rest = command_of(text.split())
        assert not hasattr(command, "commands") or rest[0] == "…" or rest[0].startswith("--"), text
        options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in rest if word.startswith("--")} <= options, text


@pytest.mark.parametrize("words", [p for p in command_lines() if p.values[0][:1] == ["sql"]])
def test_every_query_shown_runs(words: list[str], folder: Path) -> None:
    assert read(LakeLocation.of(folder / "demo-lake"), words[-1]).num_rows


def test_every_cell_of_the_notebook_runs(folder: Path) -> None:
    cells = json.loads((ROOT / "docs" / "first_questions.ipynb").read_text())["cells"]
    names: dict[str, object] = {}
    with contextlib.chdir(folder):
        for cell in cells:
            if cell["cell_type"] == "code":
                assert (cell["outputs"], cell["execution_count"]) == ([], None)
                exec("".join(cell["source"]), names)


@pytest.mark.parametrize("snippet", blocks("python"))
def test_every_python_snippet_runs(snippet: str, folder: Path) -> None:
    for module in re.findall(r"^(?:import|from) (\w+)", snippet, re.MULTILINE):
        if module == "pyspark":
            pytest.skip("Spark needs jars: tests/cluster runs it")
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    done = subprocess.run([sys.executable, "-c", snippet], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("text", blocks("toml"))
def test_every_configuration_shown_is_valid(text: str, tmp_path: Path) -> None:
    file = tmp_path / "shown.toml"
    file.write_text(text)
    load_settings(file)


def test_the_readmes_settings_have_the_defaults_of_the_code(generate: ModuleType) -> None:
    generated = dict(re.findall(r"^\| `([\w.]+)` \| [^|]+ \| ([^|]+) \|", generate.settings_text(), re.MULTILINE))
    section = (ROOT / "README.md").read_text().split("## Configuration")[1].split("\n## ")[0]
    shown = re.findall(r"^\| `([\w.]+)` \| ([^|]+) \|", section, re.MULTILINE)
    assert len(shown) > 5
    for name, default in shown:
        assert generated[name].strip() == default.strip(), name


def test_every_setting_named_exists() -> None:
    known = {setting.name for setting in described(load_settings())}
    sections = {name.split(".")[0] for name in known if "." in name}
    for page in PAGES:
        text = page.read_text()
        for name in re.findall(r"`([a-z]+\.[a-z_]+)`", text):
            if name.split(".")[0] in sections and not name.endswith((".py", ".db", ".md")):
                assert name in known, f"{page.name}: {name}"
        for name in re.findall(r"CRYPTOPULSE_(?!TEST_)([A-Z]\w*)", text):  # TEST_: switches of the tests
            assert name.lower().replace("__", ".") in known, f"{page.name}: {name}"


def test_every_exit_code_is_told() -> None:
    section = (ROOT / "docs" / "troubleshooting.md").read_text().split("## Exit codes")[1].split("\n## ")[0]
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert told == {0, 130, INCOMPLETE} | {kind.exit_code for kind in kinds}  # type: ignore[attr-defined]


def test_every_table_named_exists() -> None:
    known = {table.qualified for table in TABLES} | {"silver.parsed_trades"}
    for page in PAGES:
        for name in re.findall(r"\b((?:bronze|silver|gold)\.[a-z]\w+_\w+)", page.read_text()):
            assert name in known, f"{page.name}: {name}"


def test_every_log_event_described_is_one_that_the_code_says() -> None:
    code = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    section = (ROOT / "docs" / "operations.md").read_text().split("| event |")[1].split("\n\n")[0]
    first_cells = [row.split("|")[1] for row in section.splitlines() if row.count("|") > 3]
    events = [name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)]
    assert len(events) > 15
    for name in events:
        assert f'"{name}"' in code, name


def test_every_fault_of_the_simulator_is_described() -> None:
    section = (ROOT / "docs" / "simulator.md").read_text().split("## Faults")[1].split("\n## ")[0]
    for name in Faults.__dataclass_fields__:
        assert f"`{name.replace('_', '-')}`" in section, name


def test_settings_of_the_page_are_those_of_the_class() -> None:
    text = (ROOT / "docs" / "settings.md").read_text()
    for name in Settings.model_fields:
        assert f"`{name}`" in text or f"\n## {name}\n" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_source_file_named_exists(page: Path) -> None:
    package = ROOT / "src" / "cryptopulse"
    homes = (ROOT, package, package / "lake" / "sql")
    for name in re.findall(r"`([\w./]+\.(?:py|sql))`", page.read_text()):
        if name not in _NO_FILES:
            assert any((home / name).exists() for home in homes), name


def test_every_make_target_shown_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for name in re.findall(r"(?:^|`)make ([a-z]+)", page.read_text(), re.MULTILINE):
            assert name in targets, f"{page.name}: {name}"


def test_there_is_a_remedy_for_every_error_that_stops_a_pipeline() -> None:
    section = (ROOT / "docs" / "troubleshooting.md").read_text()
    shown = [re.split("…", text)[0].strip() for text in re.findall(r"^\| `([^`]+)`", section, re.MULTILINE)]
    code = " ".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    for kind in ("The log", "The disk under", "Table", "Another pipeline", "The producer ended", "There is no lake at"):
        assert any(text.startswith(kind) for text in shown), kind
        assert kind in code or kind == "The producer ended", kind
