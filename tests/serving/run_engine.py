"""Engines in a process of its own: `python run_engine.py OPTIONS PROMPTS FOLDER...` prints the tokens of each folder.

Options and prompts are JSON. vLLM makes what experts need for the first engine of a process, so mixtures have one of
their own.
"""

from __future__ import annotations

import json
import sys

if __name__ == "__main__":
    from served import greedy, serve, start

    options, prompts = json.loads(sys.argv[1]), json.loads(sys.argv[2])
    for folder in sys.argv[3:]:
        print("tokens", json.dumps(serve(start(folder, **options), prompts, greedy(8))), flush=True)
