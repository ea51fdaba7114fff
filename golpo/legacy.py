"""Old names: reads what earlier versions of this project wrote. No other file knows them."""

SETTINGS = {"story_windows": "align_to_stories", "moving_windows": "shift_windows"}
MANIFEST = {"seal": "manifest_digest"}
OPTIMIZER_STATE = {"average": "momentum_buffer"}
EVALUATION = {"by_people": "reference", "told": "generated"}
# What a checkpoint's settings do not mention was so before the setting existed.
NEVER_SO = {"pack_stories": False, "trim_windows": False, "input_noise": 0.0}
BEFORE_SETTINGS_EXISTED = {
    "optimizer": "adamw",
    "shift_windows": False,
    "corpus_version": 1,
    **NEVER_SO,
}


def rename(entries: dict, names: dict) -> dict:
    """`entries` with the old names among its keys replaced by the new ones."""
    return {names.get(key, key): value for key, value in entries.items()}


def rename_settings(settings: dict) -> dict:
    """The settings that a checkpoint of any version names, with today's names."""
    return rename(settings, SETTINGS)


def upgrade_settings(settings: dict) -> dict:
    """The settings of a checkpoint of any version: those that it names, and those of its time."""
    return BEFORE_SETTINGS_EXISTED | rename_settings(settings)


def upgrade_manifest(manifest: dict) -> dict:
    """The manifest beside a checkpoint of any version, with today's names."""
    return rename(manifest, MANIFEST)


def upgrade_optimizer_state(optimizer_state: dict) -> dict:
    """The optimizer's state dict in a checkpoint of any version, with today's names."""
    states = optimizer_state.get("state", {})
    renamed = {number: rename(state, OPTIMIZER_STATE) for number, state in states.items()}
    return optimizer_state | {"state": renamed}


def upgrade_evaluation(figures: dict) -> dict:
    """The figures that `evaluate` of any version wrote as JSON, with today's names."""
    return rename(figures, EVALUATION)
