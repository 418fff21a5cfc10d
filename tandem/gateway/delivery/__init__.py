"""One answer from whoever can give it, handed on to its client."""
