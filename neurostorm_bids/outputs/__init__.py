"""Results as BIDS derivatives: names, tables, sidecars, the dataset's own files, and which results exist already.

A recipe calls, in this order::

    write_dataset_files(output_dir, sources, models)                # once a call, and again at its end
    files = RunFiles.of(output_dir, run.entities, template=grid.template, model_name=model.name)
    if outputs_complete([files.embedding, files.predictions], key): ...   # nothing to compute
    write_embedding(output_dir, run_record, model_record, clip_rows, embedding)
    write_predictions(output_dir, run_record, model_record, target_rows)
    write_quality(output_dir, run_record, figures)
    write_bold(output_dir, run_record, volumes, n_frames=n)

Every file is written beside its place and renamed; every sidecar follows its data and makes it complete.
"""

from neurostorm_bids.outputs.atomic import replacing, write_json, write_text
from neurostorm_bids.outputs.dataset import (
    citation_text,
    name_datasets,
    write_dataset_files,
)
from neurostorm_bids.outputs.names import RunFiles, check_model_names, desc_label, sidecar_of
from neurostorm_bids.outputs.records import ClipRow, ModelRecord, QualityFigure, RunRecord, TargetRow
from neurostorm_bids.outputs.resume import is_complete, is_whole, outputs_complete, read_sidecar
from neurostorm_bids.outputs.tables import read_tsv
from neurostorm_bids.outputs.writers import write_bold, write_embedding, write_predictions, write_quality

__all__ = [
    "ClipRow",
    "ModelRecord",
    "QualityFigure",
    "RunFiles",
    "RunRecord",
    "TargetRow",
    "check_model_names",
    "citation_text",
    "desc_label",
    "is_complete",
    "is_whole",
    "name_datasets",
    "outputs_complete",
    "read_sidecar",
    "read_tsv",
    "replacing",
    "sidecar_of",
    "write_bold",
    "write_dataset_files",
    "write_embedding",
    "write_json",
    "write_predictions",
    "write_quality",
    "write_text",
]
