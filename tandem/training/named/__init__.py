"""One stage of a named model, from files to an exported folder."""
