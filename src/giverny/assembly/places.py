"""Where a user's own things are kept."""

from __future__ import annotations

import os
from pathlib import Path


def user_models() -> Path:
    """Where a user's own models are kept: GIVERNY_MODELS, or the place this system has for such things."""
    from platformdirs import user_data_path

    named = os.environ.get("GIVERNY_MODELS")
    return Path(named) if named else user_data_path("giverny") / "models"


def styles_file() -> Path:
    """Where a user's saved styles are looked for, as `text.styles` reads them."""
    return user_models() / "styles.csv"
