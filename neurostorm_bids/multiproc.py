"""nipype's MultiProc, taught that a worker can be killed: as it comes, it waits for the lost result forever."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from nipype import config, logging
from nipype.pipeline.plugins.multiproc import MultiProcPlugin, process_initializer


class SurvivingMultiProc(MultiProcPlugin):
    """MultiProc that reports the nodes of a killed worker as failed and opens a new pool for the rest."""

    def __init__(self, plugin_args: dict[str, Any]) -> None:
        super().__init__(plugin_args=plugin_args)
        self.pool = self._new_pool()

    def _new_pool(self) -> ProcessPoolExecutor:
        level = config.get("logging", "workflow_level")
        return ProcessPoolExecutor(
            max_workers=self.processors,
            initializer=_prepare_worker,
            initargs=(str(Path.cwd()), level),
            mp_context=get_context(self.plugin_args.get("mp_context")),
        )

    def stop(self) -> None:
        """End the workers now, whatever they do: files appear whole or not at all, and the next call goes on."""
        for process in list((self.pool._processes or {}).values()):
            process.kill()
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _async_callback(self, args) -> None:
        # results are fetched by _get_result, which unlike a callback may raise
        return

    def _get_result(self, taskid):
        future = self._task_obj[taskid]
        return future.result() if future.done() else None

    def _submit_job(self, node, updatehash=False):
        try:
            return super()._submit_job(node, updatehash)
        except BrokenProcessPool:
            self.pool.shutdown(wait=False)
            self.pool = self._new_pool()
            return super()._submit_job(node, updatehash)

    def _report_crash(self, node, result=None):
        if result is not None and isinstance(result["traceback"], str):
            result["traceback"] = result["traceback"].splitlines(keepends=True)
        return super()._report_crash(node, result=result)


def _prepare_worker(folder: str, level: str) -> None:
    process_initializer(folder)
    config.update_config({"logging": dict.fromkeys(("workflow_level", "utils_level", "interface_level"), level)})
    logging.update_logging(config)
