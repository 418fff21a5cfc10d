"""What a run shall do: its recipe, read and checked."""
