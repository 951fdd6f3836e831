"""A teacher that reads English writes answers; a student learns them without reading English.

| module | |
|---|---|
| `teacher` | answers to prompts, each with its mean log-likelihood |
| `selection` | which answers are kept, and what was kept |
"""
