"""Compiles the engine; everything else about the package is in pyproject.toml."""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

debug = os.environ.get("AEGIS_CORE_DEBUG") == "1"

setup(
    ext_modules=cythonize(
        [
            Extension(
                "aegis_core.engine",
                ["aegis_core/engine.pyx"],
                extra_compile_args=["-O0" if debug else "-O3"],
                define_macros=[("CYTHON_TRACE_NOGIL", "1")] if debug else [],
            )
        ],
        build_dir="build/cython",
        compiler_directives={
            "language_level": "3",
            "embedsignature": False,
            "boundscheck": debug,
            "wraparound": True,
            "initializedcheck": debug,
            "nonecheck": debug,
            "cdivision": True,
            "linetrace": debug,
        },
    )
)
