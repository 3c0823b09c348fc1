"""MODEL_CARD.md: what a model is, for people, made of its description."""

from __future__ import annotations

from neurostorm_bids.model.config import Target
from neurostorm_bids.model.description import INPUT_FIELDS, ModelDescription, input_to_json, provenance_of


def model_card(description: ModelDescription) -> str:
    """A card in Markdown: warning, summary, input with provenance, targets, architecture, source."""
    sections = [
        f"# {description.name}",
        description.summary or "No summary was given.",
        _warning(description),
        "## Input\n\n" + _input_table(description),
        "## Targets\n\n" + _targets(description),
        "## Architecture\n\n" + _architecture(description),
        f"## Source and licence\n\nSource: {description.source or 'not stated'}\n\n"
        f"Licence: {description.licence or 'not stated'}",
        "## Use\n\nA research tool. Not a medical device; predictions say nothing about a person's diagnosis.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _warning(description: ModelDescription) -> str:
    if not description.trained:
        return "> **Untrained.** The weights are those of a random start: embeddings mean nothing. For trying out only."
    assumed = [field for field in INPUT_FIELDS if provenance_of(description.input, field) == "assumed"]
    return f"> **Assumed, not stated by the model's authors:** {', '.join(assumed)}." if assumed else ""


def _input_table(description: ModelDescription) -> str:
    spec = description.input
    shown = {name: field["value"] for name, field in input_to_json(spec).items()}
    shape = " x ".join(map(str, spec.grid.shape))
    shown["grid"] = f"{spec.grid.template}, {shape}, affine {[list(row) for row in spec.grid.affine[:3]]}"
    rows = [f"| {name} | {value} | {provenance_of(spec, name)} |" for name, value in shown.items()]
    return "\n".join(["| | value | provenance |", "|---|---|---|", *rows])


def _targets(description: ModelDescription) -> str:
    lines = [f"- `{target.name}`: {_target(target)}{_calibration(target)}" for target in description.targets]
    return "\n".join(lines) or "None: embeddings only."


def _target(target: Target) -> str:
    if target.kind == "classification":
        return "classification: " + ", ".join(target.classes)
    if target.kind == "retrieval":
        return "retrieval vectors of unit length"
    if target.mean is None:
        return "regression, scaler unknown: values are in standard units unless --target-scaler states it"
    return f"regression in {target.unit or 'unstated units'} (offset {target.mean:g}, scale {target.std:g})"


def _calibration(target: Target) -> str:
    if not target.n_calibrated:
        return "" if target.kind == "retrieval" else "; not calibrated"
    by = f"on {target.n_calibrated} validation participants"
    if target.half_width is None:
        return f"; calibrated {by}, temperature {target.temperature:.3g}"
    return f"; 95 % interval of a run +- {target.half_width:.3g}, calibrated {by}"


def _architecture(description: ModelDescription) -> str:
    config = description.config
    stages = "-".join(map(str, config.depths))
    lines = [
        f"Shifted-window Mamba encoder, image {config.img_size}, patch {config.patch_size}, stages {stages},",
        f"{config.embed_dim} channels in the first, windows {config.first_window_size} then {config.window_size},",
        f"last stage {'one whole-grid window' if config.last_layer_full_MSA else 'windowed'}, "
        f"{config.prompt_len} prompt tokens a block.",
    ]
    if description.backbone is not None:
        lines.append(f"\nA pack over the backbone {description.backbone.name} ({description.backbone.sha256[:12]}).")
    return "\n".join(lines)
