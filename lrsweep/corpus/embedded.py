"""The text that needs no download: the Python source of the standard library and of installed packages."""

from __future__ import annotations

import os
import platform
import sysconfig
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from lrsweep.corpus.documents import Document, file_document

Scale = Literal["small", "large"]

LARGE_PACKAGES = ("matplotlib", "networkx", "numpy", "pandas", "pyarrow", "ray", "sympy", "torch")
"""What ``large`` adds: dependencies of lrsweep only, so that nothing else installed changes the text."""

_SKIPPED_FOLDERS = {"__pycache__", "dist-packages", "site-packages"}
_SKIPPED_FOLDERS |= {"idle_test", "test", "tests"}
# 1.4 MB of tables that are near copies of one another, and a manual of 0.8 MB made by a program.
_SKIPPED_FOLDERS |= {"encodings", "pydoc_data"}
# These record the build (compiler, paths, CUDA): without them one version of a package is one text.
_BUILD_RECORDS = {"__config__.py", "_version.py", "version.py"}
_BUILD_PREFIXES = ("_sysconfigdata", "config-")


def embedded_documents(scale: Scale) -> Iterator[Document]:
    """Python files in the sorted order of their relative paths, package after package.

    Left out: tests, ``encodings`` and ``pydoc_data``, files that record a build or are not UTF-8. The
    text is that of the running Python and the installed packages: equal versions give equal text, other
    versions another ``data_hash``.
    """
    yield from _python_files(Path(sysconfig.get_path("stdlib")), prefix="")
    for package in LARGE_PACKAGES if scale == "large" else ():
        spec = find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        yield from _python_files(Path(spec.origin).parent, prefix=f"{package}/")


def embedded_source(scale: Scale) -> str:
    """One line that says what the embedded text is."""
    packages = [f", {package} {version(package)}" for package in LARGE_PACKAGES if scale == "large"]
    return f"source of the Python {platform.python_version()} standard library" + "".join(packages)


def _python_files(root: Path, *, prefix: str) -> Iterator[Document]:
    paths = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [s for s in subfolders if s not in _SKIPPED_FOLDERS and not s.startswith(_BUILD_PREFIXES)]
        paths += [
            Path(folder, name)
            for name in names
            if name.endswith(".py") and name not in _BUILD_RECORDS and not name.startswith(_BUILD_PREFIXES)
        ]
    for relative, path in sorted((path.relative_to(root).as_posix(), path) for path in paths):
        text = path.read_bytes()
        try:
            text.decode("utf-8")
        except UnicodeDecodeError:
            continue
        yield file_document(prefix + relative, text)
