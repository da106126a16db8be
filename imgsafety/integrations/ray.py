"""A scan on many machines: the same scanner, one in each of Ray Data's actors, and Parquet instead of a run file.

In: files, folders and archives that every machine sees, or addresses that pyarrow reads (`s3://`, `gs://`, …). Out, in a
folder or at an address: `run.json` (how it is judged), `plan.parquet` (which files there are, in parts) and a file of results
for each part, written whole or not at all. What a reader would get wrong: the plan is made once. The same command goes on with
it, passes over parts that are written, and does not look for new files.
"""

import json
import logging
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

from imgsafety import source
from imgsafety.archive import ZIP_MAGIC, Member, is_archive, list_members
from imgsafety.errors import ImageError, ImgSafetyError, SetupError
from imgsafety.result import SEVERITY
from imgsafety.runs import describe_run, refuse_changes, versions
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
RESTARTS = 3  # of an actor: a picture that crashes its decoder each time must end the scan, not be tried for ever
# Names are bytes because those of local files need not be UTF-8. root: the address it lies under; archive: the file it is in.
PLAN = pyarrow.schema([("name", pyarrow.binary()), ("root", pyarrow.string()), ("archive", pyarrow.binary())])


def scan_ray(
    paths: Iterable[str], output: str, selection: Selection, settings: Mapping[str, Any], files_per_part: int = FILES_PER_PART
) -> tuple[int, Iterator[Counter[str]]]:
    """Plan or find the parts, and say how many; then yield each part's count of verdicts and of `flagged`, in no order.

    settings: the arguments of `Scanner`; `workers` is the threads, and cores, of each actor. Ray's own rules decide which
    cluster: `RAY_ADDRESS`, one that runs here, else a new one of this machine. Identical bytes are judged each time. Raises
    `SetupError` as `scan_run` does, and when a machine has another version, model or policy than this one.
    """
    scanner = Scanner(**settings)
    model = settings.get("model")
    # Actors work in another folder, so no path may be relative; the policy travels whole.
    everywhere = {**settings, "policy": scanner.policy, "model": model and os.path.abspath(model)}
    roots = [path if is_address(path) else os.path.abspath(path) for path in paths]
    output = output if is_address(output) else os.path.abspath(output)
    facts = _begin(output, describe_run(scanner, roots, selection), roots, selection, files_per_part)
    with _open(output, "plan.parquet") as file:
        parts = parquet.ParquetFile(file).num_row_groups
    return parts, _judge_parts(parts, output, everywhere, facts)


def is_address(path: str) -> bool:
    """True for `scheme://…`: read through pyarrow instead of the machine's own file system."""
    return "://" in path


def _judge_parts(parts: int, output: str, settings: dict[str, Any], facts: dict[str, Any]) -> Iterator[Counter[str]]:
    _connect()
    threads, gpus, actors = _share_out(settings, facts["settings"]["provider"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what Ray 2.64 takes away; pyproject.toml stays below
        done = ray.data.from_items([{"part": part} for part in range(parts)], override_num_blocks=parts).map(
            JudgePart,  # type: ignore[arg-type]  # Ray's types do not know that it makes an actor of a class
            fn_constructor_args=(output, settings | {"workers": threads}, facts),
            num_cpus=threads,
            num_gpus=gpus,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors),
            max_restarts=RESTARTS,
            max_task_retries=RESTARTS,
        )
    try:
        for row in done.iter_rows():
            if problem := row.pop("problem"):
                raise SetupError(problem)
            yield Counter(row)
    except ray.exceptions.RayError as problem:
        raise SetupError(
            f"the cluster stopped: {problem}; parts that are written stay, and the same command goes on. "
            "When a picture crashes its decoder: --isolate"
        ) from problem


def _connect() -> None:
    try:
        ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as problem:
        raise SetupError(f"no Ray cluster at {os.environ.get('RAY_ADDRESS', 'this machine')}: {problem}") from problem
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _share_out(settings: Mapping[str, Any], provider: str) -> tuple[int, int, int]:
    """Return threads and GPUs of each actor, and how many actors the cluster as it is now holds."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    sizes = [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in nodes]
    gpus = 0 if provider == "cpu" else 1
    able = [(cores, cards) for cores, cards in sizes if cores and cards >= gpus]
    threads = settings.get("workers") or (min((cores // cards for cores, cards in able), default=1) if gpus else 1) or 1
    actors = sum(min(cores // threads, cards) if gpus else cores // threads for cores, cards in able)
    if not actors:  # Ray would wait for ever for what no machine has
        raise SetupError(f"no machine of the cluster has {threads} cores{' and a GPU' * gpus} for one scanner; see --workers")
    return threads, gpus, actors


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
        version, other = versions()["imgsafety"], self.facts["versions"][-1]["imgsafety"]
        if version != other:
            raise SetupError(f"a machine of the cluster has imgsafety {version}, not {other}")
        return scanner

    def __call__(self, row: dict[str, int]) -> dict[str, Any]:
        """Judge the part `row` names, unless it is written; return how many files have each verdict, and are `flagged`.

        What is wrong with the set-up is returned as `problem`: Ray would bury the message under its own.
        """
        try:
            return {"problem": "", **self._count(row["part"])}
        except ImgSafetyError as problem:
            return {"problem": str(problem), **dict.fromkeys((*SEVERITY, "flagged"), 0)}

    def _count(self, part: int) -> dict[str, int]:
        with _open(self.output, "plan.parquet") as file:
            plan = parquet.ParquetFile(file).read_row_group(part).to_pylist()
        name = f"part-{part:05d}.parquet"
        table = self._read(name)
        # As in a run file, what could not even be read is tried again: a disk may have been away.
        if table is None or any(result["verdict"] == "undecided" and not result["sha256"] for result in table):
            self._judge(name, plan)
            table = self._read(name) or []
        counts = Counter(result["verdict"] for result in table)
        if len(table) != len(plan) or counts.keys() - SEVERITY.keys():
            raise SetupError(f"{name} holds {len(table)} results of {len(plan)} files; delete it, and give the same command again")
        flagged = sum(result["verdict"] != "allow" or bool(result["reasons"]) for result in table)
        return {verdict: counts[verdict] for verdict in SEVERITY} | {"flagged": flagged}

    def _judge(self, name: str, plan: list[dict[str, Any]]) -> None:
        heads = [(head.name, head.labels) for head in self.scanner.session.spec.heads]
        about = {"plan": self.facts["plan"], "versions": json.dumps(versions())}
        with _whole_file(self.output, name) as stream:
            write_parquet(self.scanner.scan(_items(plan)), heads, stream, about)

    def _read(self, name: str) -> list[dict[str, Any]] | None:
        """Return the results of a part, or none where there are none. Raises `SetupError` for a part of another plan."""
        if not _exists(self.output, name):
            return None
        with _open(self.output, name) as file:
            table = parquet.ParquetFile(file).read(columns=["verdict", "reasons", "sha256"])
        if (table.schema.metadata or {}).get(b"plan") != self.facts["plan"].encode():
            raise SetupError(f"{self.output} holds {name} of another scan; name another --output")
        results: list[dict[str, Any]] = table.to_pylist()
        return results


def _begin(output: str, facts: dict[str, Any], roots: list[str], selection: Selection, files_per_part: int) -> dict[str, Any]:
    """Write the plan of a new run, or refuse to go on with one that was begun differently; return the facts of the run."""
    if _exists(output, "run.json"):
        try:
            with _open(output, "run.json") as file:
                stored: dict[str, Any] = json.loads(file.read())
            refuse_changes(output, stored, facts)
            return {**facts, "plan": stored["plan"]}
        except (ValueError, LookupError, TypeError) as problem:
            raise SetupError(f"output {output}: run.json is damaged: {problem}; name another --output") from problem
    if _exists(output, "part-00000.parquet"):
        raise SetupError(f"output {output} holds results, but no run.json that says how they were made; name another --output")
    facts = {**facts, "plan": uuid4().hex}
    with _explained(output):
        filesystem, folder = _resolve(output)
        filesystem.create_dir(folder)
    _plan(output, roots, selection, files_per_part)
    with _whole_file(output, "run.json") as stream:  # last: without it there is no run to go on with
        stream.write(json.dumps(facts, indent=2).encode())
    return facts


def _plan(output: str, roots: list[str], selection: Selection, files_per_part: int) -> None:
    """Write every file's name, one row group for each part."""
    items = source.select(lambda: _list_roots(roots, selection), selection)
    with _whole_file(output, "plan.parquet") as stream, parquet.ParquetWriter(stream, PLAN, write_statistics=False) as writer:
        count = 0
        while part := list(islice(items, files_per_part)):
            writer.write_table(pyarrow.Table.from_pylist([_plan_row(item) for item in part], PLAN), row_group_size=files_per_part)
            count += len(part)
        if not count:
            raise SetupError(f"no pictures in {' '.join(roots)}")


def _plan_row(item: "Path | Member | RemoteFile") -> dict[str, Any]:
    if isinstance(item, RemoteFile):
        return {"name": item.path.encode(), "root": item.root}
    archive = os.fsencode(item.archive) if isinstance(item, Member) else None
    return {"name": os.fsencode(source.name_of(item) or ""), "archive": archive}


def _list_roots(roots: Sequence[str], selection: Selection) -> Iterator[tuple[str, Any]]:
    local = [Path(root) for root in roots if not is_address(root)]
    remote = [root for root in roots if is_address(root)]
    far = (_list_address(number, root, selection) for number, root in enumerate(remote, start=len(local)))
    return chain(source.list_places(local, selection), chain.from_iterable(far))


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file that is read when somebody asks. root: the address it lies under; path: its path in that file system."""

    from_start: ClassVar[bool] = True  # so does every `read`, unlike a file's
    root: str
    path: str

    @property
    def name(self) -> str:
        """Its own address, for people."""
        return f"{self.root.partition('://')[0]}://{self.path}"

    def read(self, limit: int) -> bytes:
        """Return up to that many bytes from its start. Raises `ImageError` for an archive, and what pyarrow raises."""
        data = self.head(limit)
        if is_archive(self.path) or data.startswith(ZIP_MAGIC):
            raise ImageError("is an archive at an address; unpack it there, or copy it to a disk that every machine sees")
        return data

    def head(self, limit: int) -> bytes:
        """Return up to that many bytes from its start, whatever it is."""
        with _resolve(self.root)[0].open_input_stream(self.path, compression=None) as stream:
            data: bytes = stream.read(limit)
        return data


def _list_address(number: int, root: str, selection: Selection) -> Iterator[tuple[str, RemoteFile]]:
    """Yield what may be a picture below an address, folder by folder; archives too, which end undecided."""
    filesystem, base = _resolve(root)
    with _explained(root):
        kind = filesystem.get_file_info(base).type
    if kind == fs.FileType.NotFound:
        raise SetupError(f"{root}: no such file or folder")
    if kind != fs.FileType.Directory:
        yield f"{number}/{os.path.basename(base)}", RemoteFile(root, base)
        return
    waiting = [base]
    while waiting:
        with _explained(root):
            entries = sorted(filesystem.get_file_info(fs.FileSelector(waiting.pop())), key=lambda entry: str(entry.path))
        folders = [entry.path for entry in entries if entry.type == fs.FileType.Directory]
        waiting += [path for path in reversed(folders) if not source.matches(_below(base, path), selection.exclude)]
        for entry in entries:
            if entry.type != fs.FileType.Directory and _may_hold_picture(file := RemoteFile(root, entry.path)):
                yield f"{number}/{_below(base, entry.path)}", file


def _below(base: str, path: str) -> str:
    return path.removeprefix(base).lstrip("/")


def _may_hold_picture(file: RemoteFile) -> bool:
    if source.has_ending(file.path) or is_archive(file.path):
        return True
    try:
        head = file.head(source.HEAD_BYTES)
    except Exception:  # noqa: BLE001  # the plan is made once: what cannot be read now is tried, and counted, later
        return True
    return head.startswith(ZIP_MAGIC) or source.looks_like_image(head)


def _items(plan: list[dict[str, Any]]) -> Iterator[Any]:
    """Turn rows of the plan back into things that a scanner reads."""
    for archive, rows in groupby(plan, key=lambda row: row["archive"]):
        if archive is not None:
            yield from _members(Path(os.fsdecode(archive)), {os.fsdecode(row["name"]) for row in rows})
            continue
        for row in rows:
            yield RemoteFile(row["root"], row["name"].decode()) if row["root"] else Path(os.fsdecode(row["name"]))


def _members(archive: Path, names: set[str]) -> Iterator[Member]:
    def gone(_: int) -> bytes:
        raise ImageError("is no longer in the archive")

    for member in list_members(archive):
        if member.name in names:
            names.remove(member.name)
            yield member
        if not names:
            return
    yield from (Member(name, archive, gone) for name in sorted(names))


@cache  # a connection for each file would be slow
def _resolve(place: str) -> tuple[fs.FileSystem, str]:
    """Find the file system of a path or an address, and the path inside it; fsspec knows what pyarrow does not."""
    if not is_address(place):
        return fs.LocalFileSystem(), place
    try:
        filesystem, path = fs.FileSystem.from_uri(place)
    except pyarrow.ArrowInvalid:
        import fsspec  # comes with Ray Data

        try:
            inner, path = fsspec.core.url_to_fs(place)
        except (ValueError, ImportError, OSError) as problem:
            raise SetupError(f"{place} cannot be read: {problem}") from problem
        filesystem = fs.PyFileSystem(fs.FSSpecHandler(inner))
    except (OSError, NotImplementedError) as problem:
        raise SetupError(f"{place} cannot be read: {problem}") from problem
    return filesystem, path.rstrip("/")


@contextmanager
def _explained(place: str) -> Iterator[None]:
    """Turn what a file system raises into an error that names the place."""
    try:
        yield
    except (OSError, ValueError) as problem:
        raise SetupError(f"{place}: {problem}") from problem


def _exists(output: str, name: str) -> bool:
    filesystem, folder = _resolve(output)
    with _explained(output):
        return bool(filesystem.get_file_info(f"{folder}/{name}").type == fs.FileType.File)


@contextmanager
def _open(output: str, name: str) -> Iterator[Any]:
    """Open a file of the output for reading."""
    filesystem, folder = _resolve(output)
    with _explained(f"{output}/{name}"), filesystem.open_input_file(f"{folder}/{name}") as file:
        yield file


@contextmanager
def _whole_file(output: str, name: str) -> Iterator[Any]:
    """Open a file of the output for writing; it appears under its name when all of it is written."""
    filesystem, folder = _resolve(output)
    unfinished = f"{folder}/{name}.{uuid4().hex}.unfinished"
    with _explained(f"{output}/{name}"):
        try:
            with filesystem.open_output_stream(unfinished) as stream:
                yield stream
            filesystem.move(unfinished, f"{folder}/{name}")
        except BaseException:
            with suppress(OSError):
                filesystem.delete_file(unfinished)
            raise
