"""Compiles the engine; everything else about the package is in pyproject.toml.

`AEGIS_CORE_DEBUG=1` builds it with every check and with line tracing; `AEGIS_CORE_SANITIZE=1` with
the address and undefined behaviour sanitizers, for `make sanitize`.
"""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

debug = os.environ.get("AEGIS_CORE_DEBUG") == "1"
sanitize = os.environ.get("AEGIS_CORE_SANITIZE") == "1"

# Cython and setuptools compare times only, never flags: each kind has a folder of its own, and the
# compiler is always run, so that a build never leaves the other kind in place.
build_base = f"build/{'sanitize' if sanitize else 'debug' if debug else 'release'}"

sanitizers = ["-fsanitize=address,undefined"] if sanitize else []
# The first finding ends the process, so that a test cannot pass beside it.
checked = ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all", *sanitizers]

setup(
    options={
        "build": {"build_base": build_base},
        "build_ext": {"force": True, "parallel": os.cpu_count()},
    },
    ext_modules=cythonize(
        [
            Extension(
                f"aegis_core.{module}",
                [f"aegis_core/{module}.pyx"],
                extra_compile_args=checked if sanitize else ["-O0" if debug else "-O3"],
                extra_link_args=sanitizers,
                define_macros=[("CYTHON_TRACE_NOGIL", "1")] if debug else [],
            )
            for module in (
                "patterns",
                "matcher",
                "image",
                "automata",
                "grams",
                "layout",
                "coverage",
                "building",
                "buffers",
                "work",
                "brackets",
                "values",
                "engine",
            )
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
