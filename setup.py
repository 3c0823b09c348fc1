"""Builds the compiled CPU kernels; everything else about the package is in pyproject.toml."""

from __future__ import annotations

import platform
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

SOURCES = Path("neurostorm_bids/csrc")
FLAGS = ["-O3", "-fvisibility=hidden", "-ffp-contract=off"]
# never -ffast-math: it loses NaN, and sets flush-to-zero for whoever loads the library; multiply-adds are explicit
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"]
VARIANTS = {"avx2": ["-mavx2", "-mfma"], "avx512": AVX512, "avx512bf16": [*AVX512, "-mavx512bf16"]}


class BuildKernels(build_ext):
    """One library, kernels.c in it once for each instruction set; without a compiler, a line and no library."""

    def build_extension(self, ext: Extension) -> None:
        try:
            self._link(ext, self._compile())
        except Exception as error:  # whatever a compiler does: torch serves without it
            print(f"neurostorm: CPU kernels not compiled ({error}); torch computes instead, about 5 times slower")

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"  # no Python ABI in it, so no ABI in its name

    def get_outputs(self) -> list[str]:
        return [path for path in super().get_outputs() if Path(path).exists()]

    def copy_extensions_to_source(self) -> None:
        built = Path(self.build_lib)
        if all((built / self.get_ext_filename(ext.name)).exists() for ext in self.extensions):
            super().copy_extensions_to_source()

    def _compile(self) -> list[str]:
        objects = self._objects(["team.c", "kernels.c"], "baseline")
        macros = []
        for isa, flags in VARIANTS.items() if platform.machine().lower() in ("x86_64", "amd64") else ():
            try:
                objects += self._objects(["kernels.c"], isa, flags)
                macros.append((f"NS_HAS_{isa.upper()}", "1"))
            except CompileError:
                print(f"neurostorm: this compiler is too old for the {isa} kernels")
        return objects + self._objects(["dispatch.c"], "dispatch", macros=macros)

    def _objects(
        self, names: list[str], isa: str, flags: list[str] | None = None, macros: list[tuple[str, str]] | None = None
    ) -> list[str]:
        return self.compiler.compile(
            [str(SOURCES / name) for name in names],
            output_dir=str(Path(self.build_temp) / isa),
            macros=[("NS_ISA", isa), *(macros or ())],
            extra_postargs=[*FLAGS, *(flags or ())],
        )

    def _link(self, ext: Extension, objects: list[str]) -> None:
        path = self.get_ext_fullpath(ext.name)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(objects, path, libraries=["pthread", "m"])


class PlatformWheel(bdist_wheel):
    """py3-none-PLATFORM: the library is loaded with ctypes and serves every Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension(
            "neurostorm_bids._kernels",
            [str(path) for path in sorted(SOURCES.glob("*.c"))],
            depends=[str(path) for path in SOURCES.glob("*.h")],
        )
    ],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": PlatformWheel},
)
