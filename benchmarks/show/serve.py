"""Records of `benchmarks.serve`: requests per second and first tokens of vLLM, connected and plain, and `generate`."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.show.table import Kind, Number, Record, Table, milliseconds, numbers_of, ratio

_KEYS = ("requests_per_second", "tokens_per_second", "ratio", "first_token", "alone", "alone_ratio")


def tables(record: Record) -> Iterator[Table]:
    """One row per way to answer."""
    given, found = record["arguments"], record["facts"]
    time = "by the process's own time" if record["clock"] == "process" else "by the clock on the wall"
    title = (
        f"{given['model']}, fp32, {found['device']}, {time}: {given['requests']} requests at once, prompts of "
        f"{given['prompts'][0]} to {given['prompts'][1]} tokens, {given['tokens']} new tokens; generate in batches of "
        f"{given['batch']}, vLLM {found['vllm']}"
    )
    header = ["way", "requests/s", "tokens/s", "time ÷ vLLM, plain", "first token of all at once, ms"]
    header += [f"first token of one, {given['prompts'][1]} tokens, ms", "÷ vLLM, plain"]
    rows = [
        [
            name,
            f"{row['requests_per_second']['median']:.2f}",
            f"{row['tokens_per_second']['median']:,.0f}",
            ratio(row["ratio"]),
            f"{1e3 * row['first_token']['median']:,.0f}",
            milliseconds(row["alone"]),
            ratio(row["alone_ratio"]),
        ]
        for name, row in record["ways"].items()
    ]
    yield Table(title, header, rows, "serve")


def numbers(record: Record) -> Iterator[Number]:
    """Medians of every way, and the share of vLLM's answers that equal those of `generate`."""
    given = record["arguments"]
    share = min(record["equal"]["plain"], record["equal"]["connected"]) / given["requests"]
    yield Number(f"serve {given['model']}, answers equal", share, "serve")
    for name, row in record["ways"].items():
        yield from numbers_of(f"serve {given['model']}, {name}", "serve", row, _KEYS)


def failures(record: Record) -> list[str]:
    """Ways whose tokens are not those of `generate`."""
    asked = record["arguments"]["requests"]
    wrong = {name: record["equal"][name] for name in ("plain", "connected") if record["equal"][name] < asked}
    return [f"{name}: {count} of {asked} answers equal generate's" for name, count in wrong.items()]


KIND = Kind(tables, numbers, failures=failures)
