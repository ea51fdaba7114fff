"""The package's own exceptions. All are ValueErrors; their message says what to do."""


class CheckpointError(ValueError):
    """A checkpoint that is damaged, incomplete, foreign, or that does not fit."""


class TrainingError(ValueError):
    """A training that cannot continue."""


class MissingPackageError(ImportError, ValueError):
    """A package that is needed only for some inputs, and that is not installed."""


class UnfinishedCheckpoint(CheckpointError):
    """A checkpoint whose saving was interrupted before its manifest was written."""
