"""A scan on many machines: the same scanner, one in each of Ray Data's actors, and Parquet instead of a run file.

In: files, folders and archives that every machine sees, or addresses that pyarrow reads (`s3://`, `gs://`, …). Out, in a
folder or at an address: `run.json` (how it is judged), `plan.parquet` (which files there are, in parts) and a file of results
for each part, written whole or not at all. What a reader would get wrong: the plan is made once. The same command goes on with
it, passes over parts that are written, and does not look for new files.
"""

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from imgsafety import source
from imgsafety.archive import Member, is_archive, list_members
from imgsafety.errors import ImageError, SetupError
from imgsafety.runs import describe_run, refuse_changes
from imgsafety.scan import Scanner
from imgsafety.sink import write_parquet
from imgsafety.source import Selection

try:
    import pyarrow
    import ray
    from pyarrow import fs, parquet
except ImportError as problem:
    raise SetupError("--engine ray needs more packages, on every machine: pip install 'imgsafety[ray]'") from problem

FILES_PER_PART = 1000
# Names are bytes because those of local files need not be UTF-8; archive is null for what is a file by itself.
PLAN = pyarrow.schema([("name", pyarrow.binary()), ("archive", pyarrow.binary())])


def scan_ray(
    paths: Iterable[str], output: str, selection: Selection, settings: Mapping[str, Any], files_per_part: int = FILES_PER_PART
) -> tuple[int, Iterator[Counter[str]]]:
    """Plan or find the parts, and say how many; then yield each part's count of verdicts and of `flagged`, in no order.

    settings: the arguments of `Scanner`; `workers` is the threads, and cores, of each actor. Ray's own rules decide which
    cluster: `RAY_ADDRESS`, one that runs here, else a new one of this machine. Identical bytes are judged each time.
    Raises `SetupError` as `scan_run` does, and when a machine has another model or policy than this one.
    """
    scanner = Scanner(**settings)
    roots = [path if is_address(path) else os.path.abspath(path) for path in paths]
    output = output if is_address(output) else os.path.abspath(output)
    facts = describe_run(scanner, roots, selection)
    _begin(output, facts, roots, selection, files_per_part)
    filesystem, folder = _resolve(output)
    with filesystem.open_input_file(f"{folder}/plan.parquet") as file:
        parts = parquet.ParquetFile(file).num_row_groups
    return parts, _judge_parts(parts, output, dict(settings), facts)


def is_address(path: str) -> bool:
    """True for `scheme://…`: read through pyarrow instead of the machine's own file system."""
    return "://" in path


def _judge_parts(parts: int, output: str, settings: dict[str, Any], facts: dict[str, Any]) -> Iterator[Counter[str]]:
    ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    cores, gpus = ([int(node.get(kind, 0)) for node in nodes] for kind in ("CPU", "GPU"))
    per_actor = 0 if facts["settings"]["provider"] == "cpu" else 1
    threads = settings.get("workers") or (max(1, sum(cores) // max(1, sum(gpus))) if per_actor else 1)
    # Ray would wait for ever for what no machine has.
    if threads > max(cores) or per_actor > max(gpus):
        wanted = f"{threads} cores{' and a GPU' * per_actor}"
        raise SetupError(f"no machine of the cluster has {wanted} for one scanner: lower --workers")
    actors = sum(gpus) if per_actor else sum(cores) // threads
    done = ray.data.from_items([{"part": part} for part in range(parts)], override_num_blocks=parts).map(
        JudgePart,  # type: ignore[arg-type]  # Ray's types do not know that it makes an actor of a class
        fn_constructor_args=(output, settings | {"workers": threads}, facts),
        num_cpus=threads,
        num_gpus=per_actor,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, actors)),
    )
    try:
        for row in done.iter_rows():
            yield Counter(row)
    except ray.exceptions.RayError as problem:
        why = str(getattr(problem, "cause", None) or problem).strip().splitlines()[-1]
        raise SetupError(f"the cluster stopped: {why}; parts that are written stay, and the same command goes on") from problem


class JudgePart:
    """One actor: a scanner that judges part after part."""

    def __init__(self, output: str, settings: dict[str, Any], facts: dict[str, Any]) -> None:
        self.output, self.settings, self.facts = output, settings, facts

    @cached_property
    def scanner(self) -> Scanner:
        """Made with the first part: Ray would start an actor whose construction fails again and again."""
        scanner = Scanner(**self.settings)
        here = describe_run(scanner, [], Selection())
        refuse_changes(self.output, self.facts, {**here, "selection": self.facts["selection"]})
        return scanner

    def __call__(self, row: dict[str, int]) -> dict[str, int]:
        """Judge the part `row` names, unless it is written; return how many files have each verdict, and are `flagged`."""
        filesystem, folder = _resolve(self.output)
        path = f"{folder}/part-{row['part']:05d}.parquet"
        if filesystem.get_file_info(path).type == fs.FileType.NotFound:
            with filesystem.open_input_file(f"{folder}/plan.parquet") as file:
                plan = parquet.ParquetFile(file).read_row_group(row["part"]).to_pylist()
            with _whole_file(filesystem, path) as stream:
                heads = [(head.name, head.labels) for head in self.scanner.session.spec.heads]
                write_parquet(self.scanner.scan(_items(plan)), heads, stream)
        table = parquet.read_table(path, columns=["verdict", "reasons"], filesystem=filesystem).to_pylist()
        counts = Counter(result["verdict"] for result in table)
        flagged = sum(result["verdict"] != "allow" or bool(result["reasons"]) for result in table)
        return {verdict: counts[verdict] for verdict in ("allow", "review", "block", "undecided")} | {"flagged": flagged}


def _begin(output: str, facts: dict[str, Any], roots: list[str], selection: Selection, files_per_part: int) -> None:
    """Write the plan of a new run, or refuse to go on with one that was begun differently."""
    filesystem, folder = _resolve(output)
    about = f"{folder}/run.json"
    try:
        if filesystem.get_file_info(about).type == fs.FileType.File:
            with filesystem.open_input_file(about) as file:
                refuse_changes(output, json.loads(file.read()), facts)
            return
        filesystem.create_dir(folder)
        _plan(filesystem, f"{folder}/plan.parquet", roots, selection, files_per_part)
        with _whole_file(filesystem, about) as stream:  # last: without it there is no run to go on with
            stream.write(json.dumps(facts, indent=2).encode())
    except (OSError, ValueError) as problem:
        raise SetupError(f"output {output}: {problem}") from problem


def _plan(filesystem: fs.FileSystem, path: str, roots: list[str], selection: Selection, files_per_part: int) -> None:
    """Write every file's name, one row group for each part."""
    items = source.select(lambda: _list_roots(roots, selection), selection)
    with _whole_file(filesystem, path) as stream, parquet.ParquetWriter(stream, PLAN) as writer:
        count = 0
        while part := list(islice(items, files_per_part)):
            rows = [
                {
                    "name": os.fsencode(source.name_of(item) or ""),
                    "archive": os.fsencode(item.archive) if isinstance(item, Member) else None,
                }
                for item in part
            ]
            writer.write_table(pyarrow.Table.from_pylist(rows, PLAN), row_group_size=files_per_part)
            count += len(part)
        if not count:
            raise SetupError(f"no pictures in {' '.join(roots)}")


def _list_roots(roots: list[str], selection: Selection) -> Iterator[tuple[str, Any]]:
    for number, root in enumerate(roots):
        listing = _list_address(root) if is_address(root) else source.list_places([Path(root)], selection)
        for place, item in listing:
            yield f"{number}/{place.partition('/')[2]}", item


def _list_address(root: str) -> Iterator[tuple[str, "RemoteFile"]]:
    """Yield what may be a picture below an address, folder by folder, and archives, which cannot be read there."""
    filesystem, base = _resolve(root)
    if filesystem.get_file_info(base).type == fs.FileType.File:
        yield f"0/{os.path.basename(base)}", RemoteFile(root)
        return
    waiting = [base]
    while waiting:
        entries = sorted(filesystem.get_file_info(fs.FileSelector(waiting.pop())), key=lambda entry: str(entry.path))
        waiting += [entry.path for entry in reversed(entries) if entry.type == fs.FileType.Directory]
        for entry in entries:
            place = entry.path.removeprefix(base).lstrip("/")
            file = RemoteFile(f"{root.rstrip('/')}/{place}")
            if entry.type == fs.FileType.File and (is_archive(place) or source.may_be_picture(place, file.read)):
                yield f"0/{place}", file


class RemoteFile:
    """A file at an address, read when somebody asks. name: the address."""

    def __init__(self, name: str) -> None:
        self.name = name

    def read(self, limit: int) -> bytes:
        """Return up to that many bytes from its start. Raises `ImageError` for an archive, and what pyarrow raises."""
        if is_archive(self.name):
            raise ImageError("is an archive at an address; unpack it there, or copy it to a disk that every machine sees")
        filesystem, path = _resolve(self.name)
        with filesystem.open_input_stream(path, compression=None) as stream:
            data: bytes = stream.read(limit)
        return data


def _items(plan: list[dict[str, Any]]) -> Iterator[Any]:
    """Turn rows of the plan back into things that a scanner reads."""
    for archive, rows in groupby(plan, key=lambda row: row["archive"]):
        names = [os.fsdecode(row["name"]) for row in rows]
        if archive is None:
            yield from (RemoteFile(name) if is_address(name) else Path(name) for name in names)
        else:
            yield from _members(Path(os.fsdecode(archive)), set(names))


def _members(archive: Path, names: set[str]) -> Iterator[Member]:
    def gone(_: int) -> bytes:
        raise ImageError("is no longer in the archive")

    for member in list_members(archive):
        if member.name in names:
            names.remove(member.name)
            yield member
    yield from (Member(name, archive, gone) for name in sorted(names))


def _resolve(place: str) -> tuple[fs.FileSystem, str]:
    """Find the file system of a path or an address, and the path inside it; fsspec knows what pyarrow does not."""
    if not is_address(place):
        return fs.LocalFileSystem(), place
    try:
        filesystem, path = fs.FileSystem.from_uri(place)
    except pyarrow.ArrowInvalid:
        import fsspec  # comes with Ray Data

        inner, path = fsspec.core.url_to_fs(place)
        filesystem = fs.PyFileSystem(fs.FSSpecHandler(inner))
    return filesystem, path.rstrip("/")


@contextmanager
def _whole_file(filesystem: fs.FileSystem, path: str) -> Iterator[Any]:
    """Open a file to write that appears under its name when all of it is written."""
    unfinished = f"{path}.{os.getpid()}.unfinished"
    try:
        with filesystem.open_output_stream(unfinished) as stream:
            yield stream
        filesystem.move(unfinished, path)
    except BaseException:
        with suppress(OSError):
            filesystem.delete_file(unfinished)
        raise
