"""What the package takes from the C tree: librelay, its declarations, the gRPC stubs.

Run by setup.py. By hand: python3 native.py makes all of it in src/relay, for work in the tree.
RELAY_LIBRARY names a librelay.so to take instead of building one.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

HEADERS = [
    "kernels/include/relay/status.h",
    "kernels/include/relay/types.h",
    "client/include/relay/client.h",
    "client/include/relay/client_prompts.h",
]
SOURCES = ["CMakeLists.txt", "CMakePresets.json", "cmake", "kernels", "proto", "service", "client"]


def tree(here: Path) -> Path:
    """The C tree: around this folder in a checkout, inside it in a source distribution."""
    for root in (here.parents[1], here / "tree"):
        if (root / HEADERS[2]).is_file() and (root / "CMakeLists.txt").is_file():
            return root
    raise SystemExit("relay-attention: the C sources are neither above this folder nor in tree/")


def copy_tree(root: Path, to: Path) -> None:
    """What building librelay needs, as git knows it, for a source distribution."""
    names = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-z", "--", *SOURCES, ":!client/python"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, names.split("\0")):
        if (root / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, to / name)
    for empty in ("tests", "client/python"):  # folders that the CMake files enter
        (to / empty).mkdir(parents=True, exist_ok=True)
        (to / empty / "CMakeLists.txt").write_text("")


def build(root: Path, package: Path, scratch: Path) -> None:
    package.mkdir(parents=True, exist_ok=True)
    write_declarations(root, package)
    write_stubs(root, package)
    library = os.environ.get("RELAY_LIBRARY") or build_library(root, scratch)
    shutil.copyfile(library, package / "librelay.so")


def build_library(root: Path, scratch: Path) -> Path:
    """CMake, with what deploy/install-deps.sh installs."""
    scratch = (scratch / "cmake").resolve()
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    configure = ["cmake", "-S", str(root), "-B", str(scratch), "-DCMAKE_BUILD_TYPE=Release"]
    subprocess.run(configure + generator, check=True)
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
    command = ["cmake", "--build", str(scratch), "--target", "relay_client_shared", "-j", jobs]
    subprocess.run(command, check=True)
    return scratch / "client" / "librelay.so"


# ---- declarations: the headers, as far as cffi reads C


def declarations(root: Path) -> "tuple[str, dict[str, str]]":
    """The headers' declarations, and the bodies of the _INIT macros by struct name."""
    text = "\n".join((root / name).read_text() for name in HEADERS)
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.S).replace("\\\n", " ")
    text = re.sub(r"#ifdef __cplusplus.*?#endif", "", text, flags=re.S)
    text = re.sub(r"#if defined\(__GNUC__\).*?#endif", "", text, flags=re.S)
    macros = dict(re.findall(r"^#define (RELAY_\w+)[ \t]+(.+)$", text, flags=re.M))
    codes = re.search(r"^#define RELAY_CODES\(X\)(.*)$", text, flags=re.M)
    assert codes is not None
    enum = ", ".join(f"RELAY_{n} = {v}" for n, v in re.findall(r"X\((\w+), (\d+)\)", codes[1]))
    text = re.sub(r"enum relay_code \{.*?\};", f"enum relay_code {{ {enum} }};", text, flags=re.S)
    text = re.sub(r"^#.*$", "", text, flags=re.M)
    text = re.sub(r"\bRELAY_PRINTF\(\d+, \d+\)|\bRELAY_EXPORT\b|\bRELAY_MUST_CHECK\b", "", text)
    text = text.replace("RELAY_ERROR_MSG_BYTES", macros["RELAY_ERROR_MSG_BYTES"])
    defaults = {}
    for name, body in macros.items():
        if name.endswith("_INIT"):
            struct = re.search(r"sizeof\(struct (\w+)\)", body)
            assert struct is not None
            defaults[struct[1]] = body.strip().strip("{}")
    return re.sub(r"\s*\n\s*", "\n", text), defaults


def default_value(text: str) -> object:
    """A field of an _INIT macro in Python: a number, a bool, None for NULL, an enumerator's name."""
    text = text.strip()
    known = {"NULL": None, "true": True, "false": False}
    if text in known:
        return known[text]
    if re.fullmatch(r"RELAY_\w+", text):
        return text
    if not re.fullmatch(r"[0-9u<*+ ]+", text):
        raise SystemExit(f"relay-attention: cannot read the default {text!r} of a header")
    return eval(text.replace("u", ""))  # digits and operators only


def write_declarations(root: Path, package: Path) -> None:
    from cffi import FFI

    text, defaults = declarations(root)
    ffi = FFI()
    ffi.set_source("relay._ffi", None)
    ffi.cdef(text)
    ffi.emit_python_code(str(package / "_ffi.py"))
    fields = {
        name: [default_value(v) for v in body.split(",")[1:]] for name, body in defaults.items()
    }
    lines = [f"    {name!r}: {values!r},\n" for name, values in fields.items()]
    (package / "_defaults.py").write_text(
        "# Made from the _INIT macros of the C headers; the fields after `size`.\n"
        "DEFAULTS: dict[str, list[object]] = {\n" + "".join(lines) + "}\n"
    )


def write_stubs(root: Path, package: Path) -> None:
    from grpc_tools import protoc

    out = package.parent
    arguments = [f"-I{root}/proto", f"--python_out={out}", f"--grpc_python_out={out}"]
    if protoc.main(["protoc", *arguments, f"--pyi_out={out}", "relay/v1/relay.proto"]) != 0:
        raise SystemExit("relay-attention: protoc failed")
    (package / "v1" / "__init__.py").write_text(
        '"""The gRPC stubs of relay.v1, for those who want no native code.\n\n'
        "Needs grpcio and protobuf (the extra `grpc`).\n"
        '"""\n'
    )


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    build(tree(here), here / "src/relay", here / "build/native")
    print("made src/relay/{_ffi.py,_defaults.py,librelay.so,v1}", file=sys.stderr)
