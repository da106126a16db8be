"""Scans that can be stopped and gone on with, and policies applied later: `Scanner` and `Store` together.

In: paths and a scanner, or a stored run and a policy. Out: results that are stored before anybody sees them.
What a reader would get wrong: nothing remembers where a scan stopped. The same listing runs again, and what is stored and
unchanged is passed over; so it does not matter how, or how often, a scan was ended.
"""

import json
import os
import platform
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from imgsafety import source
from imgsafety.archive import Member
from imgsafety.errors import SetupError
from imgsafety.policy import Policy, check_fit
from imgsafety.preprocess import LOOKS, with_half
from imgsafety.result import Result
from imgsafety.scan import Scanner, Scored, judge
from imgsafety.session import read_out, score_names
from imgsafety.source import Selection
from imgsafety.spec import ModelSpec, from_json, to_json
from imgsafety.store import Entry, Opinion, Seen, Store, split_columns

DECIDE_BATCH = 1000
NO_OPTIONS = ("paths", "looks")  # what a run records of its settings and selection besides options of the command
# That the scores of a run can be of, in this order.
KNOWN_LOOKS = (LOOKS[:1], LOOKS[:2], LOOKS, with_half(LOOKS[:2]), with_half(LOOKS))


def scan_run(
    scanner: Scanner,
    store: Store,
    paths: Iterable[str | os.PathLike[str]],
    selection: Selection | None = None,
    stop: Callable[[], bool] = lambda: False,
    record: Callable[[Result], None] = lambda _: None,
    present: Iterable[str | os.PathLike[str]] | None = None,
) -> Iterator[Result]:
    """Judge what the run does not hold yet and yield each result once it is stored, batch by batch.

    stop: asked before each file; once it says yes, what was begun is finished and stored. Bytes that are stored already are
    not judged again, whatever file holds them. record: called with each result before it is stored, as in an audit log: after a
    crash it may have one that is judged again, and lacks none. present: which of the paths to look into now, if not all are there;
    the run is not finished before the others were looked into, and no sample. Raises `SetupError` when the run was made with
    another model, policy, setting or selection, or cannot be written.
    """
    roots = [os.path.abspath(path) for path in paths]
    chosen = selection or Selection()
    _begin(store, scanner, roots, chosen)  # before anything is asked of the results, or written
    listed = roots if present is None else [os.path.abspath(path) for path in present]
    if chosen.sample and listed != roots:
        raise SetupError("a sample is drawn of all paths, and some are missing; scan again once they are there")
    return _scan_missing(scanner, store, listed, chosen, stop, record, whole=listed == roots)


def _scan_missing(
    scanner: Scanner,
    store: Store,
    roots: list[str],
    chosen: Selection,
    stop: Callable[[], bool],
    record: Callable[[Result], None],
    whole: bool,
) -> Iterator[Result]:
    listed: deque[Seen] = deque()
    stopped = False

    def missing() -> Iterator[Path | Member]:
        nonlocal stopped
        for item in source.find_images(roots, chosen):
            if stop():
                stopped = True
                return
            seen = _see(item)
            if not store.done(seen):
                listed.append(seen)
                yield item

    copies: list[tuple[Seen, Scored]] = []
    store.begin()
    # Closed here and not some time later: its workers ask the store, which the caller closes next.
    with closing(scanner.score(missing(), store.claim)) as scored:
        while batch := list(islice(scored, scanner.batch_size)):
            seen = [(listed.popleft(), one) for one in batch]
            fresh = [_judged(scanner.policy, *pair) for pair in seen if not pair[1].skipped]
            copies += [pair for pair in seen if pair[1].skipped]
            known, copies = _resolve(store, copies, fresh)
            for entry in (*fresh, *known):
                record(entry.result)
            store.write([*fresh, *known])
            yield from (entry.result for entry in (*fresh, *known))
    if whole and not (stopped or listed or copies):
        store.end({"finished": _now()}, forget=not (chosen.sample or chosen.max_files))


def decide_run(store: Store, policy: Policy) -> None:
    """Apply a policy to every stored score, in one transaction. Raises `PolicyError` when it is for another model."""
    if store.fact("model") is None:
        raise SetupError(f"run {store.path} is empty: nothing was scanned into it")
    spec = from_json(store.fact("model")["spec"])
    check_fit(policy, spec.identity, score_names(spec), store.fact("model")["sha256"])
    if store.looks not in KNOWN_LOOKS:
        raise SetupError(f"run {store.path} was scanned by a version that looks at pictures otherwise; scan again")
    if store.fact("settings").get("cascade"):
        raise SetupError(
            f"run {store.path} was scanned with --cascade: of what the first look settled it holds no scores that another "
            "policy could rely on; scan again with that policy"
        )
    if policy.zoom and "zoom" not in store.looks:
        raise SetupError(f"run {store.path} was scanned with a policy that does not zoom; scan again with policy {policy.name!r}")
    store.replace_verdicts(_decided(store, policy, spec), {"policy": _describe_policy(policy)})


def describe_run(scanner: Scanner, roots: list[str], selection: Selection) -> dict[str, Any]:
    """Say, as JSON, all that must stay the same for a run to be gone on with, and the versions at work."""
    session, limits = scanner.session, scanner.limits
    facts = {
        "model": {"name": session.spec.identity, "sha256": session.sha256, "spec": to_json(session.spec)},
        "settings": {
            "provider": session.provider,
            "frames": limits.frames,
            "max_pixels": limits.max_pixels,
            "thorough": scanner.thorough,
            "cascade": scanner.cascade,
            "looks": " ".join(scanner.looks),  # last: what changes it is named first
        },
        "selection": {"paths": roots, **asdict(selection)},
        "policy": _describe_policy(scanner.policy),
        "versions": [versions()],
    }
    as_read_back: dict[str, Any] = json.loads(json.dumps(facts))
    return as_read_back


def refuse_changes(run: object, stored: Mapping[str, Any], facts: Mapping[str, Any], other_policy: str = "") -> None:
    """Raise `SetupError` that names what differs between a run as it was begun and as it is to go on.

    other_policy: what to do instead when it is the policy that differs.
    """
    if stored["policy"] != facts["policy"]:
        raise SetupError(
            f"run {run} holds verdicts of policy {_policy_id(stored['policy'])}, not {_policy_id(facts['policy'])}; "
            f"{other_policy}to scan anew, name another run"
        )
    for part in ("model", "settings", "selection"):
        for name, value in facts[part].items():
            before = stored[part].get(name)
            if before != value:
                option = "" if part == "model" or name in NO_OPTIONS else f" (--{name.replace('_', '-')})"
                raise SetupError(
                    f"run {run} was made with {part} {name} {_short(before)}, not {_short(value)}{option}; "
                    "give the same as before to go on with it, or name another run"
                )


def _begin(store: Store, scanner: Scanner, roots: list[str], selection: Selection) -> None:
    """Describe a new run, or refuse to go on with one that was made differently."""
    facts = describe_run(scanner, roots, selection)
    if store.fact("model") is None:
        store.set_facts({**facts, "started": _now(), "finished": None})
        return
    stored = {part: store.fact(part) for part in ("policy", "model", "settings", "selection")}
    decide = f"to apply this one to the scores it holds: imgsafety decide {store.path} --policy …; to go on, scan with that one; "
    refuse_changes(store.path, stored, facts, decide)
    earlier = store.fact("versions") or []
    added = [one for one in facts["versions"] if one not in earlier]
    store.set_facts({"versions": earlier + added, "finished": None})


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _see(item: Path | Member) -> Seen:
    stamp = source.stamp_of(item)
    return Seen(os.fsencode(source.name_of(item) or ""), stamp.mark, stamp.size, stamp.mtime_ns)


def _judged(policy: Policy, seen: Seen, scored: Scored) -> Entry:
    result, deciding = judge(policy, scored)
    if scored.sha256 is None:
        return Entry(seen, result)
    rows = [[p for labels in one.heads.values() for p in labels.values()] for one in scored.scores]
    return Entry(seen, result, Opinion(scored.frames, np.array(rows, np.float32), deciding))


def _resolve(
    store: Store, copies: Sequence[tuple[Seen, Scored]], fresh: Sequence[Entry]
) -> tuple[list[Entry], list[tuple[Seen, Scored]]]:
    """Give copies the result of their original; one whose original is still in work waits for it."""
    results = {entry.result.sha256: entry.result for entry in fresh}
    known, waiting = [], []
    for seen, scored in copies:
        found = results.get(scored.sha256) or store.find(scored.sha256 or "")
        if found is None:
            waiting.append((seen, scored))
        else:
            known.append(Entry(seen, replace(found, path=scored.path)))
    return known, waiting


def _decided(store: Store, policy: Policy, spec: ModelSpec) -> Iterator[tuple[int, Result, int | None]]:
    after, looks = 0, store.looks
    while batch := store.pictures(after, DECIDE_BATCH):
        for id_, sha256, error, opinion in batch:
            outputs = split_columns(opinion.scores, store.heads)
            scores = tuple(read_out(spec, outputs))
            scored = Scored(None, sha256, opinion.frames, scores, None if scores else error, looks_taken=looks)
            result, deciding = judge(policy, scored)
            yield id_, result, deciding
        after = batch[-1][0]


def _describe_policy(policy: Policy) -> dict[str, Any]:
    tables = {"cascade": policy.cascade, "zoom": policy.zoom, "thorough": policy.thorough}
    rules = [asdict(rule) for rule in policy.rules]
    return {"name": policy.name, "model": policy.model, "sha256": policy.sha256, "rules": rules, **tables}


def _policy_id(policy: dict[str, Any]) -> str:
    return f"{policy['name']!r} ({policy['sha256'][:12]})"


def versions() -> dict[str, str]:
    """Return the versions of all that a verdict depends on."""
    import onnxruntime  # loaded by the session by now

    from imgsafety import __version__

    try:
        decoder = metadata.version("imagecodecs")
    except metadata.PackageNotFoundError:
        decoder = "none"
    return {
        "imgsafety": __version__,
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "imagecodecs": decoder,
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
