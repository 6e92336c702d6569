"""Builds the package: what Python cannot say in pyproject.toml.

`build_py` also makes what the sources are made from elsewhere (see native.py); the wheel is tagged
py3-none-PLATFORM, since the library is native and no module of it is; a source distribution takes
the C tree along.
"""

import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import native  # noqa: E402


class BuildPackage(build_py):
    def run(self):
        super().run()
        package = HERE / "src/relay" if self.editable_mode else Path(self.build_lib) / "relay"
        scratch = Path(self.get_finalized_command("build").build_temp)
        native.build(native.tree(HERE), package, scratch)


class PlatformWheel(bdist_wheel):
    def get_tag(self):
        return ("py3", "none", super().get_tag()[2])


class SourceWithTree(sdist):
    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        native.copy_tree(native.tree(HERE), Path(base_dir) / "tree")


class NativeDistribution(Distribution):
    def has_ext_modules(self):
        return True


setup(
    distclass=NativeDistribution,
    cmdclass={"build_py": BuildPackage, "bdist_wheel": PlatformWheel, "sdist": SourceWithTree},
)
