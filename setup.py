"""The two packages, fastdreamer and fastdreamer_kernels out of kernels/, and the native library in the second.

Without a C++ compiler the library is left out and everything runs on plain PyTorch; FASTDREAMER_REQUIRE_NATIVE=1 makes
that an error.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent


class BuildNative(build_ext):
    """Builds the library with CMake, see CMakeLists.txt."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")).with_suffix(".so"))  # it is no Python module: no tag in its name

    def build_extension(self, ext: Extension) -> None:
        target, build = Path(self.get_ext_fullpath(ext.name)), Path(self.build_temp).resolve()
        configure = ["cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja"]
        try:
            for step in (configure, ["cmake", "--build", str(build)]):
                subprocess.run(step, check=True, stdout=sys.stderr)
        except (OSError, subprocess.CalledProcessError) as error:
            if os.environ.get("FASTDREAMER_REQUIRE_NATIVE"):
                raise
            print(f"fastdreamer: built without native kernels: {error}", file=sys.stderr)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(build / target.name, target)


class PlatformWheel(bdist_wheel):
    """The library knows neither Python's ABI nor torch's: any Python 3 of this platform can load it."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    packages=["fastdreamer", *find_packages("kernels")],
    package_dir={"fastdreamer": "fastdreamer", "fastdreamer_kernels": "kernels/fastdreamer_kernels"},
    package_data={
        "fastdreamer": ["py.typed", "report_page.html", "official_curves.csv"],
        "fastdreamer_kernels": ["py.typed"],
    },
    ext_modules=[Extension("fastdreamer_kernels.libfastdreamer", [], optional=True)],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": PlatformWheel},
)
