"""The extension module: what python/trapgate is built on. Not a public interface."""

from typing import Final

__version__: Final[str]
