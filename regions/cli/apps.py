"""Find the `App` that a command line names: `shop.py:app`, `my.shop:app`, or without `:app`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Final

from crdtsync.app import App
from crdtsync.errors import ConfigError

DEFAULT_NAME: Final = "app"


def load_app(place: str) -> App:
    """Import the module and return its app. The file's folder, or the current one, is put on the import path.

    Raises:
        ConfigError: There is no such file, module or name, or importing it failed.
    """
    where, name = place.rpartition(":")[::2] if ":" in place else (place, DEFAULT_NAME)
    module = _import_file(Path(where)) if where.endswith(".py") or "/" in where else _import_module(where)
    found = getattr(module, name, None)
    if isinstance(found, App):
        return found
    apps = [key for key, value in vars(module).items() if isinstance(value, App)]
    close = get_close_matches(name, apps, n=1) or apps[:1]
    hint = f"; did you mean {where}:{close[0]}?" if close else "; it defines no App at all"
    what = "there is no such name in it" if found is None else f"it is a {type(found).__name__}, not an App"
    raise ConfigError(f"--app {place}: {what}{hint}")


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"--app {path}: there is no such file")
    path = path.resolve()
    _prefer(path.parent)
    specification = importlib.util.spec_from_file_location(path.stem, path)
    if specification is None or specification.loader is None:
        raise ConfigError(f"--app {path}: not a Python file")
    module = importlib.util.module_from_spec(specification)
    sys.modules[path.stem] = module  # before it runs: dataclasses and pickles look themselves up
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        raise _import_failed(str(path), error) from error
    return module


def _import_module(name: str) -> ModuleType:
    _prefer(Path.cwd())
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise _import_failed(name, error) from error


def _prefer(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _import_failed(what: str, error: Exception) -> ConfigError:
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    place = f" ({last.tb_frame.f_code.co_filename}:{last.tb_lineno})" if last is not None else ""
    return ConfigError(f"--app {what}: {type(error).__name__}: {error}{place}")
