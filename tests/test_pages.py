"""The pages are true: they build into a site without a broken link, and their blocks run on small real data.

A block of bash or python runs in the page's own folder, blocks of a page one after another. One that cannot run has a
reason in front of it: `<!-- not run: the reason -->`. Trainings are cut to a few steps; nothing else is changed.
"""

import os
import re
import shlex
import subprocess
import sys
from glob import glob
from pathlib import Path

import pytest
from page_data import write_material

from skysense_cli.app import main

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").rglob("*.md") if page.name != "commands.md")]
BLOCK = re.compile(r"^(?:<!-- not run: (.+?) -->\n)?```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
TRAINING = {
    "finetune": ("--steps", "2", "--batch-size", "2", "--preset", "nano", "--set", "train.validate_every=2"),
    "pretrain": ("--steps", "2", "--batch-size", "2", "--preset", "nano"),
}
"""Given last, these win over what the page says."""


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """(reason not to run, language, text) of every block, in their order."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


RUN = [page for page in PAGES if any(not reason for reason, _, _ in blocks(page))]


def test_the_site_builds_and_no_link_is_broken(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "index.html").read_text()
    assert "A map in one command" in page
    assert re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?://', page) == []
    assert "Raises" in (tmp_path / "site" / "api.html").read_text()


def test_a_task_and_the_way_in_have_blocks_that_run() -> None:
    assert {"index", "segmentation", "crop", "change", "detection", "classification", "regression"} <= {
        page.stem for page in RUN
    }


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Path:
    folder = tmp_path_factory.mktemp("material") / "all"
    write_material(shared_data, folder)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run(
    page: Path, material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for item in material.iterdir():
        (tmp_path / item.name).symlink_to(item)
    monkeypatch.chdir(tmp_path)
    for reason, language, text in blocks(page):
        if reason:
            continue
        if language == "python":
            exec(compile(text, page.name, "exec"), {"__name__": "__main__"})
            continue
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                code = skysense(words, monkeypatch)
                assert code == 0, f"{page.name}: {line}\n{capfd.readouterr().err}"


def skysense(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a line of a page as a shell would, in this process; its exit code."""
    assert words[0] == "skysense", "a block of bash that runs has calls of skysense only"
    words = [found for word in words for found in (sorted(glob(word)) if "*" in word else [word])]
    monkeypatch.setattr(sys, "argv", [*words, *TRAINING.get(words[1], ())])
    monkeypatch.setitem(os.environ, "NO_COLOR", "1")
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)
