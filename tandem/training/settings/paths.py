"""Where files are if nobody says: the documents' rules.

    <root>/processed_for_input/<model>/          INPUT_PROCESSED_DIR
    <root>/saved_dir_for_output/                 OUTPUT_SAVE_DIR
        saved_models/<model>/                    CKPT_SAVE_PATH
        saved_models/<model>/log/                LOG_SAVE_PATH
        plog/                                    ASCEND_PROCESS_LOG_PATH

The tokenizer lies beside the weights. Source: the training guides for AscendSpeed, tables of hyper-parameters.
"""

from __future__ import annotations

from pathlib import Path

from tandem.training.settings.values import Value, Values


def default_paths(values: Values, model: str, root: Path) -> Values:
    """The paths that `values` lack, by the documents' rules.

    Args:
        values: With `paths.weights` where it is given.
        model: The name folders bear.
        root: Holds the two folders of a run.
    """
    found: Values = {}

    def put(field: str, path: Path, rule: str) -> None:
        if f"paths.{field}" not in values:
            found[f"paths.{field}"] = Value(path, rule)

    def at(field: str) -> Path:
        # As text: what is no path is refused by name when the settings are checked.
        return Path(str((values | found)[f"paths.{field}"].value))

    if "paths.weights" in values:
        put("tokenizer", at("weights"), "where the weights are")
    put("processed", root / "processed_for_input" / model, "the documents' rule")
    put("out", root / "saved_dir_for_output", "the documents' rule")
    saved = at("out") / "saved_models" / model
    put("checkpoints", saved, "the documents' rule")
    put("logs", saved / "log", "the documents' rule")
    put("process_logs", at("out") / "plog", "the documents' rule")
    return found
