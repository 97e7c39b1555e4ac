"""Find the `App` that somebody names: `shop.py:app`, `my.shop:app`, or without `:app`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Final

from crdtsync.app import App
from crdtsync.errors import ConfigError

DEFAULT_NAME: Final = "app"


def load_app(place: str) -> App:
    """Import the module and return its app, checked. The file's folder, or the current one, joins the import path.

    Raises:
        ConfigError: There is no such file, module or name, importing it failed, or its tasks don't fit together.
    """
    where, colon, name = place.rpartition(":")
    if not colon:
        where, name = place, DEFAULT_NAME
    module = _import_file(Path(where)) if where.endswith(".py") or "/" in where else _import_module(where)
    found = getattr(module, name, None)
    if not isinstance(found, App):
        apps = [key for key, value in vars(module).items() if isinstance(value, App)]
        close = get_close_matches(name, apps, n=1) or apps[:1]
        hint = f"did you mean {where}:{close[0]}?" if close else "it defines no App at all"
        what = "there is no such name in it" if found is None else f"it is a {type(found).__name__}, not an App"
        raise ConfigError(f"app {place}: {what}; {hint}")
    found.check()
    return found


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"app {path}: there is no such file")
    path = path.resolve()
    _prefer(path.parent)
    specification = importlib.util.spec_from_file_location(path.stem, path)
    if specification is None or specification.loader is None:
        raise ConfigError(f"app {path}: not a Python file; name one that ends in .py, or a module")
    module = importlib.util.module_from_spec(specification)
    sys.modules[path.stem] = module  # before it runs: dataclasses and pickles look themselves up
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        del sys.modules[path.stem]
        raise _failed(str(path), error) from error
    return module


def _import_module(name: str) -> ModuleType:
    _prefer(Path.cwd())
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise _failed(name, error) from error


def _prefer(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _failed(what: str, error: Exception) -> ConfigError:
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return ConfigError(f"app {what}: {type(error).__name__}: {error}{place}")
