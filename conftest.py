"""For every test of the repository: forwards run eagerly unless a test says otherwise.

By default programs that someone has compiled on this machine would be taken, and a test would depend on them.
"""

from __future__ import annotations

import os

os.environ["FASTLLM_FORWARD"] = "eager"
