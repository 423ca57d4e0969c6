"""Compiles the engine; everything else about the package is in pyproject.toml.

`AEGIS_CORE_DEBUG=1` builds it with every check and with line tracing.
"""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

debug = os.environ.get("AEGIS_CORE_DEBUG") == "1"

# Cython and setuptools compare times only, never flags: each kind has a folder of its own, and the
# compiler is always run, so that a build never leaves the other kind in place.
build_base = "build/debug" if debug else "build/release"

setup(
    options={"build": {"build_base": build_base}, "build_ext": {"force": True}},
    ext_modules=cythonize(
        [
            Extension(
                f"aegis_core.{module}",
                [f"aegis_core/{module}.pyx"],
                extra_compile_args=["-O0" if debug else "-O3"],
                define_macros=[("CYTHON_TRACE_NOGIL", "1")] if debug else [],
            )
            for module in ("patterns", "matcher", "layout", "engine")
        ],
        build_dir=f"{build_base}/cython",
        compiler_directives={
            "language_level": "3",
            "auto_pickle": False,  # a decision engine is compiled again, never copied
            "autotestdict": False,
            "embedsignature": False,
            "boundscheck": debug,
            "wraparound": True,
            "initializedcheck": debug,
            "nonecheck": debug,
            "cdivision": True,
            "linetrace": debug,
        },
    ),
)
