#!/usr/bin/env python3
"""Makes torch's CUDA wheel importable without the CUDA libraries, on a machine that has no GPU.

torch from PyPI is linked against cuBLAS, cuDNN, NCCL and more, 2 GB that the CPU never calls. For
each such library that is missing, a tiny one of that name is put into torch/lib: it has every symbol
that torch wants of it, and calling one fails. For test machines only. Usage: stub_cuda.py VENV
"""
import pathlib
import re
import subprocess
import sys
import tempfile

LIBRARIES = re.compile(
    r"lib(cublas|cublasLt|cudnn|cufft|cufile|curand|cusolver|cusparse|cusparseLt|nccl|nvrtc|nvJitLink|nvshmem_host)\.so\.\d+")
SYMBOLS = re.compile(
    r"(cublas|cudnn|cufft|cuFile|curand|cusolver|cusparse|p?nccl|nvrtc|nvJitLink|nvshmem)\w*")


def readelf(option, path):
    return subprocess.run(["readelf", "-W", option, str(path)], check=True, capture_output=True, text=True).stdout


def compile_library(target, source, soname, *flags):
    subprocess.run(["cc", "-shared", "-fPIC", "-w", "-fno-builtin", "-x", "c", str(source), "-o", str(target),
                    f"-Wl,-soname,{soname}", *flags], check=True)


def main(venv):
    (folder,) = pathlib.Path(venv).glob("lib/python3*/site-packages/torch/lib")
    needed, symbols = set(), set()
    for path in folder.glob("lib*.so"):
        needed |= {m[0] for m in map(LIBRARIES.search, readelf("-d", path).splitlines()) if m}
        for line in readelf("--dyn-syms", path).splitlines():
            fields = line.split()
            if len(fields) > 7 and fields[6] == "UND":
                name = fields[7].partition("@")[0]
                if SYMBOLS.fullmatch(name):
                    symbols.add(name)
    missing = sorted(n for n in needed if not (folder / n).exists())
    with tempfile.TemporaryDirectory() as scratch:
        source = pathlib.Path(scratch) / "stub.c"
        source.write_text("".join(f"int {name}(void) {{ return 1; }}\n" for name in sorted(symbols)))
        compile_library(folder / "librelaystub.so", source, "librelaystub.so")
        source.write_text("")
        for name in missing:
            compile_library(folder / name, source, name, "-Wl,--no-as-needed", "-Wl,-rpath,$ORIGIN",
                            f"-L{folder}", "-lrelaystub")
    print(f"{len(missing)} libraries, {len(symbols)} symbols")


if __name__ == "__main__":
    main(sys.argv[1])
