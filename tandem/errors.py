"""The exception tree: everything tandem raises on purpose.

    TandemError
    ├── UsageError (ValueError)        the user asked for something wrong: exit code 2
    │   ├── ModelFolderError           a model folder is missing, half-written or contradicts itself
    │   ├── ConfigurationError         sizes of a model contradict each other; whoever read them adds the place
    │   ├── TopologyError              a topology or rank table breaks a rule
    │   └── RecipeError                a training recipe cannot run as written
    ├── RequestError (ValueError)      one HTTP request is refused: carries status, code and parameter
    ├── DataError                      a data file is broken or does not fit what it is used for
    ├── CheckpointError                a checkpoint is damaged or belongs to another run
    ├── StorageError                   an object store refuses, cannot be reached, or a file cannot be copied
    ├── DivergenceError                training produced no number any more, or a wild one, and was to stop
    ├── TransferError                  a KV hand-off was refused or broke off
    └── ProcessError                   a process of ours did not start, died or stopped answering

Every message names the thing, the place and the fix. Foreign errors are mapped to these once, where they enter.
"""


def printable(text: str) -> str:
    """Text in one line: characters that a terminal would act on, line ends among them, as Python writes them."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


class TandemError(Exception):
    """Base of everything tandem raises on purpose."""


class UsageError(TandemError, ValueError):
    """The user asked for something wrong; the message says what to change."""


class ModelFolderError(UsageError):
    """A model folder is missing, half-written or contradicts itself."""


class ConfigurationError(UsageError):
    """Sizes of a model contradict each other; whoever read them maps it to an error with the place and the fix."""


class TopologyError(UsageError):
    """A topology or a rank table breaks a rule; what it quotes of a file is one line and moves no cursor."""

    def __str__(self) -> str:
        return printable(super().__str__())


class RecipeError(UsageError):
    """A training recipe cannot run as written."""


class RequestError(TandemError, ValueError):
    """One HTTP request is refused, in OpenAI's error shape.

    Args:
        message: What is wrong and how to mend it; sent to the client.
        status: HTTP status code.
        code: OpenAI's machine-readable error code, such as ``model_not_found``.
        param: The body field at fault, if one is.
        retry_after: Seconds until it is worth another try, where that is known.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after = retry_after


class DataError(TandemError):
    """A data file is broken or does not fit what it is used for."""


class CheckpointError(TandemError):
    """A checkpoint is damaged or belongs to another run."""


class StorageError(TandemError):
    """An object store refuses or cannot be reached, or a file cannot be copied from it or to it."""


class DivergenceError(TandemError):
    """Training produced no number any more, or a wild one where it was told to stop."""


class TransferError(TandemError):
    """A KV hand-off was refused or broke off."""


class ProcessError(TandemError):
    """A process of ours did not start, died or stopped answering."""
