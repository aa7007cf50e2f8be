"""The command `sparring doctor`."""

from typing import Any

from .common import only, print_json, say

_USAGE = """\
usage: sparring doctor [--json]

Says what this machine and this installation can do: versions, device, precision, threads, which data sets are here,
which optional packages are missing and how to get them. Downloads nothing. A report of a fault should begin with it."""


def doctor(args: list[str]) -> int:
    only(args, _USAGE, "--json")
    from ..runs.doctor import examine

    found = examine()
    if args:
        print_json(found)
    else:
        say("\n".join(_lines(found)))
    return 0


def _lines(found: dict[str, Any]) -> list[str]:
    """Return the report as text: facts, then data, extras and remarks under headings."""
    versions, threads, data = found["versions"], found["threads"], found["data"]
    facts = {
        "sparring": versions["sparring"] + (f", commit {found['commit']}" if found["commit"] else ""),
        **{name: number or "not installed" for name, number in versions.items() if name != "sparring"},
        "platform": found["platform"],
        "device": _device(found["device"]),
        "bf16": "yes" if found["bf16"] else "no",
        "allocator": found["allocator"],
        "threads": f"{threads['used']}, on {threads['cores']} cores",
        "compiler": found["compiler"] or "none",
    }
    sets = {"digits": "part of scikit-learn"}
    sets |= {name: place or "not here: downloaded when it is first used" for name, place in data["found"].items()}
    extras = {name: _extra(extra) for name, extra in found["extras"].items()}
    return [
        *_table(facts),
        *("", f"data, kept in {data['folder']} (SPARRING_DATA names another folder):", *_table(sets)),
        *("", "extras:", *_table(extras)),
        *(["", "remarks:", *(f"  {remark}" for remark in found["remarks"])] if found["remarks"] else []),
    ]


def _table(rows: dict[str, str]) -> list[str]:
    width = max(map(len, rows))
    return [f"  {name:{width}}  {text}" for name, text in rows.items()]


def _device(device: dict[str, Any]) -> str:
    gpus = "; ".join(f"{gpu['name']}, {gpu['memory_gib']} GiB" for gpu in device["gpus"])
    return f"{device['type']}: {gpus or device['cpu']}"


def _extra(extra: dict[str, Any]) -> str:
    missing = [name for name, number in extra["packages"].items() if not number]
    there = ", ".join(f"{name} {number}" for name, number in extra["packages"].items() if number)
    return f"{', '.join(missing)} missing: {extra['get']}" if missing else there
