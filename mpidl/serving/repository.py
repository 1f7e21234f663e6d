"""The models of a server: versions are loaded beside those that serve, and swapped when ready."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mpidl.errors import MpidlError, notice, wrap
from mpidl.generation.text import BYTES, Coder
from mpidl.security.journal import Task
from mpidl.serving.batcher import Batcher, Worker
from mpidl.serving.dispatch import Dispatcher, ModelLane
from mpidl.serving.errors import NotFound, ServingError, Unavailable
from mpidl.serving.generation import Generation
from mpidl.serving.messages import Head, Kind, Load, Loaded, pack, pack_object, unpack_object
from mpidl.serving.settings import VERSION, ModelSettings, Settings
from mpidl.serving.stats import Statistics
from mpidl.train import checkpoint as ckpt
from mpidl.train.admission import Gate

READY, LOADING, UNAVAILABLE = "READY", "LOADING", "UNAVAILABLE"


@dataclass(eq=False)
class Version:
    """A version that serves.

    Attributes:
        model: Name of the model.
        number: Its number, as clients write it.
        settings: Of the model.
        identity: Of the files that it was loaded from.
        load: How a rank opens it.
        about: Its inputs and outputs.
        lane: Its way to the ranks.
        generation: Its texts; None: it writes none.
        coder: Between texts and tokens; None: the model has no texts, or its tokens are unknown.
        stats: What it has done.
        users: Requests that wait or are computed.
    """

    model: str
    number: str
    settings: ModelSettings
    identity: tuple[Any, ...]
    load: Load
    about: Loaded
    lane: ModelLane
    generation: Generation | None = None
    coder: Coder | None = None
    stats: Statistics = field(default_factory=Statistics)
    users: int = 0


def find_versions(settings: ModelSettings, folder: str) -> dict[str, Path]:
    """The versions of a model that its policy chooses: number -> run folder or checkpoint.

    Args:
        settings: Of the model.
        folder: That paths are relative to.

    Raises:
        MpidlError: There is none.
    """
    root = Path(folder)
    if settings.versions:
        found = {number: root / path for number, path in settings.versions.items()}
    else:
        path = root / settings.path
        entries = list(path.iterdir()) if path.is_dir() else []
        found = {p.stem: p for p in entries if VERSION.fullmatch(p.stem)} or {"1": path}
    order = sorted(found, key=int, reverse=True)
    if settings.version_policy == "latest":
        order = order[: settings.num_versions]
    elif settings.version_policy == "specific":
        order = [number for number in order if int(number) in settings.specific]
    if not order:
        raise NotFound("none of its versions is there that version_policy names")
    return {number: found[number] for number in order}


def identify(path: Path, settings: ModelSettings) -> tuple[Any, ...]:
    """The checkpoint that a path means now, and what tells it from a later one."""
    file = ckpt.find(path)
    stat = file.stat()
    return (str(file.absolute()), stat.st_ino, stat.st_size, stat.st_mtime_ns, settings)


class Repository:
    """The models, by name and version.

    Args:
        settings: Read anew whenever a model is loaded.
        dispatcher: To the ranks.
        backend: Where ranks compute.
        audit: Told what is loaded, refused and answered.
    """

    def __init__(
        self,
        settings: Callable[[], Settings],
        dispatcher: Dispatcher,
        backend: str,
        audit: Task | None = None,
    ) -> None:
        self._audit = audit or Task()
        self._told: dict[Version, tuple[int, int]] = {}  # answered and failed, as was told last
        self._read = settings
        self.settings = settings()
        self._dispatcher = dispatcher
        self._backend = backend
        self._models: dict[str, dict[str, Version]] = {}
        self._reasons: dict[str, tuple[str, str]] = {}  # name -> state, reason
        self._handles = itertools.count(1)
        self._lock = asyncio.Lock()
        dispatcher.on_lost.append(self._on_lost)
        self._tasks: set[asyncio.Task[None]] = set()

    # --- finding ---
    def find(self, name: str, version: str = "") -> Version:
        """A version that serves; the latest where none is named.

        Raises:
            NotFound: The server has no such model.
            Unavailable: It is not loaded.
        """
        versions = self._models.get(name)
        if not versions:
            if name in self.settings.models:
                raise Unavailable(f"model {name!r} is not ready", remedy="load it first")
            raise NotFound(f"Request for unknown model: {name[:128]!r} is not found")
        if not version:
            return versions[max(versions, key=int)]
        if version not in versions:
            what = f"Request for unknown model: {name!r} version {version[:20]!r} is not found"
            raise NotFound(what)
        return versions[version]

    def versions(self, name: str = "", version: str = "") -> list[Version]:
        """All versions that serve, of one model or of all.

        Raises:
            ServingError: See `find`.
        """
        if version:
            return [self.find(name, version)]
        if name:
            self.find(name)
            return list(self._models[name].values())
        return [version for versions in self._models.values() for version in versions.values()]

    @property
    def ready(self) -> bool:
        """Whether every model of the settings serves."""
        return all(self._models.get(name) for name in self.settings.models)

    def index(self, *, ready: bool = False) -> Iterator[dict[str, str]]:
        """All models as the protocol lists them.

        Args:
            ready: Only those that serve.
        """
        for name in self.settings.models:
            versions = self._models.get(name, {})
            for number in versions:
                yield {"name": name, "version": number, "state": READY, "reason": ""}
            if not versions and not ready:
                state, reason = self._reasons.get(name, (UNAVAILABLE, ""))
                yield {"name": name, "version": "", "state": state, "reason": reason}

    # --- loading ---
    async def load(self, name: str) -> None:
        """Load what is new of a model, and drop what its policy does not choose any more.

        Raises:
            ServingError: It cannot be loaded; what served before goes on.
        """
        async with self._lock:
            try:
                self.settings = self._read()
                if name not in self.settings.models:
                    raise NotFound(f"failed to load {name[:128]!r}, no such model in the settings")
                self._reasons[name] = (LOADING, "")
                await self._load(name, self.settings.models[name])
            except (MpidlError, OSError) as error:
                known = wrap(error, f"loading {name!r}")
                self._audit.add(
                    "model.refused", object=name[:128], decision="denied", error=known.what[:500]
                )
                if name in self.settings.models:
                    self._reasons[name] = (UNAVAILABLE, known.what[:500])
                if isinstance(error, ServingError):
                    raise
                raise Unavailable(
                    f"failed to load {name!r}: {known.what}",
                    where=known.where,
                    remedy=known.remedy,
                ) from error

    async def _load(self, name: str, settings: ModelSettings) -> None:
        paths = find_versions(settings, self.settings.folder)
        before = self._models.get(name, {})
        now: dict[str, Version] = {}
        for number, path in paths.items():
            identity = identify(path, settings)
            old = before.get(number)
            if old is not None and old.identity == identity:
                now[number] = old
            else:
                now[number] = await self._open(name, number, settings, identity)
        self._models[name] = dict(sorted(now.items(), key=lambda item: int(item[0])))
        for version in before.values():
            if version not in now.values():
                self._retire(version)

    async def _open(
        self, name: str, number: str, settings: ModelSettings, identity: tuple[Any, ...]
    ) -> Version:
        """Open a version on its ranks, one after the other: the others go on meanwhile."""
        handle = next(self._handles)
        outputs, size = settings.outputs, settings.max_batch_size
        cache = settings.cache_tokens, settings.cache
        load = Load(identity[0], outputs, size, self._backend, *cache)
        workers = self._choose(settings.instances)
        with ExitStack() as stack:  # other nodes may not have the site's settings
            signed = Gate.of_site().file(Path(load.path))
            await asyncio.to_thread(stack.enter_context, signed)
            about = await self._open_on(workers[0], handle, load)
            for worker in workers[1:]:
                if await self._open_on(worker, handle, load) != about:
                    raise Unavailable(f"the files of {name!r} changed while they were loaded")
        await asyncio.to_thread(
            self._audit.add_file, "model.loaded", load.path, model=name, version=number
        )
        stats, dispatcher = Statistics(), self._dispatcher
        coder = await asyncio.to_thread(self._open_coder, name, settings, about)
        lane = ModelLane(handle, Batcher(settings), workers, outputs=about.outputs, stats=stats)
        dispatcher.scheduler.add(lane)
        version = Version(name, number, settings, identity, load, about, lane, None, coder, stats)
        if about.context:
            version.generation = Generation(dispatcher, handle, settings, stats)
            for worker in workers:
                version.generation.add(worker)
        return version

    async def _open_on(self, worker: Worker, handle: int, load: Load) -> Loaded:
        """Let a rank open a version."""
        body = await self._dispatcher.call(
            worker, lambda number: pack_object(Head(Kind.LOAD, handle, number), load)
        )
        return unpack_object(body, Loaded)

    def _open_coder(self, name: str, settings: ModelSettings, about: Loaded) -> Coder | None:
        if not about.context:
            if settings.tokenizer:
                raise Unavailable(f"{name!r} has a tokenizer, but writes no texts")
            return None
        tokenizer = Path(self.settings.folder) / settings.tokenizer if settings.tokenizer else None
        if tokenizer is None and about.vocabulary != BYTES:
            return None  # tokens go in and out, texts cannot
        return Coder(about.vocabulary, tokenizer, setting=f"models.{name}.tokenizer")

    def tell_counts(self) -> None:
        """Tell the audit log how much was answered since it was told last."""
        for version in self.versions():
            self._tell(version)
        self._audit.journal.sign_head()

    def _tell(self, version: Version) -> None:
        stats = version.stats
        now = stats.success.count, stats.fail.count
        before = self._told.get(version, (0, 0))
        if now != before:
            self._told[version] = now
            self._audit.add(
                "serve.answered",
                object=version.model,
                version=version.number,
                answers=now[0] - before[0],
                refused=now[1] - before[1],
            )

    def _choose(self, instances: int) -> list[Worker]:
        """The ranks for a new version: those with fewest models."""
        alive = self._by_load()
        if not alive:
            raise Unavailable("all ranks are lost", remedy="start the server again")
        return alive[: instances or None]

    def _by_load(self) -> list[Worker]:
        """The ranks that are there, those with fewest models first."""
        alive = [worker for worker in self._dispatcher.workers if worker.alive]
        lanes = self._dispatcher.scheduler.lanes
        held = {worker.rank: sum(worker in lane.workers for lane in lanes) for worker in alive}
        return sorted(alive, key=lambda worker: held[worker.rank])

    # --- lost ranks ---
    def _on_lost(self) -> None:
        """A rank is lost: open its models on ranks that do not have them."""
        self._background(self._refill())

    async def _refill(self) -> None:
        async with self._lock:
            for version in self.versions():
                try:
                    await self._refill_version(version)
                except (MpidlError, OSError) as error:
                    notice(f"{version.model!r} cannot be opened on another rank: {error}", "error")

    async def _refill_version(self, version: Version) -> None:
        lane = version.lane
        while sum(worker.alive for worker in lane.workers) < version.settings.instances:
            others = [worker for worker in self._by_load() if worker not in lane.workers]
            if not others:
                return
            if await self._open_on(others[0], lane.handle, version.load) != version.about:
                raise Unavailable("its files have changed", remedy="load it again")
            lane.workers.append(others[0])
            if version.generation is not None:
                version.generation.add(others[0])

    # --- unloading ---
    async def unload(self, name: str) -> None:
        """Let a model take no new requests, and drop it when those that it has are answered.

        Raises:
            NotFound: The server has no such model.
        """
        async with self._lock:
            if name not in self.settings.models:
                raise NotFound(f"failed to unload {name[:128]!r}, no such model in the settings")
            self._reasons[name] = (UNAVAILABLE, "unloaded")
            for version in self._models.pop(name, {}).values():
                self._retire(version)

    def _retire(self, version: Version) -> None:
        self._background(self._drop(version))

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _drop(self, version: Version) -> None:
        await self.wait_idle([version])
        lane = version.lane
        self._tell(version)
        self._told.pop(version, None)
        self._audit.add("model.unloaded", object=version.model, version=version.number)
        self._dispatcher.scheduler.remove(lane)
        if version.generation is not None:
            version.generation.close()
        for worker in lane.workers:
            if worker.alive:
                try:
                    await self._dispatcher.call(
                        worker, lambda number: pack(Head(Kind.UNLOAD, lane.handle, number))
                    )
                except ServingError:
                    continue  # the rank is lost, and the model with it

    async def wait_idle(self, versions: list[Version]) -> None:
        """Wait until some versions have no requests any more."""
        idle = asyncio.Event()

        def look() -> None:
            if not any(version.users for version in versions):
                idle.set()

        look()
        self._dispatcher.on_idle.append(look)
        try:
            await idle.wait()
        finally:
            self._dispatcher.on_idle.remove(look)
