"""Makes the servers and clients of the end-to-end tests importable (`from harness ...`)."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))
