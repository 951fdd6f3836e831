"""An engine in a process of its own: `python run_engine.py FOLDER OPTIONS PROMPTS`, both as JSON, prints the tokens."""

from __future__ import annotations

import json
import sys

if __name__ == "__main__":
    from served import greedy, serve, start

    folder, options, prompts = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
    print("tokens", json.dumps(serve(start(folder, **options), prompts, greedy(8))))
