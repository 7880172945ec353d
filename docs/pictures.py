"""`make pictures`: the pictures of the README, made by the software itself: a panel, a plot and a dream of CartPole.

Trains three seeds for some minutes each, one of them in a terminal of its own. Needs Debian's chromium.
"""

import io
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

HERE = Path(__file__).parent
STEPS, SEEDS = 16_000, 3
COLUMNS = 80
CHROMIUM = (
    "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
    "--disable-background-networking", "--virtual-time-budget=8000",
)  # fmt: skip


def main() -> int:
    """The exit code: 0, or 2 where there is no chromium."""
    if shutil.which(CHROMIUM[0]) is None:
        print("pictures need chromium: apt install chromium", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as name:
        folder, runs = Path(name), [f"runs/cartpole-{seed}" for seed in range(SEEDS)]
        shown = [in_terminal(training(seed, run), folder) for seed, run in enumerate(runs)]
        save_panel(shown[0], HERE / "panel.svg")
        subprocess.run([sys.executable, "-m", "fastdreamer.report", *runs], cwd=folder, check=True)
        screenshot(folder / "report.html", HERE / "plot.png", folder, 1400, 440)
        dream = folder / runs[0] / "videos" / f"step-{STEPS}" / "dream.html"
        screenshot(dream, HERE / "dream.png", folder, 1000, 730)
    return 0


def training(seed: int, run: str) -> list[str]:
    """A command."""
    flags = f"--run.seed={seed}", f"--run.steps={STEPS}", f"--run.dir={run}", "--run.eval_every=4000"
    return [sys.executable, "-m", "fastdreamer.train", "cartpole", *flags]


def in_terminal(words: list[str], folder: Path) -> str:
    """What a command, in a folder, shows in a terminal of COLUMNS columns, with its codes."""
    leader, follower = pty.openpty()
    sizes = {"COLUMNS": str(COLUMNS), "LINES": "60", "TERM": "xterm-256color"}
    process = subprocess.Popen(words, stdout=follower, stderr=follower, cwd=folder, env={**os.environ, **sizes})
    os.close(follower)
    seen = b""
    while chunk := read(leader):
        seen += chunk
    os.close(leader)
    if process.wait():
        raise RuntimeError(f"{' '.join(words)}: exit code {process.returncode}\n{seen.decode()[-2000:]}")
    return seen.decode()


def read(leader: int) -> bytes:
    """Empty at the end, which Linux tells a leader by an error."""
    try:
        return os.read(leader, 1 << 16)
    except OSError:
        return b""


def save_panel(shown: str, path: Path) -> None:
    """The lines before the first panel, and the last panel of the training."""
    top, bottom = "╭", "╯"
    lines, _, panels = shown.replace("\r", "").partition(top)
    last = next(panel for panel in reversed(panels.split(top)) if ", training " in panel)
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text.from_ansi(lines + top + last.partition(bottom)[0] + bottom))
    picture = console.export_svg(title="python -m fastdreamer.train cartpole")
    path.write_text(re.sub(r"@font-face {.*?}\s*", "", picture, flags=re.DOTALL))  # fonts of another machine


def screenshot(page: Path, path: Path, folder: Path, width: int, height: int) -> None:
    """The top of a page."""
    place = (f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}", f"--screenshot={path}")
    subprocess.run([*CHROMIUM, *place, page.as_uri()], check=True, capture_output=True)


if __name__ == "__main__":
    sys.exit(main())
