"""Makes `bench` importable under pytest's importlib mode, as it is inside the simulator."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
