"""One class a cause: every error names the file, the fault, the expectation and the remedy.

The command line prints an error as one paragraph and exits with its ``exit_code``
(codes of the BIDS execution specification, see ``docs/reference``).
"""

from __future__ import annotations

from pathlib import Path

OK = 0
SOME_RUNS_FAILED = 1
USAGE = 2
INVALID_BIDS = 16
UNKNOWN_LEVEL = 17
NOTHING_SELECTED = 18
NO_USABLE_RUN = 65
NO_INPUT = 66
CANNOT_CREATE_OUTPUT = 73
IO_ERROR = 74
TRY_AGAIN = 75


class NeurostormError(Exception):
    """What failed, in four parts.

    Parameters
    ----------
    fault : str
        What is wrong, in a clause ("the header gives TR 0 s").
    file : Path or str, optional
        The file (or option) that is at fault.
    expected : str, optional
        What was expected instead ("0.1 to 20 s").
    remedy : str, optional
        What the user can do ("state RepetitionTime in the JSON sidecar").
    """

    exit_code = SOME_RUNS_FAILED

    def __init__(
        self, fault: str, *, file: Path | str | None = None, expected: str | None = None, remedy: str | None = None
    ) -> None:
        self.fault, self.file, self.expected, self.remedy = fault, file, expected, remedy
        super().__init__(self.paragraph())

    def paragraph(self) -> str:
        """The error as one paragraph: file, fault, expectation, remedy."""
        parts = [f"{self.file}: {self.fault}" if self.file is not None else self.fault]
        if self.expected:
            parts.append(f"expected {self.expected}")
        if self.remedy:
            parts.append(self.remedy)
        text = ". ".join(part.rstrip(".") for part in parts) + "."
        return text.encode("utf-8", "backslashreplace").decode("utf-8")  # names of files need not be text

    def about(self, file: Path | str) -> NeurostormError:
        """The same error with the file it concerns, where it names none yet."""
        if self.file is not None:
            return self
        return _rebuild(type(self), self.fault, file, self.expected, self.remedy)

    def __reduce__(self):
        # keyword-only arguments do not survive the default pickling, and errors cross process borders here
        return _rebuild, (type(self), self.fault, self.file, self.expected, self.remedy)


def _rebuild(cls: type[NeurostormError], fault: str, file, expected, remedy) -> NeurostormError:
    return cls(fault, file=file, expected=expected, remedy=remedy)


class Stopped(BaseException):
    """Ctrl-C or SIGTERM: what happened, and the exit code; nothing between here and there takes it for a failure."""


# --- command line -----------------------------------------------------------------------------------------------


class UsageError(NeurostormError):
    """An option, or a combination of options, that makes no sense."""

    exit_code = USAGE


class UnknownLevel(NeurostormError):
    """The analysis level is neither participant nor group."""

    exit_code = UNKNOWN_LEVEL


class ConfigUnreadable(NeurostormError):
    """A configuration file that cannot be read, or that names a setting that does not exist."""

    exit_code = USAGE


class PluginUnusable(NeurostormError):
    """A nipype plugin file that cannot be read or names no plugin."""

    exit_code = USAGE


class OutputNotWritable(NeurostormError):
    """The output or work folder cannot be created or written."""

    exit_code = CANNOT_CREATE_OUTPUT


# --- outputs ----------------------------------------------------------------------------------------------------


class OutputWriteFailed(NeurostormError):
    """Writing an output file failed half-way; nothing of it was left."""

    exit_code = IO_ERROR


class NonFiniteOutput(NeurostormError):
    """A result is infinite, or a sidecar would hold NaN: never written."""


class ModelNamesCollide(NeurostormError):
    """Two models would write the same files."""

    exit_code = USAGE


class TableUnreadable(NeurostormError):
    """A table of this app's own outputs, or its sidecar, cannot be read."""

    exit_code = IO_ERROR


class ModelsMixed(NeurostormError):
    """Results of one model name come from different weights and cannot be pooled."""


class NothingToAggregate(NeurostormError):
    """The output folder holds no result that the selection names."""

    exit_code = NO_INPUT


class NothingToReport(NeurostormError):
    """An output folder without results of the participants that a report was asked for."""

    exit_code = NO_INPUT


# --- model files ------------------------------------------------------------------------------------------------


class ModelError(NeurostormError):
    """A model that cannot be found, read or trusted."""

    exit_code = NO_INPUT


class NoModelGiven(ModelError):
    """No model was named and none (or more than one) is installed."""


class ModelNotFound(ModelError):
    """The named model is neither a file, a model folder nor a name that resolves to one."""


class ModelUnreachable(ModelError):
    """A registered model lies on the hub, and the hub cannot (or must not) be reached."""


class ModelFileUnreadable(ModelError):
    """A model file that is truncated, damaged or of another format."""

    exit_code = IO_ERROR


class ModelFileTooLarge(ModelError):
    """A model file that declares more than a model of this kind can need."""


class ModelFolderInvalid(ModelError):
    """A model.json with a missing, unknown or impossible entry."""


class ModelFolderEdited(ModelError):
    """A model folder whose hashes do not match: a file was changed after it was written."""


class ModelFolderExists(ModelError):
    """A model folder would be overwritten."""

    exit_code = CANNOT_CREATE_OUTPUT


class UnsafeCheckpoint(ModelError):
    """A checkpoint that holds objects which are not data; nothing in it was executed."""


class ArchitectureUnstated(ModelError):
    """A checkpoint that does not say how its windows are laid out; no shape would show a wrong guess."""


class ArchitectureContradicted(ModelError):
    """What was stated on the command line and what the checkpoint says differ."""


class WeightsMismatch(ModelError):
    """Weights whose names or shapes are not those of the architecture."""


class WeightsNotFinite(ModelError):
    """Weights with NaN or infinity."""


class TargetUnstated(ModelError):
    """A checkpoint's head that could be one of several things."""


class UnsupportedCheckpoint(ModelError):
    """A checkpoint of a kind that this program does not compute."""


class PackMismatch(ModelError):
    """A pack for another backbone, or packs that predict the same target."""


class ModelUntrained(ModelError):
    """Predictions were asked of a model that nobody trained."""


class SelfTestFailed(ModelError):
    """A model whose embedding of its own test input is not the one recorded with it."""


class TargetScalerInvalid(UsageError):
    """A scaler for a target that does not exist, is not a regression, or has a scaler already."""


class DeviceUnavailable(UsageError):
    """The device asked for does not exist here."""


class BackendUnavailable(UsageError):
    """The scan backend asked for is not installed, or does not run on the device."""


class ClipsInvalid(ModelError):
    """Clips of another shape than the model's, or with NaN or infinity."""

    exit_code = SOME_RUNS_FAILED


# --- space: images, transforms, routes --------------------------------------------------------------------------


class SpaceError(NeurostormError):
    """A run that cannot be brought to the model's grid; the other runs go on."""


class ImageUnreadable(SpaceError):
    """A file that is missing, truncated, corrupt, or no NIfTI."""


class NotABoldSeries(SpaceError):
    """An image that is not 4D."""


class SurfaceData(SpaceError):
    """CIFTI or another surface file; the model reads volumes."""


class DataTypeUnsupported(SpaceError):
    """Complex, RGB and other voxels that are no real numbers."""


class AffineMissing(SpaceError):
    """A header that says nothing about the position of its voxels."""


class AffineContradictory(SpaceError):
    """A header whose statements on the position of its voxels exclude each other."""


class RepetitionTimeUnusable(SpaceError):
    """No repetition time, or one that no scanner has."""


class NonFiniteVoxels(SpaceError):
    """NaN or infinity inside the brain."""


class ConstantSeries(SpaceError):
    """A series without any change."""


class DemeanedSeries(SpaceError):
    """A series whose mean was removed: the model's normalisation would be meaningless."""


class MaskUnusable(SpaceError):
    """A brain mask that is empty, or that lies on another grid than its run."""


class NoRoute(SpaceError):
    """No image of the run can be brought to the model's template."""


class TransformUnreadable(SpaceError):
    """A transform file that is missing, broken, or of a kind that is not supported."""


class TransformUnavailable(SpaceError):
    """A template transform that is not in the cache and cannot be fetched."""


class CoverageTooLow(SpaceError):
    """A run that covers too little of the template brain."""


# --- inputs -----------------------------------------------------------------------------------------------------


class DatasetMissing(NeurostormError):
    """The input folder does not exist, or holds no dataset that can be read."""

    exit_code = NO_INPUT


class DatasetAmbiguous(NeurostormError):
    """Several derivative datasets could be meant, and the user named none."""

    exit_code = USAGE


class DatasetInvalid(NeurostormError):
    """The raw dataset is no valid BIDS."""

    exit_code = INVALID_BIDS


class ValidatorMissing(NeurostormError):
    """The BIDS validator cannot be started."""

    exit_code = USAGE


class FilterUnusable(NeurostormError):
    """A ``--bids-filter-file`` that cannot be read or names an entity that does not exist."""

    exit_code = USAGE


class DatabaseUnusable(NeurostormError):
    """A ``--bids-database-dir`` that lies inside the input, or whose index cannot be read."""

    exit_code = USAGE


class NothingSelected(NeurostormError):
    """Labels and filters leave no run."""

    exit_code = NOTHING_SELECTED


class NoUsableRun(NeurostormError):
    """Runs were found and none of them can be used: all their faults in one message."""

    exit_code = NO_USABLE_RUN


class RunUnusable(NeurostormError):
    """One run that cannot be used: no volume, several volumes, or volumes that cannot be read."""


class FileNotFetched(NeurostormError):
    """A file of a DataLad dataset whose content is not on this machine."""


class FileEmpty(NeurostormError):
    """A file of 0 bytes."""


class FileUnreadable(NeurostormError):
    """A file that is missing, is no regular file, or may not be read."""


class SidecarUnreadable(NeurostormError):
    """A JSON file that is no JSON."""


class SidecarInvalid(NeurostormError):
    """A JSON sidecar whose values make no sense."""


class ConfoundsUnusable(NeurostormError):
    """A confounds table that cannot be read, or whose rows are not the run's volumes."""


class ParticipantsUnusable(NeurostormError):
    """A ``participants.tsv`` that cannot be read, or that names a participant twice or not at all."""

    exit_code = NO_INPUT


# --- clips: time, motion, confounds ------------------------------------------------------------------------------


class ClipError(NeurostormError):
    """A run that gives no clip; the other runs go on."""


class TooFewFrames(ClipError):
    """A run that is shorter than one clip."""


class EveryClipMoved(ClipError):
    """A run without a clip at or below the motion threshold."""


class MotionUnknown(ClipError):
    """A motion threshold for a run that has no framewise displacement."""


# --- training: targets, splits, clip store ------------------------------------------------------------------------


class TrainingError(NeurostormError):
    """A training that cannot begin, or cannot go on."""

    exit_code = USAGE


class SplitImpossible(TrainingError):
    """More folds, classes or groups than there are participants to fill them."""


class SplitsUnusable(TrainingError):
    """A ``splits.tsv`` that cannot be read, or that does not say what becomes of each participant."""


class SplitsOverlap(TrainingError):
    """A participant, or a family, on two sides of a split."""


class TargetUnusable(TrainingError):
    """A target that is not there, or that cannot be learnt as it is."""


class ClipStoreUnreadable(TrainingError):
    """A stored run that is damaged, or of another format; it is made again from its image."""

    exit_code = IO_ERROR


class TrainingDiverged(TrainingError):
    """A loss that is NaN or infinite."""

    exit_code = SOME_RUNS_FAILED


class OutOfMemory(TrainingError):
    """A batch that does not fit in memory."""

    exit_code = SOME_RUNS_FAILED


class ResumeImpossible(TrainingError):
    """A point of resume that is damaged, or of another training."""


class BackboneChanged(TrainingError):
    """A frozen backbone that is not what it was; nothing is written."""

    exit_code = SOME_RUNS_FAILED


class AtlasUnusable(TrainingError):
    """An atlas that cannot be read, or that has no region where the model looks."""


# --- evaluation ---------------------------------------------------------------------------------------------------


class EvaluationError(NeurostormError):
    """An evaluation that cannot begin."""

    exit_code = USAGE


class EvaluationImpossible(EvaluationError):
    """Too few participants, or nothing to compare."""


class NothingToEvaluate(EvaluationError):
    """The output folder holds no embedding of the selected runs."""

    exit_code = NO_INPUT


class LeakageFound(EvaluationError):
    """Something about the test participants may have been known in training."""


# --- dataset presets --------------------------------------------------------------------------------------------


class PresetUnusable(NeurostormError):
    """A dataset preset that does not exist, or that says more than was verified."""

    exit_code = USAGE


# --- attribution ------------------------------------------------------------------------------------------------


class AttributionImpossible(UsageError):
    """A map is asked for that no model at hand can give."""
