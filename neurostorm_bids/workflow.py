"""nipype runs the tasks: one node a run, results as small files, so that any plugin and any crash can be read."""

from __future__ import annotations

import json
import os
import pickle
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from neurostorm_bids.environment import runs_at_once, threads_per_run
from neurostorm_bids.errors import PluginUnusable, Stopped
from neurostorm_bids.settings import Settings


@dataclass(frozen=True)
class Outcome:
    """How one run ended; ``status`` is done, skipped (results were there) or failed."""

    run: str
    status: str
    seconds: float = 0.0
    n_clips: int = 0
    message: str = ""
    crash_file: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """A unit of work that crosses process borders: ``function`` is called with ``arguments``.

    ``function`` is named as ``module:name`` and returns an ``Outcome``; ``memory_mb`` is its estimated peak.
    """

    run: str
    function: str
    arguments: tuple[Any, ...]
    memory_mb: int


def execute(
    tasks: Sequence[Task], settings: Settings, folder: Path, announce: Callable[[Outcome], None]
) -> list[Outcome]:
    """Run every task under nipype and return their outcomes in order.

    Parameters
    ----------
    tasks : sequence of Task
    settings : Settings
        Resource limits, plugin and what to do after a failure.
    folder : Path
        Scratch folder of this call.
    announce : callable
        Called with each outcome as it comes in.
    """
    plugin = _plugin(settings, len(tasks))
    files = [_store(task, folder / "tasks" / f"{number:06d}") for number, task in enumerate(tasks)]
    fault = _run_nodes(list(zip(tasks, files, strict=True)), settings, folder, announce, plugin)
    faults = dict.fromkeys(files, fault)
    lost = [(task, file) for task, file in zip(tasks, files, strict=True) if not _outcome_file(file).exists()]
    if lost and not settings.stop_on_first_crash and settings.nipype_plugin_file is None:
        # a worker that the system kills takes the pool with it: alone, each of the rest shows whether it was the one
        for task, file in lost:
            faults[file] = _run_nodes([(task, file)], settings, folder, announce, _pool(settings))
    for task, file in lost:
        if not _outcome_file(file).exists():
            announce(_outcome(task, file, faults[file]))
    return [_outcome(task, file, faults[file]) for task, file in zip(tasks, files, strict=True)]


def perform(path: str, *, strict: bool = False) -> str:
    """Entry point of a node: run the stored task and store its outcome beside it."""
    file = Path(path)
    task: Task = pickle.loads(file.read_bytes())  # written by execute() of this very call
    module, _, name = task.function.partition(":")
    function = getattr(__import__(module, fromlist=[name]), name)
    outcome: Outcome = function(*task.arguments)
    partial = _outcome_file(file).with_suffix(".part")
    partial.write_text(json.dumps(asdict(outcome)))
    partial.replace(_outcome_file(file))
    if strict and outcome.status == "failed":
        raise RuntimeError(outcome.message)
    return str(_outcome_file(file))


def _store(task: Task, stem: Path) -> Path:
    stem.parent.mkdir(parents=True, exist_ok=True)
    file = stem.with_suffix(".pkl")
    file.write_bytes(pickle.dumps(task))
    return file


def _outcome_file(file: Path) -> Path:
    return file.with_suffix(".json")


def _outcome(task: Task, file: Path, fault: str = "") -> Outcome:
    if not _outcome_file(file).exists():
        return Outcome(task.run, "failed", message=f"{task.run}: {_why_lost(task, file, fault)}")
    content = json.loads(_outcome_file(file).read_text())
    return Outcome(**{**content, "warnings": tuple(content["warnings"])})


def _why_lost(task: Task, file: Path, fault: str) -> str:
    if fault:
        return (
            f"{file.parent.parent}: the work folder cannot be used ({fault}). Free space or quota, or name another "
            "--work-dir, then run again."
        )
    return (
        "the worker ended without a result. It was killed (out of memory?) or never started. "
        f"Give it more memory than about {task.memory_mb} MB, or fewer runs at once (--nprocs, --low-mem)."
    )


def _node_function(task: str, strict: bool) -> str:
    # nipype ships the source of this function to its workers: it must import what it needs
    from neurostorm_bids.workflow import perform

    return perform(task, strict=strict)


def _run_nodes(pairs, settings: Settings, folder: Path, announce, plugin: dict[str, Any]) -> str:
    """Run some tasks; returns what the work folder refused, in a few words, or nothing."""
    try:
        _configure_nipype(settings, folder)
    except OSError as error:
        return str(error)
    from nipype import Function, Node, Workflow

    workflow = Workflow(name="neurostorm", base_dir=str(folder / "nipype"))
    files = {}
    for task, file in pairs:
        node = Node(
            Function(["task", "strict"], ["outcome"], _node_function),
            name=re.sub(r"\W", "_", f"{file.stem}_{task.run}"),
            n_procs=threads_per_run(settings),
            mem_gb=task.memory_mb / 1024,
        )
        node.inputs.task, node.inputs.strict = str(file), settings.stop_on_first_crash
        files[node.name] = (task, file)
        workflow.add_nodes([node])
    plugin["plugin_args"]["status_callback"] = _reporter(files, announce)
    if settings.write_graph:
        _write_graph(workflow, folder)
    return _run_to_the_end(workflow, plugin)


def _write_graph(workflow, folder: Path) -> None:
    try:
        workflow.write_graph(str(folder / "graph.dot"), graph2use="flat", format="svg", simple_form=True)
    except OSError:  # nipype writes the .dot file first, then asks graphviz for a picture
        print(
            f"warning: no picture of the graph without graphviz' dot; the graph itself is in {folder}", file=sys.stderr
        )


def _run_to_the_end(workflow, plugin: dict[str, Any]) -> str:
    from concurrent.futures.process import BrokenProcessPool

    from nipype.pipeline.engine.nodes import NodeExecutionError

    if plugin["plugin"] == "MultiProc":
        from neurostorm_bids.multiproc import SurvivingMultiProc

        plugin = {"plugin": SurvivingMultiProc(plugin["plugin_args"])}
    try:
        workflow.run(**plugin)
    except (Stopped, KeyboardInterrupt):
        if not isinstance(plugin["plugin"], str):
            plugin["plugin"].stop()
        raise
    except (BrokenProcessPool, NodeExecutionError, RuntimeError, OSError) as error:
        # tasks without an outcome file are reported by name by execute(); nipype's own text would bury that
        found = re.findall(r"^\s*\w*Error: (\[Errno .+)$", f"{error.__cause__}\n{error}", re.MULTILINE)
        return str(error) if isinstance(error, OSError) else (found or [""])[-1]
    return ""


def _reporter(files: dict[str, tuple[Task, Path]], announce: Callable[[Outcome], None]):
    def report(node, status: str) -> None:
        task, file = files.get(node.name, (None, None))
        if status in ("end", "exception") and task is not None and _outcome_file(file).exists():
            announce(_outcome(task, file))

    return report


def _configure_nipype(settings: Settings, folder: Path) -> None:
    from nipype import config, logging

    level = "INFO" if settings.debug else "CRITICAL"
    config.update_config(
        {
            "logging": {"workflow_level": level, "utils_level": level, "interface_level": level},
            "execution": {
                "crashdump_dir": str(folder / "crash"),
                "crashfile_format": "txt",
                "stop_on_first_crash": str(settings.stop_on_first_crash).lower(),
                "poll_sleep_duration": "0.05",
                "check_version": "false",
            },
            "monitoring": {
                "enabled": str(settings.resource_monitor).lower(),
                "summary_file": str(folder / "usage.json"),
            },
        }
    )
    if settings.resource_monitor:
        config.enable_resource_monitor()
    (folder / "crash").mkdir(parents=True, exist_ok=True)
    logging.update_logging(config)


def _plugin(settings: Settings, n_tasks: int) -> dict[str, Any]:
    if settings.nipype_plugin_file is not None:
        return _plugin_file(settings.nipype_plugin_file)
    if settings.debug or n_tasks == 1:
        return {"plugin": "Linear", "plugin_args": {}}
    return _pool(settings)


def _pool(settings: Settings) -> dict[str, Any]:
    return {
        "plugin": "MultiProc",
        "plugin_args": {
            "n_procs": runs_at_once(settings) * threads_per_run(settings),
            "memory_gb": memory_limit_mb(settings) / 1024,
            "raise_insufficient": False,
            "mp_context": "forkserver",  # a forked child hangs in its first OpenMP region
        },
    }


def memory_limit_mb(settings: Settings) -> int:
    """``--mem``, else nine tenths of what the machine has available now."""
    if settings.mem_mb:
        return settings.mem_mb
    import psutil

    return int(0.9 * psutil.virtual_memory().available / 2**20)


def _plugin_file(path: Path) -> dict[str, Any]:
    import yaml
    from nipype.pipeline import plugins

    os.environ.setdefault("LOGNAME", "neurostorm")  # nipype's SLURM plugin reads it; batch nodes may lack it
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise _plugin_fault(path, f"cannot be read: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("plugin"), str):
        raise _plugin_fault(path, "names no plugin")
    arguments = content.get("plugin_args") or {}
    if not isinstance(arguments, dict):
        raise _plugin_fault(path, "has plugin_args that are no table")
    if not hasattr(plugins, f"{content['plugin']}Plugin"):
        raise _plugin_fault(path, f"nipype has no plugin {content['plugin'][:100]!r}")
    return {"plugin": content["plugin"], "plugin_args": arguments}


def _plugin_fault(path: Path, fault: str) -> PluginUnusable:
    return PluginUnusable(
        fault,
        file=path,
        expected="plugin: NAME and plugin_args: {...}, as nipype knows them",
        remedy="Mend it or leave out --use-plugin",
    )
