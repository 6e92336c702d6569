"""What the lints share: which files there are, and C text without comments and strings."""

import os
import re
import sys

ROOMS_TOP = ("kernels", "proto", "service", "client")
C_ENDINGS = (".c", ".h", ".cu", ".cuh", ".def")


def root_from_args():
    """The tree to look at: the first argument, or the one this script is in."""
    here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return os.path.abspath(sys.argv[1]) if len(sys.argv) > 1 else here


def files(root, tops=ROOMS_TOP, endings=C_ENDINGS):
    """Paths relative to root, sorted."""
    found = []
    for top in tops:
        for folder, folders, names in os.walk(os.path.join(root, top)):
            folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "build")
            for name in sorted(names):
                if name.endswith(endings):
                    found.append(os.path.relpath(os.path.join(folder, name), root))
    return found


def read(root, path):
    with open(os.path.join(root, path), encoding="utf-8") as file:
        return file.read()


_TOKEN = re.compile(
    r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'", re.DOTALL)


def _blank(match):
    return re.sub(r"[^\n]", " ", match.group(0))


def code_only(text):
    """The same text with comments and literals blanked; lines and columns stay."""
    return _TOKEN.sub(_blank, text)


def line_of(text, offset):
    return text.count("\n", 0, offset) + 1


def finish(name, problems, looked_at):
    """Prints what was found; the exit code of the lint."""
    for problem in problems:
        print(problem)
    print("%s: %d problems in %d files" % (name, len(problems), looked_at))
    if looked_at == 0:
        print("%s: nothing to look at: wrong folder?" % name)
        return 1
    return 1 if problems else 0
