"""Build the wheel and the sdist of every package, check them, and try the wheels together: `make packages`.

Each package's metadata and contents are checked; then all wheels are installed into one fresh environment, without
anything of this checkout, where every entry point must load.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
DIST = ROOT / "dist"
TRY = """
import importlib.metadata as metadata, sys
groups = [group for group in metadata.entry_points().groups if group.startswith("fastllm.")]
points = [point for group in sorted(groups) for point in metadata.entry_points(group=group)]
for point in points:
    point.load()
assert points, "no entry points"
import fastllm_core
assert "site-packages" in fastllm_core.__file__, fastllm_core.__file__
print(f"{len(points)} entry points load")
"""


def main() -> None:
    """Build, check, try; the first complaint ends it."""
    shutil.rmtree(DIST, ignore_errors=True)
    sources = [ROOT / "core", *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))]
    for source in sources:
        run(sys.executable, "-m", "build", "--outdir", str(DIST), str(source), quiet=True)
    run(sys.executable, "-m", "twine", "check", "--strict", *map(str, sorted(DIST.iterdir())))
    for source in sources:
        check(source)
    attempt()


def check(source: Path) -> None:
    """The files that a user gets: the license, the type marker, every data file, and no tests."""
    project = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    stem = f"{project['name'].replace('-', '_')}-{project['version']}"
    with zipfile.ZipFile(DIST / f"{stem}-py3-none-any.whl") as wheel:
        inside = set(wheel.namelist())
    with tarfile.open(DIST / f"{stem}.tar.gz") as sdist:
        packed = set(sdist.getnames())
    package = next((source / "src").iterdir())
    for path in package.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            name = path.relative_to(source / "src").as_posix()
            if name not in inside:
                raise SystemExit(f"{stem}: the wheel lacks {name}")
            if f"{stem}/src/{name}" not in packed:
                raise SystemExit(f"{stem}: the sdist lacks src/{name}")
    if not any(name.endswith("LICENSE") for name in inside) or f"{package.name}/py.typed" not in inside:
        raise SystemExit(f"{stem}: the wheel lacks its LICENSE or py.typed")
    sys.stdout.write(f"{stem}: {len(inside)} files in the wheel, {len(packed)} in the sdist\n")


def attempt() -> None:
    """Install all wheels into one environment, and load every entry point there."""
    with tempfile.TemporaryDirectory() as folder:
        programs = environment(Path(folder), sorted(DIST.glob("*.whl")))
        run(str(programs / "python"), "-c", TRY)
        run(str(programs / "fastllm"), "plugins", "list")


def environment(folder: Path, wheels: Sequence[Path]) -> Path:
    """A fresh environment with some wheels, which borrows third-party packages from this one and nothing of ours.

    Returns the folder of its programs.
    """
    venv.create(folder, with_pip=True)
    programs = folder / "bin"
    run(str(programs / "python"), "-m", "pip", "install", "--quiet", "--no-deps", *map(str, wheels))
    site = next((folder / "lib").glob("python*")) / "site-packages"
    borrowed = folder / "borrowed"
    borrowed.mkdir()
    for path in Path(next(path for path in sys.path if path.endswith("site-packages"))).iterdir():
        if not path.name.startswith(("fastllm", "__editable__")) and path.suffix != ".pth":
            (borrowed / path.name).symlink_to(path)
    (site / "borrowed.pth").write_text(f"{borrowed}\n", encoding="utf-8")
    return programs


def run(*command: str, quiet: bool = False) -> None:
    """Run a command; its failure ends this one."""
    done = subprocess.run(command, capture_output=quiet, text=True, cwd=tempfile.gettempdir())
    if done.returncode:
        sys.stderr.write((done.stdout or "") + (done.stderr or ""))
        raise SystemExit(f"failed: {' '.join(command[:6])}")


if __name__ == "__main__":
    main()
