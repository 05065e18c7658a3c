"""Runs one part in this process and prints its line: `python -m tests.gpu_check.part NAME OPTIONS`.

Whatever the part itself prints goes to stderr.
"""

import contextlib
import importlib
import json
import sys
import traceback

from shards.errors import ConfigError


def main() -> None:
    """Run the part; exit with 0, since the line says how it ended."""
    name, options = sys.argv[1], json.loads(sys.argv[2])
    with contextlib.redirect_stdout(sys.stderr):
        result = _measured(name, options)
    print(json.dumps(result))


def _measured(name: str, options: dict[str, str | None]) -> dict[str, object]:
    try:
        numbers = importlib.import_module(f"tests.gpu_check.{name}").measure(**options)
    except ModuleNotFoundError as error:
        return {"ok": None, "skipped": f"{error.name} is not installed here"}
    except ConfigError as error:  # DALI, or the library of the crop kernel, is missing
        return {"ok": None, "skipped": str(error)}
    except Exception as error:
        traceback.print_exc()
        return {"ok": False, "error": f"{type(error).__name__}: {error}"}
    return {"ok": True, **numbers}


if __name__ == "__main__":
    main()
